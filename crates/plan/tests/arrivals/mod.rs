//! What a plan brings to each rank, and whether that is within a budget: for tests of the policies that have one.

use eplb_core::{LayerId, Placement, RankId, Topology};
use eplb_plan::Options;

/// Experts that each rank gets from others in each layer, `[ranks][layers]`.
#[derive(Debug)]
pub(crate) struct Arrivals(Vec<Vec<usize>>);

impl Arrivals {
    /// What ranks get on the way from one placement to another.
    pub(crate) fn between(from: &Placement, to: &Placement, topology: &Topology) -> Self {
        let had = |layer: usize, rank: RankId, expert: i32| {
            let row = from.layer(LayerId::at(layer));
            topology.slots_of(rank).any(|slot| row[slot] == expert)
        };
        let layer = |rank: RankId, layer: usize| {
            let row = to.layer(LayerId::at(layer));
            let arrived = |&slot: &usize| row[slot] >= 0 && !had(layer, rank, row[slot]);
            topology.slots_of(rank).filter(arrived).count()
        };
        let ranks = topology.all_ranks();
        Self(ranks.map(|rank| (0..to.layers()).map(|l| layer(rank, l)).collect()).collect())
    }

    /// Moves of a layer.
    pub(crate) fn of_layer(&self, layer: usize) -> usize {
        self.0.iter().map(|rank| rank[layer]).sum()
    }

    /// Moves and bytes of each rank.
    pub(crate) fn of_ranks(&self, options: &Options) -> Vec<(usize, u64)> {
        let sum = |rank: &Vec<usize>| {
            let bytes = rank.iter().enumerate().map(|(layer, &n)| n as u64 * bytes_of(options, layer)).sum();
            (rank.iter().sum(), bytes)
        };
        self.0.iter().map(sum).collect()
    }

    /// Which of the options' limits is broken.
    pub(crate) fn broken_budget(&self, options: &Options) -> Option<&'static str> {
        let (ranks, budget) = (self.of_ranks(options), options.budget);
        let all = ranks.iter().fold((0, 0), |sum, rank| (sum.0 + rank.0, sum.1 + rank.1));
        if budget.moves.is_some_and(|most| all.0 > most) {
            return Some("moves");
        }
        if budget.bytes.is_some_and(|most| all.1 > most) {
            return Some("bytes");
        }
        if budget.moves_per_rank.is_some_and(|most| ranks.iter().any(|rank| rank.0 > most)) {
            return Some("moves per rank");
        }
        let over = |most| ranks.iter().any(|rank| rank.1 > most);
        budget.bytes_per_rank.is_some_and(over).then_some("bytes per rank")
    }
}

/// Bytes of an expert of a layer.
pub(crate) fn bytes_of(options: &Options, layer: usize) -> u64 {
    let bytes = &options.expert_bytes;
    *bytes.get(layer).unwrap_or(&bytes[0])
}
