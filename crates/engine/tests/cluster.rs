//! Ranks as threads: experts move while steps run, and every byte is what its name says.

use std::time::Duration;

use eplb_core::{Placement, Topology};
use eplb_engine::cluster::{Cluster, Settings, weights};
use eplb_plan::{Options, Planner, Policy, Request};
use ndarray::Array2;

fn random(layers: usize, experts: usize, topology: &Topology, seed: u64) -> Placement {
    let loads = eplb_core::LoadMatrix::from_sum(Array2::from_elem((layers, experts), 1.0)).unwrap();
    let options = Options { policy: Policy::Random, seed, ..Options::default() };
    Planner::new(1).unwrap().plan(&Request::new(&loads, topology, &options)).unwrap().placement
}

#[test]
fn experts_move_between_random_placements_while_steps_run() {
    let topology = Topology::uniform(4, 20).unwrap();
    let (layers, experts) = (3, 14);
    let layout = weights::layout(layers, 3000).unwrap();
    let mut settings = Settings::new(&layout, &topology);
    settings.limits.staging_bytes = 3 * layout.largest_staged();
    settings.stream_delay = Duration::from_micros(50);
    let start = Placement::round_robin(layers, experts, 20).unwrap();
    let mut cluster = Cluster::start(&topology, layout, start, settings).unwrap();
    let loads = Array2::from_shape_fn((layers, experts), |(l, e)| (1 + (l * 7 + e * 5) % 11) as f64);
    let (mut staged, mut in_place) = (0, 0);
    for seed in 0..6 {
        let new = random(layers, experts, &topology, seed);
        let moved = cluster.rebalance(&new, &loads).unwrap();
        assert_eq!((moved.bytes_wrong, &moved.first_wrong), (0, &None));
        assert!(moved.waves > 0 && moved.steps > moved.waves as u64, "{moved:?}");
        assert_eq!(cluster.check().unwrap(), 0);
        assert_eq!(eplb_core::metrics::changes(cluster.placement(), &new, &topology).unwrap().moves, 0);
        staged += moved.totals.staged;
        in_place += moved.totals.in_place;
    }
    assert!(staged > 0 && in_place > 0, "both ways to land are used: {staged} staged, {in_place} in place");
}

#[test]
fn one_rank_moves_nothing_and_an_equal_placement_needs_no_wave() {
    let topology = Topology::uniform(1, 6).unwrap();
    let layout = weights::layout(2, 100).unwrap();
    let settings = Settings::new(&layout, &topology);
    let start = Placement::round_robin(2, 5, 6).unwrap();
    let mut cluster = Cluster::start(&topology, layout, start.clone(), settings).unwrap();
    let loads = Array2::from_elem((2, 5), 1.0);
    let moved = cluster.rebalance(&start, &loads).unwrap();
    assert_eq!((moved.waves, moved.totals.moves, cluster.check().unwrap()), (0, 0, 0));
    let other = random(2, 5, &topology, 3);
    let moved = cluster.rebalance(&other, &loads).unwrap();
    assert_eq!((moved.totals.moves, moved.bytes_wrong, cluster.check().unwrap()), (0, 0, 0));
}
