//! What all layers of a request have in common, and what one layer adds.

use eplb_core::Topology;

use crate::error::PlanError;
use crate::layer::Ranks;
use crate::objective::{CostModel, Dispatch, NodeRule};
use crate::policy::priced::state::NONE;
use crate::request::Request;
use crate::split::Splitter;

/// Ranks, nodes and rules.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) ranks: Ranks,
    /// Places from one rank to the next in a [`State`](super::state::State).
    pub(super) stride: usize,
    /// Node of each live rank, and their number.
    pub(super) node: Vec<u32>,
    pub(super) nodes: usize,
    /// Live ranks of each node, ascending.
    pub(super) of_node: Vec<Vec<usize>>,
    /// Part of the live ranks that each node has: where tokens come from.
    pub(super) source: Vec<f64>,
    pub(super) rule: NodeRule,
    pub(super) dispatch: Dispatch,
    pub(super) cost: CostModel,
    pub(super) experts: usize,
    /// Experts per group, and groups.
    pub(super) group_size: usize,
    pub(super) groups: usize,
    /// Most replicas of an expert.
    pub(super) limit: usize,
    /// How many of the hottest experts are on every rank.
    pub(super) top: usize,
    /// Solves splits with one more slot per rank, for the time that its experts take whatever their tokens.
    pub(super) splitter: Option<Splitter>,
}

impl Facts {
    /// # Errors
    /// Rules that cannot be kept on these ranks.
    pub(super) fn new(request: &Request<'_>, policy: &'static str) -> Result<Self, PlanError> {
        let (topology, options, experts) = (request.topology, request.options, request.loads.experts());
        let ranks = Ranks::live(topology, experts);
        let nodes = topology.nodes();
        let node: Vec<u32> = ranks.id.iter().map(|&rank| topology.node_of(rank).0).collect();
        let of_node: Vec<Vec<usize>> =
            (0..nodes as u32).map(|n| (0..ranks.len()).filter(|&r| node[r] == n).collect()).collect();
        let source = of_node.iter().map(|own| own.len() as f64 / ranks.len() as f64).collect();
        let groups = options.groups;
        if !experts.is_multiple_of(groups) {
            return Err(PlanError::NotDivisible {
                policy,
                what: "experts",
                left: experts,
                by: "groups",
                right: groups,
                advice: "give a number of groups that divides them",
            });
        }
        let stride = ranks.room.iter().copied().max().unwrap_or(1).max(1);
        let limit = options.replica_limit(ranks.len());
        let facts = Self {
            stride,
            node,
            nodes,
            of_node,
            source,
            rule: options.nodes,
            dispatch: options.dispatch,
            cost: options.cost,
            experts,
            group_size: experts / groups,
            groups,
            limit,
            top: options.replicate_top,
            splitter: match options.dispatch {
                Dispatch::Share => Some(Splitter::new(&widened(&ranks, stride)?)),
                _ => None,
            },
            ranks,
        };
        facts.check_top(policy)?;
        facts.check_strict(policy)?;
        Ok(facts)
    }

    fn check_top(&self, policy: &'static str) -> Result<(), PlanError> {
        if self.top == 0 {
            return Ok(());
        }
        let refuse = |reason: String| Err(PlanError::Unsupported { policy, reason });
        let (top, ranks, experts) = (self.top, self.ranks.len(), self.experts);
        if top > experts {
            return refuse(format!("replicate_top is {top}, but there are only {experts} experts"));
        }
        if self.limit < ranks {
            return refuse(format!(
                "replicate_top puts a replica on each of {ranks} live ranks, but max_replicas is {}; raise it",
                self.limit
            ));
        }
        if matches!(self.rule, NodeRule::Strict) && self.nodes > 1 {
            return refuse(
                "replicate_top puts experts on every node, which the strict node rule forbids".into(),
            );
        }
        if let Some(rank) = (0..ranks).find(|&rank| self.ranks.room[rank] < top) {
            return refuse(format!(
                "replicate_top is {top}, but {} owns {} slots; give every live rank at least {top}",
                self.ranks.id[rank], self.ranks.room[rank]
            ));
        }
        let (rest, left) = (experts - top, self.ranks.total_room() - top * ranks);
        if left < rest {
            return refuse(format!(
                "replicate_top {top} on {ranks} live ranks leaves {left} slots for the other {rest} experts; give {} \
                 more slots or a smaller number",
                rest - left
            ));
        }
        Ok(())
    }

    fn check_strict(&self, policy: &'static str) -> Result<(), PlanError> {
        if !matches!(self.rule, NodeRule::Strict) || self.nodes == 1 {
            return Ok(());
        }
        if !self.groups.is_multiple_of(self.nodes) {
            return Err(PlanError::NotDivisible {
                policy,
                what: "groups",
                left: self.groups,
                by: "nodes",
                right: self.nodes,
                advice: "the strict node rule keeps equally many whole groups on each node; give --groups as the router \
                         has them, or a price",
            });
        }
        let needed = self.experts / self.nodes;
        match (0..self.nodes).find(|&node| self.room_of(node) < needed) {
            None => Ok(()),
            Some(node) => Err(PlanError::Unsupported {
                policy,
                reason: format!(
                    "the strict node rule puts {needed} experts on every node, but node {node} has {} live slots; give \
                     more slots, or a price",
                    self.room_of(node)
                ),
            }),
        }
    }

    /// Experts that fit on a node.
    pub(super) fn room_of(&self, node: usize) -> usize {
        self.of_node[node].iter().map(|&rank| self.ranks.room[rank]).sum()
    }

    /// Price of the crossing.
    pub(super) fn price(&self) -> f64 {
        match self.rule {
            NodeRule::Priced(price) if self.nodes > 1 => price,
            _ => 0.0,
        }
    }

    /// Whether something counts that the engine of `balanced` does not know, or ranks differ, where its plans can be improved.
    pub(super) fn search_pays(&self) -> bool {
        self.price() > 0.0
            || self.cost.per_expert > 0.0
            || self.dispatch != Dispatch::Even
            || self.ranks.fastest() > 1.0
    }

    /// Whether ranks with the same slots and speed may take each other's experts for nothing.
    pub(super) fn nodes_matter(&self) -> bool {
        self.nodes > 1 && (self.rule != NodeRule::Free || self.dispatch == Dispatch::Nearest)
    }

    pub(super) fn group_of(&self, expert: u32) -> usize {
        expert as usize / self.group_size
    }

    pub(super) fn rank_of(&self, place: u32) -> usize {
        place as usize / self.stride
    }
}

/// The live ranks with one more slot each, in places of `stride + 1`.
fn widened(ranks: &Ranks, stride: usize) -> Result<Topology, PlanError> {
    let speed: Vec<f64> = ranks.slowness.iter().map(|slowness| 1.0 / slowness).collect();
    Ok(Topology::new(&vec![stride + 1; ranks.len()])?.with_speed(&speed)?)
}

/// One layer: loads, and what takes how long. Times are multiples of the mean time of the ranks if every expert had one
/// replica.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// Tokens of each expert as a part of the layer's, `[E]`.
    pub(super) weight: Vec<f64>,
    /// Time of a slot with tokens, and of all the layer's tokens, on the slowest rank.
    pub(super) per_active: f64,
    pub(super) per_all: f64,
    /// Experts that are on every rank, `[E]`.
    pub(super) pinned: Vec<bool>,
    /// Node of each group under the strict rule, else [`NONE`].
    pub(super) home: Vec<u32>,
    order: Vec<u32>,
}

impl Layer {
    /// Reads the loads of a layer (`[E]`). Returns whether it is idle; then every expert weighs the same.
    pub(super) fn read(&mut self, row: &[f64], facts: &Facts) -> bool {
        let total: f64 = row.iter().sum();
        let idle = total <= 0.0;
        self.weight.clear();
        if idle {
            self.weight.resize(row.len(), 1.0 / row.len() as f64);
        } else {
            self.weight.extend(row.iter().map(|load| load / total));
        }
        let active = self.weight.iter().filter(|&&weight| weight > 0.0).count() as f64;
        let tokens = if idle { 1.0 } else { total };
        let mean = facts.cost.time(active, tokens) / facts.ranks.speed;
        self.per_active = facts.cost.per_expert / mean;
        self.per_all = facts.cost.per_token * tokens / mean;
        self.order.clear();
        self.order.extend(0..row.len() as u32);
        let weight = &self.weight;
        self.order
            .sort_unstable_by(|&a, &b| weight[b as usize].total_cmp(&weight[a as usize]).then(a.cmp(&b)));
        self.pinned.clear();
        self.pinned.resize(row.len(), false);
        self.order[..facts.top].iter().for_each(|&expert| self.pinned[expert as usize] = true);
        self.home.clear();
        self.home.resize(facts.groups, NONE);
        idle
    }

    /// Experts by tokens descending, id ascending.
    pub(super) fn hottest_first(&self) -> &[u32] {
        &self.order
    }

    /// Time of a rank.
    #[inline]
    pub(super) fn time(&self, facts: &Facts, rank: usize, active: u32, tokens: f64) -> f64 {
        (self.per_active * f64::from(active) + self.per_all * tokens) * facts.ranks.slowness[rank]
    }
}
