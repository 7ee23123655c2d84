//! The ranks of a topology as flat arrays, made once per plan.

use std::ops::Range;

use eplb_core::Topology;

/// Slots, speeds and lives of all ranks, indexed by rank number.
#[derive(Debug)]
pub(super) struct RankTable {
    /// First slot of each rank and the number of slots after the last, `[ranks + 1]`.
    first: Vec<u32>,
    /// Ranks that are alive, ascending.
    live: Vec<u32>,
    /// Speed of each rank, `[ranks]`.
    speed: Vec<f64>,
    /// One over the speed.
    inverse: Vec<f64>,
    /// Speeds of the live ranks added up, and the largest.
    total_speed: f64,
    fastest: f64,
    /// Whether all live ranks have one speed.
    equal: bool,
    /// Slots of live ranks.
    live_slots: usize,
}

impl RankTable {
    pub(super) fn new(topology: &Topology) -> Self {
        let live: Vec<u32> = topology.live_ranks().map(|rank| rank.0).collect();
        let speed: Vec<f64> = topology.all_ranks().map(|rank| topology.speed(rank)).collect();
        let speeds = || live.iter().map(|&rank| speed[rank as usize]);
        Self {
            first: topology.slot_offsets().to_vec(),
            total_speed: speeds().sum(),
            fastest: speeds().fold(0.0, f64::max),
            equal: topology.equal_speed(),
            inverse: speed.iter().map(|speed| 1.0 / speed).collect(),
            live_slots: topology.live_slots(),
            live,
            speed,
        }
    }

    /// Number of ranks, dead ones included.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.speed.len()
    }

    /// Ranks that are alive, ascending.
    #[inline]
    pub(super) fn live(&self) -> &[u32] {
        &self.live
    }

    /// Slots of live ranks.
    pub(super) fn live_slots(&self) -> usize {
        self.live_slots
    }

    /// The slots that a rank owns.
    #[inline]
    pub(super) fn slots(&self, rank: usize) -> Range<usize> {
        self.first[rank] as usize..self.first[rank + 1] as usize
    }

    /// Speed of a rank.
    #[inline]
    pub(super) fn speed(&self, rank: usize) -> f64 {
        self.speed[rank]
    }

    /// Speed of every rank.
    #[inline]
    pub(super) fn speeds(&self) -> &[f64] {
        &self.speed
    }

    /// One over the speed of every rank.
    #[inline]
    pub(super) fn inverses(&self) -> &[f64] {
        &self.inverse
    }

    /// Whether all ranks have one speed.
    #[inline]
    pub(super) fn equal(&self) -> bool {
        self.equal
    }

    /// Speeds of the live ranks added up.
    pub(super) fn total_speed(&self) -> f64 {
        self.total_speed
    }

    /// Speed of the fastest live rank.
    pub(super) fn fastest(&self) -> f64 {
        self.fastest
    }
}
