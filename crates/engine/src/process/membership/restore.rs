//! Where experts that nobody holds are fetched into. No IO: all members compute the same.

use eplb_core::{ExpertId, LayerId, Placement, SlotId, Topology};

/// An expert that is to be fetched into a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// The layer.
    pub layer: LayerId,
    /// The expert.
    pub expert: ExpertId,
    /// The slot; its owner fetches.
    pub slot: SlotId,
}

/// What is fetched, and what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Restore {
    /// Experts and their slots, in order of layer and expert.
    pub fetches: Vec<Fetch>,
    /// Experts for which no slot can be spared: there are fewer slots than experts.
    pub left_out: Vec<(LayerId, ExpertId)>,
}

/// Gives each missing expert of `current` a slot: the first that `wanted` gives it and that can be spared; else an empty slot on
/// the rank with most of them; else a slot of the expert with most replicas. No expert loses its last slot.
pub fn restore(current: &Placement, wanted: &Placement, topology: &Topology) -> Restore {
    let mut restore = Restore::default();
    for layer in (0..current.layers()).map(LayerId::at) {
        let mut row = current.layer(layer).to_vec();
        let mut counts: Vec<u32> = current.logcnt().row(layer.index()).to_vec();
        let missing: Vec<usize> = (0..counts.len()).filter(|&expert| counts[expert] == 0).collect();
        for expert in missing {
            let replicas = |slot: usize| usize::try_from(row[slot]).map_or(u32::MAX, |held| counts[held]);
            let spare = |slot: &usize| replicas(*slot) > 1;
            let empty_on_rank = |slot: usize| {
                let rank = topology.rank_of(SlotId::at(slot));
                topology.slots_of(rank).filter(|&other| row[other] < 0).count()
            };
            let slots =
                || (0..row.len()).filter(|&slot| topology.is_alive(topology.rank_of(SlotId::at(slot))));
            let is_wanted =
                |slot: &usize| wanted.expert_at(layer, SlotId::at(*slot)) == Some(ExpertId::at(expert));
            let found = slots().filter(is_wanted).find(spare).or_else(|| {
                let order = |&slot: &usize| (replicas(slot), empty_on_rank(slot), std::cmp::Reverse(slot));
                slots().filter(spare).max_by_key(order)
            });
            let Some(slot) = found else {
                restore.left_out.push((layer, ExpertId::at(expert)));
                continue;
            };
            if let Ok(held) = usize::try_from(row[slot]) {
                counts[held] -= 1;
            }
            // Entries of a map are experts, which fit.
            row[slot] = i32::try_from(expert).unwrap_or(-1);
            counts[expert] = 1;
            restore.fetches.push(Fetch { layer, expert: ExpertId::at(expert), slot: SlotId::at(slot) });
        }
    }
    restore
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn wanted_slots_go_first_then_empty_ones_then_those_of_many_replicas() {
        let topology = Topology::uniform(2, 6).unwrap();
        // Layer 0: expert 3 is missing, and wanted in slot 4, which holds one of three replicas of expert 0.
        // Layer 1: experts 2 and 3 are missing; the empty slots are on rank 1.
        let current = Placement::with_missing(4, array![[0, 1, 2, 0, 0, -1], [0, 1, 0, 1, -1, -1]]).unwrap();
        let wanted = Placement::new(4, array![[0, 1, 2, 0, 3, 1], [0, 1, 2, 1, 3, 0]]).unwrap();
        let restore = super::restore(&current, &wanted, &topology);
        let found: Vec<(u32, u32, u32)> =
            restore.fetches.iter().map(|f| (f.layer.0, f.expert.0, f.slot.0)).collect();
        assert_eq!(found, [(0, 3, 4), (1, 2, 2), (1, 3, 4)]);
        let unwanted = Placement::with_missing(4, array![[-1; 6], [-1; 6]]).unwrap();
        let restore = super::restore(&current, &unwanted, &topology);
        let found: Vec<(u32, u32, u32)> =
            restore.fetches.iter().map(|f| (f.layer.0, f.expert.0, f.slot.0)).collect();
        assert_eq!(found, [(0, 3, 5), (1, 2, 4), (1, 3, 5)]);
        assert_eq!(restore.left_out, []);
    }

    #[test]
    fn nobody_loses_its_last_slot() {
        let topology = Topology::uniform(2, 4).unwrap();
        let current = Placement::with_missing(6, array![[0, 0, 1, 2]]).unwrap();
        let restore = super::restore(&current, &current, &topology);
        assert_eq!(restore.fetches, [Fetch { layer: LayerId(0), expert: ExpertId(3), slot: SlotId(0) }]);
        assert_eq!(restore.left_out, [(LayerId(0), ExpertId(4)), (LayerId(0), ExpertId(5))]);
    }
}
