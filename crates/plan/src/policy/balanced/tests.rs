//! How the work of a layer grows, in counts; what plans are like is tested in `tests/`.

use eplb_core::Topology;

use super::refine::MOST_ASKED;
use super::search::Search;
use crate::layer::{Ranks, whole_units};

/// Layers of each size.
const LAYERS: usize = 6;

/// Loads that follow a power law, its exponent from layer to layer from 0.6 to 1.2 as in the generator.
fn units(experts: usize, layer: usize) -> Vec<f64> {
    let exponent = 0.6 + 0.6 * (layer as f64 + 0.5) / LAYERS as f64;
    let load = |expert: usize| 1e6 / ((expert * 37 % experts) as f64 + 1.0).powf(exponent);
    let mut units = Vec::new();
    whole_units(&(0..experts).map(load).collect::<Vec<_>>(), &mut units);
    units
}

/// Prints what `docs/benchmarks/planning.md` tells of two slots per rank:
/// `cargo test --release -p eplb-plan counts_of_a_layer -- --nocapture`.
#[test]
fn counts_of_a_layer_are_limited_by_its_ranks() {
    println!(
        "ranks: steps, searches for a replacement, ranks that replacements change, ranks asked, of which helped"
    );
    for (experts, ranks) in [(48, 128), (96, 256), (192, 512), (384, 1024)] {
        let live = Ranks::live(&Topology::uniform(ranks, 2 * ranks).unwrap(), experts);
        let mut search = Search::default();
        (0..LAYERS).for_each(|layer| search.run(&units(experts, layer), &live, ranks));
        let counts = search.refine.counts;
        let each = |count: u64| count as f64 / LAYERS as f64;
        println!(
            "{ranks}: {:.0}, {:.0}, {:.0}, {:.0}, one in {:.0}; worst rank {:.4} of the mean",
            each(counts.steps),
            each(counts.searches),
            each(search.refine.replace.holders.all_changed),
            each(counts.asked),
            counts.asked as f64 / counts.helped.max(1) as f64,
            search.state.cost(search.state.worst()) / (search.state.load.iter().sum::<f64>() / ranks as f64),
        );
        assert!(counts.refined > 0 && counts.steps > 0 && counts.helped > 0, "{counts:?}");
        // The last search of a refinement may go through all ranks once more.
        let most = (MOST_ASKED + 1) as u64 * ranks as u64 * counts.refined;
        assert!(counts.asked <= most, "{counts:?} of {most}");
        assert!(counts.steps <= (4 * ranks as u64 + 64) * counts.refined, "{counts:?}");
    }
}
