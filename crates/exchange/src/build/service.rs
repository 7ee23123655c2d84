//! What a layer's ranks carry as slots go out of and into service.

use eplb_core::metrics::layer_balancedness;
use eplb_core::{SlotId, Topology};

/// Slack for rounding in comparisons of balancedness.
const EPSILON: f64 = 1e-9;

/// A slot that changes: what it holds before and after, -1 = nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) slot: SlotId,
    pub(crate) before: i32,
    pub(crate) after: i32,
}

/// Rank loads of one layer, at even split over the slots in service, kept up to date slot by slot.
#[derive(Debug)]
pub(crate) struct Service<'a> {
    row: &'a [f64],
    floor: f64,
    topology: &'a Topology,
    loads: Vec<f64>,
    holders: Vec<Vec<SlotId>>,
}

impl<'a> Service<'a> {
    /// `holders` are the slots in service of each expert; `floor` is the least balancedness that is wanted.
    pub(crate) fn new(row: &'a [f64], floor: f64, holders: &[Vec<SlotId>], topology: &'a Topology) -> Self {
        let mut loads = vec![0.0; topology.ranks()];
        for (expert, slots) in holders.iter().enumerate() {
            for &slot in slots {
                let rank = topology.rank_of(slot);
                loads[rank.index()] += row[expert] / slots.len() as f64 / topology.speed(rank);
            }
        }
        Self { row, floor, topology, loads, holders: holders.to_vec() }
    }

    /// Whether the layer is at least as balanced as wanted.
    pub(crate) fn holds(&self) -> bool {
        layer_balancedness(&self.loads, self.topology).is_none_or(|b| b >= self.floor - EPSILON)
    }

    /// Makes changes that belong together. Gains come first, so that an expert that only moves keeps a slot throughout.
    pub(crate) fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            self.add(change.after, change.slot);
        }
        for change in changes {
            self.remove(change.before, change.slot);
        }
    }

    /// Takes back what [`Service::apply`] did.
    pub(crate) fn revert(&mut self, changes: &[Change]) {
        for change in changes {
            self.add(change.before, change.slot);
        }
        for change in changes {
            self.remove(change.after, change.slot);
        }
    }

    fn add(&mut self, entry: i32, slot: SlotId) {
        let Ok(expert) = usize::try_from(entry) else { return };
        self.weigh(expert, -1.0);
        self.holders[expert].push(slot);
        self.weigh(expert, 1.0);
    }

    fn remove(&mut self, entry: i32, slot: SlotId) {
        let Ok(expert) = usize::try_from(entry) else { return };
        self.weigh(expert, -1.0);
        self.holders[expert].retain(|&holder| holder != slot);
        self.weigh(expert, 1.0);
    }

    /// Puts an expert's load on its holders' ranks, or takes it off.
    fn weigh(&mut self, expert: usize, sign: f64) {
        let part = self.row[expert] / self.holders[expert].len().max(1) as f64;
        for &slot in &self.holders[expert] {
            let rank = self.topology.rank_of(slot);
            self.loads[rank.index()] += sign * part / self.topology.speed(rank);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_taken_back_whole() {
        let topology = Topology::uniform(2, 4).unwrap();
        let row = [6.0, 2.0, 4.0];
        let holders = vec![vec![SlotId(0), SlotId(2)], vec![SlotId(1)], vec![SlotId(3)]];
        // Rank 0: 3 + 2, rank 1: 3 + 4: balancedness 6/7.
        let mut service = Service::new(&row, 6.0 / 7.0, &holders, &topology);
        assert!(service.holds());
        let swap = [
            Change { slot: SlotId(1), before: 1, after: 2 },
            Change { slot: SlotId(3), before: 2, after: 1 },
        ];
        service.apply(&swap);
        assert_eq!(service.loads, [7.0, 5.0]);
        let drain = [Change { slot: SlotId(0), before: 0, after: -1 }];
        service.apply(&drain);
        assert_eq!(service.loads, [4.0, 8.0]);
        assert!(!service.holds());
        service.revert(&drain);
        service.revert(&swap);
        assert_eq!(service.loads, [5.0, 7.0]);
        assert!(service.holds());
    }
}
