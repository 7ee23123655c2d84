//! The maps by which a server routes tokens, and which of them was in force when.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use eplb_core::{CoreError, Placement, Share, Topology};
use ndarray::{Array2, Array3};

/// The maps of one layer set from one step on. Shapes never change while an engine lives: `C` is fixed at the start.
#[derive(Debug, Clone, PartialEq)]
pub struct Maps {
    /// Number of these maps on this rank, rising by one with every change; 0 = those of the start.
    pub version: u64,
    /// First step that runs with them on this rank.
    pub first_step: u64,
    /// Expert in each slot, -1 = empty or drained; `[L, P]`.
    pub phy2log: Array2<i32>,
    /// Slots of each expert, ascending, -1 padded; `[L, E, C]`.
    pub log2phy: Array3<i32>,
    /// Replicas of each expert; `[L, E]`.
    pub logcnt: Array2<i32>,
    /// Part of its expert's tokens that a slot gets, 0..1, 0 at empty slots; `[L, P]`.
    pub share: Array2<f32>,
}

/// The shares that a plan wants, by rank: slot numbers inside a rank are the exchange's to choose.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Part of its expert's tokens that a rank gets, `[L, ranks, E]`.
    parts: Array3<f64>,
}

impl Wanted {
    /// The shares of a plan.
    pub(super) fn new(placement: &Placement, share: &Share, topology: &Topology) -> Self {
        let mut parts = Array3::zeros((placement.layers(), topology.ranks(), placement.experts()));
        for ((layer, slot), &expert) in placement.phy2log().indexed_iter() {
            if let Ok(expert) = usize::try_from(expert) {
                let rank = topology.rank_of_slots()[slot].index();
                parts[(layer, rank, expert)] += share.view()[(layer, slot)];
            }
        }
        Self { parts }
    }

    /// Shares for a placement: those of the plan in layers whose ranks hold the experts that it means, else even ones.
    fn on(&self, placement: &Placement, topology: &Topology) -> Array2<f32> {
        let mut share = Share::even(placement).view().mapv(|part| part as f32);
        let (layers, ranks, experts) = self.parts.dim();
        let mut held = Array2::<u32>::zeros((ranks, experts));
        for layer in 0..layers {
            held.fill(0);
            let row = placement.phy2log();
            let row = row.row(layer);
            for (slot, &expert) in row.iter().enumerate() {
                if let Ok(expert) = usize::try_from(expert) {
                    held[(topology.rank_of_slots()[slot].index(), expert)] += 1;
                }
            }
            // Every part must have a slot to go to, or an expert's shares would not add up to 1.
            let fits = held
                .indexed_iter()
                .all(|((rank, expert), &n)| n > 0 || self.parts[(layer, rank, expert)] == 0.0);
            if !fits {
                continue;
            }
            for (slot, &expert) in row.iter().enumerate() {
                if let Ok(expert) = usize::try_from(expert) {
                    let rank = topology.rank_of_slots()[slot].index();
                    let part = self.parts[(layer, rank, expert)] / f64::from(held[(rank, expert)]);
                    share[(layer, slot)] = part as f32;
                }
            }
        }
        share
    }
}

/// Makes the maps of entries of `phy2log`.
///
/// # Errors
/// Entries that name no expert.
pub(super) fn make(
    phy2log: &Array2<i32>,
    experts: usize,
    columns: usize,
    wanted: Option<(&Wanted, &Topology)>,
) -> Result<Maps, CoreError> {
    let placement = Placement::with_missing(experts, phy2log.clone())?;
    let share = match wanted {
        Some((wanted, topology)) => wanted.on(&placement, topology),
        None => Share::even(&placement).view().mapv(|part| part as f32),
    };
    Ok(Maps {
        version: 0,
        first_step: 0,
        log2phy: placement.log2phy(columns),
        logcnt: placement.logcnt().mapv(|count| count as i32),
        phy2log: phy2log.clone(),
        share,
    })
}

/// The maps in force, and those of the last versions.
#[derive(Debug)]
pub(super) struct History {
    current: ArcSwap<Maps>,
    past: Mutex<VecDeque<Arc<Maps>>>,
    remembered: usize,
}

impl History {
    pub(super) fn new(first: Maps, remembered: usize) -> Self {
        let first = Arc::new(first);
        let remembered = remembered.max(1);
        // Room for all, so that no step makes it grow.
        let mut past = VecDeque::with_capacity(remembered + 1);
        past.push_back(first.clone());
        Self { current: ArcSwap::new(first), past: Mutex::new(past), remembered }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Maps>>> {
        // Nothing that panics happens while it is held.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The maps in force.
    pub(super) fn now(&self) -> Arc<Maps> {
        self.current.load_full()
    }

    /// Puts maps in force from a step on; their version and first step are set here.
    pub(super) fn publish(&self, mut maps: Maps, first_step: u64) -> Arc<Maps> {
        let mut past = self.lock();
        maps.version = self.current.load().version + 1;
        maps.first_step = first_step;
        let maps = Arc::new(maps);
        past.push_back(maps.clone());
        while past.len() > self.remembered {
            past.pop_front();
        }
        self.current.store(maps.clone());
        maps
    }

    /// First step of the oldest maps remembered.
    pub(super) fn oldest(&self) -> u64 {
        self.lock().front().map_or(0, |maps| maps.first_step)
    }

    /// The maps that a step ran with on this rank; `None` if they are forgotten.
    pub(super) fn at(&self, step: u64) -> Option<Arc<Maps>> {
        self.lock().iter().rev().find(|maps| maps.first_step <= step).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_maps_of_a_step_are_found() {
        let maps = make(&array![[0, 1, 0]], 2, 2, None).unwrap();
        let history = History::new(maps.clone(), 3);
        assert_eq!((history.now().version, history.at(7).unwrap().version), (0, 0));
        for step in [4, 8, 8, 9] {
            history.publish(maps.clone(), step);
        }
        assert_eq!(history.now().version, 4);
        assert_eq!([8, 9, 100].map(|step| history.at(step).unwrap().version), [3, 4, 4]);
        // Versions 0 and 1 are forgotten, and with them what ran before step 8.
        assert_eq!(history.at(7), None);
    }

    #[test]
    fn shares_follow_experts_to_the_slots_that_they_got() {
        let topology = Topology::uniform(2, 4).unwrap();
        let planned = Placement::new(3, array![[0, 1, 0, 2]]).unwrap();
        let share = Share::new(array![[0.25, 1.0, 0.75, 1.0]], &planned).unwrap();
        let wanted = Wanted::new(&planned, &share, &topology);
        let found = make(&array![[1, 0, 2, 0]], 3, 2, Some((&wanted, &topology))).unwrap();
        assert_eq!(found.share, array![[1.0, 0.25, 1.0, 0.75]]);
        assert_eq!(found.log2phy, array![[[1, 3], [0, -1], [2, -1]]]);
        // On the way there a replica is drained: what is left takes all.
        let drained = make(&array![[1, -1, 2, 0]], 3, 2, Some((&wanted, &topology))).unwrap();
        assert_eq!(drained.share, array![[1.0, 0.0, 1.0, 1.0]]);
    }
}
