//! How the work of a layer grows and how refinements end, in counts; what plans are like is tested in `tests/`.

use eplb_core::Topology;

use super::refine::Counts;
use super::search::Search;
use crate::layer::{Ranks, whole_units};

/// Layers of each size and kind.
const LAYERS: usize = 6;

/// Kinds of loads, from layer to layer as far from even as the generator's: power laws with exponents from 0.6 to 1.2, and
/// exponentials of a sum of four cosines that have nothing to do with each other, from 0.5 to 1.1 times its size.
const KINDS: [fn(usize, f64) -> f64; 2] = [
    |expert, part| 1e6 / (expert as f64 + 1.0).powf(0.6 + 0.6 * part),
    |expert, part| {
        let wave = |step: f64| (step * (expert as f64 + 1.0)).cos();
        let sum: f64 = [1.7, 2.3, 5.1, 0.9].map(wave).iter().sum();
        1e4 * ((0.5 + 0.6 * part) * sum / 2f64.sqrt()).exp()
    },
];

fn units(kind: usize, experts: usize, layer: usize) -> Vec<f64> {
    let part = (layer as f64 + 0.5) / LAYERS as f64;
    let load = |expert: usize| KINDS[kind](expert * 37 % experts, part);
    let mut units = Vec::new();
    whole_units(&(0..experts).map(load).collect::<Vec<_>>(), &mut units);
    units
}

/// Counts and mean balancedness of some layers.
fn run(kind: usize, experts: usize, slots: usize, ranks: usize, chains: bool) -> (Counts, f64) {
    let live = Ranks::live(&Topology::uniform(ranks, slots).unwrap(), experts);
    let mut search = Search::default();
    search.refine.chain.left_out = !chains;
    let balance = |search: &Search| {
        search.state.load.iter().sum::<f64>() / ranks as f64 / search.state.cost(search.state.worst())
    };
    let mut sum = 0.0;
    for layer in 0..LAYERS {
        search.run(&units(kind, experts, layer), &live, ranks);
        sum += balance(&search);
    }
    (search.refine.counts, sum / LAYERS as f64)
}

/// Prints what `docs/benchmarks/planning.md` tells of two slots per rank:
/// `cargo test --release -p eplb-plan counts_of_a_layer -- --nocapture`.
#[test]
fn counts_of_a_layer_are_limited_by_its_ranks() {
    println!("ranks: steps, searches for a replacement, ranks asked, of which helped");
    for (experts, ranks) in [(48, 128), (96, 256), (192, 512), (384, 1024)] {
        let (counts, balance) = run(0, experts, 2 * ranks, ranks, true);
        let each = |count: u64| count as f64 / LAYERS as f64;
        println!(
            "{ranks}: {:.0}, {:.0}, {:.0}, one in {:.0}; balancedness {balance:.5}",
            each(counts.steps),
            each(counts.searches),
            each(counts.asked),
            counts.asked as f64 / counts.helped.max(1) as f64,
        );
        assert!(counts.refined > 0 && counts.steps > 0 && counts.helped > 0, "{counts:?}");
        // Every step asks every rank at most once.
        assert!(counts.asked <= counts.steps * ranks as u64, "{counts:?}");
        assert!(counts.steps <= 4 * ranks as u64 * counts.refined, "{counts:?}");
    }
}

/// Prints what `docs/benchmarks/planning.md` tells of how refinements end:
/// `cargo test --release -p eplb-plan refinements_end -- --nocapture`.
#[test]
fn refinements_end_next_to_the_mean_or_where_nothing_helps() {
    println!(
        "| experts | slots | ranks | loads | refinements | end next to the mean | where nothing helps | at a limit | chains sought | found | balancedness | without chains |"
    );
    let mut gain = [0.0; 2];
    for (experts, slots, ranks) in [
        (256, 288, 32),
        (384, 448, 64),
        (384, 512, 128),
        (256, 288, 72),
        (128, 160, 32),
        (256, 256, 8),
        (384, 2048, 1024),
    ] {
        for (kind, name) in ["power law", "waves"].into_iter().enumerate() {
            let (counts, balance) = run(kind, experts, slots, ranks, true);
            let Counts { refined, at_mean, at_optimum, at_limit, chains, chained, .. } = counts;
            let (_, without) = run(kind, experts, slots, ranks, false);
            println!(
                "| {experts} | {slots} | {ranks} | {name} | {refined} | {at_mean} | {at_optimum} | {at_limit} | {chains} | {chained} | {balance:.5} | {without:.5} |"
            );
            assert_eq!((at_mean + at_optimum, at_limit), (refined, 0), "{counts:?}");
            // A refinement that nothing helps ends on a search for a chain in vain.
            assert_eq!(chains - chained, at_optimum, "{counts:?}");
            gain[kind] += balance - without;
        }
    }
    assert!(gain.iter().all(|&gain| gain > 0.0), "{gain:?}");
}

#[test]
fn a_layer_that_only_a_chain_makes_even() {
    // The loads of `three_ranks_exchange_in_a_chain` in `tests/balanced.rs`: without chains they end uneven.
    let live = Ranks::live(&Topology::uniform(3, 9).unwrap(), 9);
    for (left_out, worst) in [(false, 54.0), (true, 59.0)] {
        let mut search = Search::default();
        search.refine.chain.left_out = left_out;
        search.run(&[40.0, 27.0, 24.0, 20.0, 17.0, 17.0, 12.0, 3.0, 2.0], &live, 3);
        assert_eq!(search.state.cost(search.state.worst()), worst);
    }
}
