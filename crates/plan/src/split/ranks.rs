//! Ranks, as the solver reads them.

use eplb_core::Topology;

/// What a topology says about ranks, in the form that the solver reads.
#[derive(Debug, Clone)]
pub(super) struct Ranks {
    /// First slot of each rank, and the number of slots after the last.
    slot_offset: Vec<u32>,
    /// Whether a rank is alive.
    pub(super) alive: Vec<bool>,
    /// Whether all are.
    pub(super) all_alive: bool,
    /// Speed of each rank as a part of the fastest live rank's.
    pub(super) speed: Vec<f64>,
    /// Whether all of these are 1.
    pub(super) all_alike: bool,
    /// Speed of the fastest live rank.
    pub(super) fastest: f64,
}

impl Ranks {
    pub(super) fn new(topology: &Topology) -> Self {
        let fastest = topology.live_ranks().map(|r| topology.speed(r)).fold(f64::MIN_POSITIVE, f64::max);
        let speed: Vec<f64> = topology.all_ranks().map(|r| topology.speed(r) / fastest).collect();
        Self {
            slot_offset: topology.slot_offsets().to_vec(),
            alive: topology.all_ranks().map(|r| topology.is_alive(r)).collect(),
            all_alive: topology.all_alive(),
            all_alike: speed.iter().all(|&speed| speed == 1.0),
            speed,
            fastest,
        }
    }

    /// Number of ranks, dead ones included.
    pub(super) fn len(&self) -> usize {
        self.speed.len()
    }

    /// Number of slots, those of dead ranks included.
    pub(super) fn all_slots(&self) -> usize {
        self.slot_offset.last().map_or(0, |&end| end as usize)
    }

    /// Slots of a rank.
    pub(super) fn slots(&self, rank: usize) -> std::ops::Range<usize> {
        self.slot_offset[rank] as usize..self.slot_offset[rank + 1] as usize
    }
}
