//! The best split of each expert's tokens over its replicas, for a placement that stays as it is.
//!
//! Per layer: experts `e` with loads `w_e`, slots `p` on ranks of speed `v_r`. Find shares `x_p`, 0 or more and 1 in
//! sum over the replicas of an expert, so that the busiest rank, `max_r (sum of w_e x_p over the slots of r) / v_r`,
//! has the least load; and among those splits the one whose second-busiest rank has the least, and so on. These rank
//! loads are unique; they also have the least sum of squares (weighted by speed), since the loads that splits can
//! reach are the bases of a polymatroid (Fujishige, "Lexicographically optimal base of a polymatroid with respect to
//! a weight vector", 1980). A split is optimal if and only if no expert has tokens on a rank with a higher level
//! (load over speed) than another rank that holds the expert.
//!
//! It is a flow problem from replicated experts to ranks, and far from a general linear program:
//! 1. `graph`: one edge per replicated expert and rank; experts with one copy are fixed loads.
//! 2. `fill`: from the even split, a few over-relaxed sweeps of water filling come near the optimum.
//! 3. `levels`: ranks that share tokens form groups. A group is brought to its common level along a tree, exactly, in
//!    one pass; where an edge runs dry, by maximum flow (`balance`), which levels the group or cuts it in two.
//!    Then the optimality condition above is checked over all experts; groups that break it are merged and
//!    solved again. Should this not end within a few rounds, everything that is connected is solved from the top
//!    by maximum flow and cuts alone, the decomposition algorithm of Groenevelt (1991) and Fujishige.
//! 4. `proof`: the busiest ranks that share tokens are a proof of optimality. The experts all of whose replicas they
//!    hold cannot go elsewhere, so their tokens over the speed of these ranks is a bound for any split.
//!
//! Loads are scale-free: they are divided by the layer's sum first. Exact means to a relative 1e-12 of the levels.

mod balance;
mod fill;
mod graph;
mod levels;
mod proof;
mod ranks;
mod search;
#[cfg(test)]
mod tests;

use eplb_core::metrics::check_shapes;
use eplb_core::{CoreError, LayerId, Placement, RankId, Share, Topology};
use ndarray::{Array2, ArrayView2};

use self::graph::Graph;
use self::levels::Levels;
pub use self::proof::cut_bound;
use self::ranks::Ranks;

/// Solves splits for the ranks of one topology. Cheap to make; threads may use one together, each with its own
/// [`SplitScratch`].
///
/// ```
/// use eplb_core::Topology;
/// use eplb_plan::split::{SplitScratch, Splitter};
///
/// // Rank 0 holds experts 0 and 1, rank 1 holds 2 and another replica of 0.
/// let splitter = Splitter::new(&Topology::uniform(2, 4)?);
/// let (mut share, mut scratch) = ([0.0; 4], SplitScratch::default());
/// let busiest = splitter.split_layer(&[8.0, 6.0, 2.0], &[0, 1, 2, 0], &mut share, &mut scratch);
/// assert!((busiest - 8.0).abs() < 1e-9);
/// assert!(share.iter().zip([0.25, 1.0, 1.0, 0.75]).all(|(found, wanted)| (found - wanted).abs() < 1e-9));
/// # Ok::<(), eplb_core::CoreError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Splitter {
    ranks: Ranks,
}

/// Memory of a [`Splitter`], reused from layer to layer: once it has seen the largest layer nothing is allocated.
#[derive(Debug, Clone, Default)]
pub struct SplitScratch {
    graph: Graph,
    levels: Levels,
    tight: Vec<RankId>,
}

impl Splitter {
    /// A splitter for these ranks, their slots, speeds, and which are alive.
    pub fn new(topology: &Topology) -> Self {
        Self { ranks: Ranks::new(topology) }
    }

    /// Splits one layer: writes the share of every slot (`[P]`) and returns the load of the busiest rank in tokens
    /// per unit of speed, the least that this placement allows.
    ///
    /// `row` holds the tokens of each expert, `[E]`, finite and 0 or more, as rows of a
    /// [`LoadMatrix`](eplb_core::LoadMatrix) are; `phy2log` the expert in each slot, `[P]`, where anything but an
    /// expert means an empty slot. Copies of an expert on one rank get equal parts, as do all live replicas of an
    /// expert without load. Slots of dead ranks get nothing, but those of an expert that has no other slot share it
    /// evenly, so that its shares still sum to 1; its tokens are not counted.
    ///
    /// # Panics
    /// If `phy2log` or `share` does not have one entry per slot of the topology.
    pub fn split_layer(
        &self,
        row: &[f64],
        phy2log: &[i32],
        share: &mut [f64],
        scratch: &mut SplitScratch,
    ) -> f64 {
        assert_eq!(phy2log.len(), self.ranks.all_slots(), "phy2log must have one entry per slot");
        assert_eq!(share.len(), phy2log.len(), "share must have one entry per slot");
        scratch.tight.clear();
        let SplitScratch { graph, levels, .. } = scratch;
        graph.build(row, phy2log, &self.ranks, share);
        if graph.total <= 0.0 {
            return 0.0;
        }
        graph.even();
        graph.fill(&self.ranks);
        levels.solve(graph, &self.ranks);
        graph.write(share);
        let busiest = levels.highest() * graph.total / self.ranks.fastest;
        debug_assert!(
            busiest <= proof::bound(row, phy2log, &self.ranks, scratch.tight_ranks()) * (1.0 + 1e-9),
            "the busiest rank of a split is not proved by its tight ranks"
        );
        busiest
    }
}

/// Splits every layer, one after another on the calling thread: `loads` is `[L, E]`.
///
/// # Errors
/// Loads, placement and topology of different shapes.
pub fn split(
    loads: ArrayView2<'_, f64>,
    placement: &Placement,
    topology: &Topology,
) -> Result<Share, CoreError> {
    check_shapes(loads.dim(), placement, topology)?;
    let (splitter, mut scratch) = (Splitter::new(topology), SplitScratch::default());
    let (layers, slots) = (placement.layers(), placement.slots());
    let mut share = vec![0.0; layers * slots];
    let (mut row, mut phy2log) = (Vec::with_capacity(loads.ncols()), Vec::with_capacity(slots));
    for (layer, share) in share.chunks_exact_mut(slots).enumerate() {
        row.clear();
        row.extend(loads.row(layer));
        phy2log.clear();
        phy2log.extend(placement.layer(LayerId::at(layer)));
        splitter.split_layer(&row, &phy2log, share, &mut scratch);
    }
    Share::new(Array2::from_shape_fn((layers, slots), |(layer, slot)| share[layer * slots + slot]), placement)
}

impl SplitScratch {
    /// The ranks that prove the last layer's split to be optimal, ascending: [`cut_bound`] of them is the load of its
    /// busiest rank. Empty for an idle layer.
    pub fn tight_ranks(&mut self) -> &[RankId] {
        if self.tight.is_empty() && self.graph.total > 0.0 {
            self.levels.tight_ranks(&self.graph, &mut self.tight);
        }
        &self.tight
    }
}
