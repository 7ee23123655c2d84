//! How long ranks will take under a placement, and what will cross nodes, given what the server does with replicas.

use eplb_core::metrics::Balance;
use eplb_core::{LayerId, Placement, RankId, Share, Topology};

use crate::objective::{CostModel, Dispatch};
use crate::request::Request;
use crate::workers::Workers;

/// Times that ranks take on the loads planned for, under [`Options::cost`] and [`Options::dispatch`], in the unit of the
/// cost model.
///
/// [`Options::cost`]: crate::Options::cost
/// [`Options::dispatch`]: crate::Options::dispatch
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Time of the worst rank in each layer, `[L]`: ranks wait for it.
    pub worst: Vec<f64>,
    /// Mean time of the live ranks in each layer, `[L]`.
    pub mean: Vec<f64>,
    /// Mean over worst, as balancedness is summed up.
    pub balance: Balance,
    /// Part of each layer's tokens that crosses nodes beyond what whole groups would ([`NodeRule`]), 0..1, `[L]`; 0 where
    /// there is one node.
    ///
    /// [`NodeRule`]: crate::NodeRule
    pub crossing: Vec<f64>,
}

impl Prediction {
    /// Sum of the worst ranks' times over the layers: the time that the mixture layers take.
    pub fn total(&self) -> f64 {
        self.worst.iter().sum()
    }

    /// Mean crossing of the layers that are not idle; 0 if all are.
    pub fn mean_crossing(&self) -> f64 {
        let busy = self.balance.per_layer.iter().filter(|layer| layer.is_some()).count();
        if busy == 0 { 0.0 } else { self.crossing.iter().sum::<f64>() / busy as f64 }
    }

    /// Predicts for a placement; `share` is the split that `Dispatch::Share` uses.
    pub(crate) fn new(
        request: &Request<'_>,
        placement: &Placement,
        share: &Share,
        workers: &Workers,
    ) -> Self {
        let layers = request.loads.layers();
        let each = workers.map_layers(layers, |layer, _| {
            let id = LayerId::at(layer);
            let row = request.layer_loads(layer);
            let phy2log: Vec<i32> = placement.layer(id).to_vec();
            let groups = Groups::new(request, row.len());
            let slots = Slots { row, phy2log: &phy2log, topology: request.topology };
            let part = slots.parts(request.options.dispatch, || share.layer(id).to_vec());
            let times = slots.times(&part, request.options.cost);
            (times, slots.crossing(&part, groups, request.options.dispatch))
        });
        let live = request.topology.live_ranks().count() as f64;
        let worst: Vec<f64> =
            each.iter().map(|(times, _)| times.iter().copied().fold(0.0, f64::max)).collect();
        let mean: Vec<f64> = each.iter().map(|(times, _)| times.iter().sum::<f64>() / live).collect();
        let balance =
            worst.iter().zip(&mean).map(|(&worst, mean)| (worst > 0.0).then(|| (mean / worst).min(1.0)));
        Self {
            balance: Balance::over_layers(balance.collect()),
            worst,
            mean,
            crossing: each.into_iter().map(|(_, crossing)| crossing).collect(),
        }
    }
}

/// Groups of experts, and the part of the live ranks on each node.
struct Groups {
    size: usize,
    source: Vec<f64>,
}

impl Groups {
    fn new(request: &Request<'_>, experts: usize) -> Self {
        let (topology, groups) = (request.topology, request.options.groups);
        let mut source = vec![0.0; topology.nodes()];
        let live = topology.live_ranks().count() as f64;
        topology.live_ranks().for_each(|rank| source[topology.node_of(rank).index()] += 1.0 / live);
        // Groups that do not divide the experts are no groups of a router; the last one is smaller then.
        Self { size: experts.div_ceil(groups), source }
    }
}

/// One layer's slots and what they hold.
struct Slots<'a> {
    row: &'a [f64],
    phy2log: &'a [i32],
    topology: &'a Topology,
}

impl Slots<'_> {
    /// Rank and expert of every slot of a live rank that holds one.
    fn held(&self) -> impl Iterator<Item = (usize, RankId, usize)> + '_ {
        let ranks = self.topology.live_ranks();
        let slots = ranks.flat_map(|rank| self.topology.slots_of(rank).map(move |slot| (slot, rank)));
        slots.filter_map(|(slot, rank)| Some((slot, rank, usize::try_from(self.phy2log[slot]).ok()?)))
    }

    /// Part of its expert's tokens that every slot gets, `[P]`.
    fn parts(&self, dispatch: Dispatch, share: impl Fn() -> Vec<f64>) -> Vec<f64> {
        let mut count = vec![0u32; self.row.len()];
        self.held().for_each(|(_, _, expert)| count[expert] += 1);
        match dispatch {
            Dispatch::Share => share(),
            Dispatch::Even => {
                let mut part = vec![0.0; self.phy2log.len()];
                self.held().for_each(|(slot, _, expert)| part[slot] = 1.0 / f64::from(count[expert]));
                part
            }
            Dispatch::Nearest => self.nearest(&count),
        }
    }

    /// Every live rank sends as many tokens: to its own replicas, else to those of its node, else to all.
    fn nearest(&self, count: &[u32]) -> Vec<f64> {
        let topology = self.topology;
        let nodes = topology.nodes();
        let live = topology.live_ranks().count() as f64;
        // Replicas of each expert on each rank and node.
        let mut on_rank = vec![0u32; self.row.len() * topology.ranks()];
        let mut on_node = vec![0u32; self.row.len() * nodes];
        for (_, rank, expert) in self.held() {
            on_rank[expert * topology.ranks() + rank.index()] += 1;
            on_node[expert * nodes + topology.node_of(rank).index()] += 1;
        }
        let mut part = vec![0.0; self.phy2log.len()];
        for (slot, rank, expert) in self.held() {
            for source in topology.live_ranks() {
                let node = topology.node_of(source);
                let own = on_rank[expert * topology.ranks() + source.index()];
                let beside = on_node[expert * nodes + node.index()];
                let (near, among) = match (own, beside) {
                    (0, 0) => (true, count[expert]),
                    (0, _) => (topology.node_of(rank) == node, beside),
                    _ => (rank == source, own),
                };
                if near {
                    part[slot] += 1.0 / live / f64::from(among);
                }
            }
        }
        part
    }

    /// Time of every live rank.
    fn times(&self, part: &[f64], cost: CostModel) -> Vec<f64> {
        let mut times = vec![(0.0, 0.0); self.topology.ranks()];
        for (slot, rank, expert) in self.held() {
            let tokens = self.row[expert] * part[slot];
            let (active, sum) = &mut times[rank.index()];
            *active += f64::from(u8::from(tokens > 0.0));
            *sum += tokens;
        }
        let time = |rank: RankId| {
            let (active, tokens) = times[rank.index()];
            cost.time(active, tokens) / self.topology.speed(rank)
        };
        self.topology.live_ranks().map(time).collect()
    }

    /// Part of the tokens that nodes other than the home of their group serve for other nodes.
    fn crossing(&self, part: &[f64], groups: Groups, dispatch: Dispatch) -> f64 {
        let (topology, total) = (self.topology, self.row.iter().sum::<f64>());
        let nodes = topology.nodes();
        if nodes == 1 || total <= 0.0 {
            return 0.0;
        }
        let mut covered = vec![false; self.row.len() * nodes];
        for (_, rank, expert) in self.held() {
            covered[expert * nodes + topology.node_of(rank).index()] = true;
        }
        let mut foreign = vec![0.0; self.row.len().div_ceil(groups.size) * nodes];
        let mut count = vec![0u32; self.row.len()];
        self.held().for_each(|(_, _, expert)| count[expert] += 1);
        for (slot, rank, expert) in self.held() {
            let node = topology.node_of(rank).index();
            // Of what this slot gets, that which comes from other nodes.
            let from_others = if dispatch == Dispatch::Nearest {
                let uncovered = (0..nodes).filter(|&from| !covered[expert * nodes + from]);
                uncovered.map(|from| groups.source[from]).sum::<f64>() / f64::from(count[expert])
            } else {
                part[slot] * (1.0 - groups.source[node])
            };
            foreign[expert / groups.size * nodes + node] += self.row[expert] * from_others;
        }
        let strays = foreign.chunks_exact(nodes).map(|group| {
            let home = group.iter().copied().fold(0.0, f64::max);
            group.iter().sum::<f64>() - home
        });
        (strays.sum::<f64>() / total).max(0.0)
    }
}
