//! Clusters for properties of policies.

use eplb_core::Topology;
use proptest::prelude::*;
use proptest::test_runner::TestRng;

/// Ranks with two to five slots, in one case of three with different speeds.
pub(crate) fn topology(ranks: usize, rng: &mut TestRng) -> Topology {
    let counts: Vec<usize> = (0..ranks).map(|_| rng.random_range(2..=5)).collect();
    let topology = Topology::new(&counts).unwrap();
    if rng.random_range(0..3) > 0 {
        return topology;
    }
    let speed: Vec<f64> = (0..ranks).map(|_| [0.5, 1.0, 2.0][rng.random_range(0..3usize)]).collect();
    topology.with_speed(&speed).unwrap()
}
