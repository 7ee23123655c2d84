//! A planner that has planned once allocates its results and next to nothing else: no step of an inner loop allocates.

use std::alloc::System;

use cap::Cap;
use eplb_core::{LoadMatrix, Topology, metrics};
use eplb_plan::{CostModel, Dispatch, NodeRule, Options, Planner, Policy, Request};
use ndarray::Array2;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Bytes allocated while `work` runs, freed or not.
fn bytes<R>(work: impl FnOnce() -> R) -> (usize, R) {
    let before = MEMORY.total_allocated();
    let result = work();
    (MEMORY.total_allocated() - before, result)
}

const EXPERTS: usize = 128;
const SLOTS: usize = 160;
const RANKS: usize = 32;

fn loads(layers: usize) -> LoadMatrix {
    let load = |(layer, expert): (usize, usize)| {
        let rank = (expert * 37 + layer * 11) % EXPERTS;
        10_000.0 / (1.0 + rank as f64).powf(0.6 + 0.05 * (layer % 12) as f64)
    };
    LoadMatrix::from_sum(Array2::from_shape_fn((layers, EXPERTS), load)).unwrap()
}

/// Bytes of the first and of the second plan of a planner.
fn twice(layers: usize, options: &Options) -> [usize; 2] {
    let (loads, topology) = (loads(layers), Topology::uniform(RANKS, SLOTS).unwrap().with_nodes(4).unwrap());
    let request = Request::new(&loads, &topology, options);
    let planner = Planner::new(1).unwrap();
    [(); 2].map(|()| bytes(|| planner.place(&request).unwrap()).0)
}

/// A placement of one layer: two maps of slots, two of experts, 4 bytes each.
const RESULT: usize = 4 * (2 * SLOTS + 2 * EXPERTS);

/// What a request may take beside: tables of ranks, slots and experts.
const TABLES: usize = 64 * (SLOTS + EXPERTS + RANKS);

/// What a move may take: a change and a stop on a path, in lists that double.
const PER_MOVE: usize = 256;

/// The same loads after a drift: every expert up to a third more or less.
fn drifted(layers: usize) -> LoadMatrix {
    let mut sum = loads(layers).sum().to_owned();
    let factor = |layer: usize, expert: usize| 1.0 + 0.3 * ((expert * 31 + layer * 17) as f64).sin();
    sum.indexed_iter_mut().for_each(|((layer, expert), load)| *load *= factor(layer, expert));
    LoadMatrix::from_sum(sum).unwrap()
}

// One test: others in the process would allocate meanwhile.
#[test]
fn a_warm_planner_allocates_results_alone() {
    for policy in [Policy::Balanced, Policy::Deepseek, Policy::Static] {
        let options = Options { policy, ..Options::default() };
        for layers in [6, 24] {
            let [cold, warm] = twice(layers, &options);
            assert!(warm <= layers * RESULT + TABLES, "{policy}, {layers} layers: {warm} bytes");
            assert!(
                policy == Policy::Static || cold > warm,
                "{policy}: a cold planner makes its scratch memory"
            );
        }
    }

    // Other objectives: a few small tables of ranks per layer, however long the search.
    let cost = CostModel { per_expert: 50.0, per_token: 1.0 };
    for options in [
        Options { nodes: NodeRule::Priced(0.5), groups: 8, ..Options::default() },
        Options { dispatch: Dispatch::Nearest, ..Options::default() },
        Options { dispatch: Dispatch::Share, cost, ..Options::default() },
    ] {
        let [_, warm] = twice(6, &options);
        assert!(warm <= 6 * (RESULT + TABLES) + TABLES, "{options:?}: {warm} bytes");
    }

    // Small plans: what is beside the result is a list of changes, however many were tried for each of them.
    let (before, after) = (loads(12), drifted(12));
    let topology = Topology::uniform(RANKS, SLOTS).unwrap();
    let fresh = Options::default();
    let planner = Planner::new(1).unwrap();
    let current = planner.place(&Request::new(&before, &topology, &fresh)).unwrap();
    for options in [
        Options { policy: Policy::Incremental, target: Some(0.9), ..Options::default() },
        Options { policy: Policy::Incremental, target: Some(0.97), ..Options::default() },
        Options { policy: Policy::Forecast, move_price: 0.01, ..Options::default() },
        Options { policy: Policy::Forecast, move_price: 0.0, ..Options::default() },
    ] {
        let request = Request::new(&after, &topology, &options).with_current(&current);
        let placed = planner.place(&request).unwrap();
        let (warm, again) = bytes(|| planner.place(&request).unwrap());
        assert_eq!(placed, again);
        let moves = metrics::changes(&current, &placed, &topology).unwrap().moves;
        let most = 12 * (RESULT + TABLES) + TABLES + PER_MOVE * moves;
        println!("{} {:?} {moves} moves: {warm} of {most} bytes", options.policy, options.target);
        assert!(warm <= most, "{options:?}: {warm} bytes for {moves} moves");
    }

    // The split of a placement: the shares, 8 bytes each, and what checking them takes.
    let (loads, topology) = (loads(12), Topology::uniform(RANKS, SLOTS).unwrap());
    let options = Options::default();
    let request = Request::new(&loads, &topology, &options);
    let planner = Planner::new(1).unwrap();
    let placement = planner.place(&request).unwrap();
    planner.split(&request, &placement).unwrap();
    let (warm, _) = bytes(|| planner.split(&request, &placement).unwrap());
    assert!(warm <= 12 * 8 * SLOTS + TABLES, "split: {warm} bytes");

    // The measure sees what it is for: one small allocation per slot and layer would not pass.
    let (planted, _) = bytes(|| {
        planner.split(&request, &placement).unwrap();
        (0..12 * SLOTS).map(|slot| vec![slot; 2].len()).sum::<usize>()
    });
    assert!(planted > 12 * 8 * SLOTS + TABLES, "{planted}");
}
