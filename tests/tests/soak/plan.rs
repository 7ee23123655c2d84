//! What all ranks of a run know alike: sizes, deadlines, and the placement of every round.

use std::time::Duration;

use eplb_core::{LoadMatrix, ModelLayout, Placement, SlotId, Topology};
use eplb_engine::cluster::weights;
use eplb_engine::deadlines::Deadlines;
use eplb_plan::{Options, Planner, Policy, Request};
use ndarray::Array2;

use crate::driver::RANKS;

const LAYERS: usize = 2;
const EXPERTS: usize = 8;
const SLOTS: usize = 12;
const EXPERT_BYTES: usize = 1500;

pub(crate) fn topology() -> Topology {
    Topology::uniform(RANKS, SLOTS).unwrap()
}

pub(crate) fn layout() -> ModelLayout {
    weights::layout(LAYERS, EXPERT_BYTES).unwrap()
}

/// Loads by which the drain floor is judged, `[layers, experts]`.
pub(crate) fn loads() -> Array2<f64> {
    Array2::from_shape_fn((LAYERS, EXPERTS), |(l, e)| (1 + (l * 7 + e * 5) % 11) as f64)
}

/// Makes the random placement of every round.
#[derive(Debug)]
pub(crate) struct Rounds {
    planner: Planner,
    loads: LoadMatrix,
    topology: Topology,
    seed: u64,
}

impl Rounds {
    pub(crate) fn new(seed: u64) -> Self {
        let loads = LoadMatrix::from_sum(Array2::from_elem((LAYERS, EXPERTS), 1.0)).unwrap();
        Self { planner: Planner::new(1).unwrap(), loads, topology: topology(), seed }
    }

    /// The placement to begin with.
    pub(crate) fn start(&self) -> Placement {
        self.random(u64::MAX >> 1)
    }

    /// Where a round goes from `before`: three times in four a few slots change, else everything does.
    pub(crate) fn next(&self, round: u64, before: &Placement) -> Placement {
        if mix(self.seed ^ 0xa11, round).is_multiple_of(4) {
            self.random(round)
        } else {
            self.few(round, before)
        }
    }

    /// Up to three slots, whose experts have other replicas, get experts that their ranks do not have.
    fn few(&self, round: u64, before: &Placement) -> Placement {
        let mut map = before.phy2log().to_owned();
        let mut changed = 0;
        for draw in (0..64).map(|at| mix(self.seed ^ 0xfe3, round * 64 + at)) {
            let (layer, slot) = (draw as usize % LAYERS, (draw >> 8) as usize % SLOTS);
            let expert = ((draw >> 16) as usize % EXPERTS) as i32;
            let (old, row) = (map[(layer, slot)], map.row(layer));
            let spare = old < 0 || row.iter().filter(|&&other| other == old).count() > 1;
            let held =
                self.topology.slots_of(self.topology.rank_of(SlotId::at(slot))).any(|own| row[own] == expert);
            if spare && !held && changed < 3 {
                map[(layer, slot)] = expert;
                changed += 1;
            }
        }
        Placement::with_missing(EXPERTS, map).unwrap()
    }

    fn random(&self, round: u64) -> Placement {
        let options = Options { policy: Policy::Random, seed: mix(self.seed, round), ..Options::default() };
        let request = Request::new(&self.loads, &self.topology, &options);
        self.planner.plan(&request).unwrap().placement
    }

    /// How late a rank comes to a round: one in eight is, by up to 2 ms.
    pub(crate) fn lateness(&self, round: u64, rank: usize) -> Duration {
        let draw = mix(self.seed ^ 0x1a7e, round * RANKS as u64 + rank as u64);
        if draw.is_multiple_of(8) { Duration::from_micros((draw >> 32) % 2000) } else { Duration::ZERO }
    }
}

/// A number that looks random, the same everywhere: splitmix64's finalizer (Steele, Lea, Flood 2014).
pub(crate) fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Patient ones: nothing here is meant to run into a deadline.
pub(crate) fn deadlines() -> Deadlines {
    let mut deadlines = Deadlines::new();
    deadlines.exchange.peer = Duration::from_secs(20);
    deadlines.exchange.commit_hold = Duration::from_secs(20);
    deadlines.store.peer_timeout = Duration::from_secs(20);
    deadlines.store.silence = Duration::from_secs(20);
    deadlines
}
