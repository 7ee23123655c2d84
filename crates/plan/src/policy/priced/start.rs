//! Where the search begins: experts are given to nodes, and each node's are planned as `balanced` does.

use super::facts::{Facts, Layer};
use super::power::raise;
use super::state::{NONE, State};
use super::strict::Arrange;
use crate::layer::{Ranks, whole_units};
use crate::objective::NodeRule;
use crate::policy::balanced::Sets;

/// Doublings of the powers for the loads of nodes: 8, then 64.
const DOUBLINGS: [u32; 2] = [3, 6];

/// A change between nodes must gain this part of what is reached.
const LEAST_GAIN: f64 = 1e-6;

/// Memory for one layer.
#[derive(Debug, Default)]
pub(super) struct Start {
    arrange: Arrange,
    group_load: Vec<f64>,
    /// Node of each group: its home.
    home: Vec<u32>,
    /// Node of each expert.
    pub(super) node_of: Vec<u32>,
    speed: Vec<f64>,
    load: Vec<f64>,
    filled: Vec<usize>,
    experts: Vec<u32>,
    weight: Vec<f64>,
    units: Vec<f64>,
}

/// A change between nodes: an expert, its old and new node, and one that comes in return.
#[derive(Debug, Clone, Copy)]
struct Moved {
    worth: f64,
    expert: usize,
    from: usize,
    to: usize,
    back: Option<usize>,
}

impl Start {
    /// Fills the state; `rule` says what to think of nodes. Under the strict one the layer learns the homes of its groups.
    /// No expert but the hottest that are everywhere gets more than `limit` replicas.
    pub(super) fn fresh(
        &mut self,
        facts: &Facts,
        rule: NodeRule,
        limit: usize,
        layer: &mut Layer,
        sets: &mut Sets,
        state: &mut State,
    ) {
        self.give_out(facts, rule, layer);
        state.clear(facts);
        let hottest = &layer.hottest_first()[..facts.top];
        for rank in 0..facts.ranks.len() {
            let start = rank * facts.stride;
            state.expert[start..start + facts.top].copy_from_slice(hottest);
        }
        let parts = if rule == NodeRule::Free { 1 } else { facts.nodes };
        for node in 0..parts {
            self.experts.clear();
            let here = |expert: &u32| {
                !layer.pinned[*expert as usize] && self.node_of[*expert as usize] == node as u32
            };
            self.experts.extend((0..facts.experts as u32).filter(here));
            let all: Vec<usize> = (0..facts.ranks.len()).collect();
            let own = if parts == 1 { &all } else { &facts.of_node[node] };
            if self.experts.is_empty() || own.is_empty() {
                continue;
            }
            self.weight.clear();
            self.weight.extend(self.experts.iter().map(|&expert| layer.weight[expert as usize]));
            whole_units(&self.weight, &mut self.units);
            let ranks = part_of(&facts.ranks, own, facts.top, self.experts.len());
            sets.plan(&self.units, &ranks, limit);
            for (at, &rank) in own.iter().enumerate() {
                let places = &mut state.expert[rank * facts.stride + facts.top..];
                for (place, expert) in places.iter_mut().zip(sets.of(at)) {
                    *place = self.experts[expert as usize];
                }
            }
        }
        if rule == NodeRule::Strict && facts.nodes > 1 {
            layer.home.copy_from_slice(&self.home);
        }
        state.settle(facts, layer);
    }

    /// Chooses the node of each expert.
    fn give_out(&mut self, facts: &Facts, rule: NodeRule, layer: &Layer) {
        self.node_of.clear();
        self.node_of.resize(facts.experts, 0);
        if rule == NodeRule::Free || facts.nodes == 1 {
            return;
        }
        self.give_groups(facts, layer);
        if rule != NodeRule::Strict {
            for doublings in DOUBLINGS {
                while self.change(facts, layer, doublings) {}
            }
        }
    }

    /// Speeds of nodes, and loads of groups without the experts that are everywhere.
    pub(super) fn weigh_groups(&mut self, facts: &Facts, layer: &Layer) -> (&[f64], &[f64]) {
        let of_ranks = |ranks: &Vec<usize>| ranks.iter().map(|&rank| 1.0 / facts.ranks.slowness[rank]).sum();
        self.speed.clear();
        self.speed.extend(facts.of_node.iter().map(of_ranks).map(|speed: f64| speed / facts.ranks.speed));
        self.group_load.clear();
        self.group_load.resize(facts.groups, 0.0);
        for (expert, &weight) in layer.weight.iter().enumerate().filter(|(e, _)| !layer.pinned[*e]) {
            self.group_load[expert / facts.group_size] += weight;
        }
        (&self.group_load, &self.speed)
    }

    /// Gives whole groups to nodes: equally many where they divide, else while they fit.
    fn give_groups(&mut self, facts: &Facts, layer: &Layer) {
        self.weigh_groups(facts, layer);
        let Self { arrange, group_load, home, node_of, speed, load, filled, .. } = self;
        let room = |node: usize| facts.room_of(node) - facts.top * facts.of_node[node].len();
        load.clear();
        load.resize(facts.nodes, 0.0);
        filled.clear();
        filled.resize(facts.nodes, 0);
        let fits = (0..facts.nodes).all(|n| room(n) >= facts.experts / facts.nodes && speed[n] > 0.0);
        if facts.groups.is_multiple_of(facts.nodes) && fits {
            arrange.run(group_load, speed, home);
        } else {
            home.clear();
            home.resize(facts.groups, NONE);
        }
        // Expert by expert, so that a group that fits nowhere as a whole still finds places.
        for group in 0..facts.groups {
            let experts = group * facts.group_size..(group + 1) * facts.group_size;
            let lightest = |need: usize, load: &[f64], filled: &[usize]| {
                (0..facts.nodes)
                    .filter(|&node| speed[node] > 0.0 && room(node) >= filled[node] + need)
                    .min_by(|&a, &b| (load[a] / speed[a]).total_cmp(&(load[b] / speed[b])).then(a.cmp(&b)))
            };
            let whole = match home[group] {
                NONE => lightest(experts.len(), load, filled),
                node => Some(node as usize),
            };
            for expert in experts.filter(|&expert| !layer.pinned[expert]) {
                // Live slots suffice for all experts, or some are left out anyway.
                let node = whole.or_else(|| lightest(1, load, filled)).unwrap_or(0);
                node_of[expert] = node as u32;
                load[node] += layer.weight[expert];
                filled[node] += 1;
            }
            if home[group] == NONE {
                home[group] = whole.unwrap_or(0) as u32;
            }
        }
    }

    /// Makes the best change of one expert's node, or of two; false if none gains.
    fn change(&mut self, facts: &Facts, layer: &Layer, doublings: u32) -> bool {
        let Some(Moved { expert, from, to, back, .. }) = self.best_change(facts, layer, doublings) else {
            return false;
        };
        for (expert, from, to) in [(Some(expert), from, to), (back, to, from)] {
            let Some(expert) = expert else { continue };
            self.node_of[expert] = to as u32;
            self.load[from] -= layer.weight[expert];
            self.load[to] += layer.weight[expert];
            self.filled[from] -= 1;
            self.filled[to] += 1;
        }
        true
    }

    /// The best way for an expert off the node with most to do.
    fn best_change(&self, facts: &Facts, layer: &Layer, doublings: u32) -> Option<Moved> {
        let price = facts.price();
        let power = |load: f64, node: usize| {
            let level = if self.speed[node] > 0.0 { load / self.speed[node] } else { 0.0 };
            // Levels are multiples of the mean; a 64th of the largest they could be keeps powers finite.
            raise(level / 64.0, doublings)
        };
        let root = |sum: f64| (0..doublings).fold(sum.max(0.0), |root, _| root.sqrt()) * 64.0;
        let level = |node: usize| self.load[node] / self.speed[node].max(f64::MIN_POSITIVE);
        let from = (0..facts.nodes).rev().max_by(|&a, &b| level(a).total_cmp(&level(b))).unwrap_or(0);
        let sum: f64 = (0..facts.nodes).map(|node| power(self.load[node], node)).sum();
        // What an expert adds to the crossing on a node.
        let stray = |expert: usize, node: usize| {
            let at_home = self.home[expert / facts.group_size] == node as u32;
            if at_home { 0.0 } else { layer.weight[expert] * (1.0 - facts.source[node]) }
        };
        let now = root(sum);
        let mut best = None::<Moved>;
        let on = |node: usize| {
            let here = move |&expert: &usize| self.node_of[expert] == node as u32 && !layer.pinned[expert];
            (0..facts.experts).filter(here)
        };
        for to in (0..facts.nodes).filter(|&to| to != from && self.speed[to] > 0.0) {
            let rest = sum - power(self.load[from], from) - power(self.load[to], to);
            let free = facts.room_of(to) - facts.top * facts.of_node[to].len() > self.filled[to];
            // An expert without a free slot there: in return for the one that weighs least.
            let back =
                if free { None } else { on(to).min_by(|&a, &b| layer.weight[a].total_cmp(&layer.weight[b])) };
            for expert in on(from) {
                let weight = layer.weight[expert];
                let strays = stray(expert, to) - stray(expert, from);
                let worth = |more: f64, strays: f64| {
                    let (a, b) = (self.load[from] - more, self.load[to] + more);
                    root(rest + power(a, from) + power(b, to)) + price * strays
                };
                let found = match back {
                    None if !free => continue,
                    None => worth(weight, strays),
                    Some(b) => worth(weight - layer.weight[b], strays + stray(b, from) - stray(b, to)),
                };
                if found < best.as_ref().map_or(now * (1.0 - LEAST_GAIN), |best| best.worth) {
                    best = Some(Moved { worth: found, expert, from, to, back });
                }
            }
        }
        best
    }

    /// Least load of the fullest node under the strict rule, as a multiple of the mean.
    pub(super) fn strict_bound(&mut self, facts: &Facts, layer: &Layer) -> f64 {
        self.weigh_groups(facts, layer);
        self.arrange.run(&self.group_load, &self.speed, &mut self.home)
    }
}

/// Some of the ranks, with `taken` places less each, for `experts` experts.
fn part_of(ranks: &Ranks, own: &[usize], taken: usize, experts: usize) -> Ranks {
    let slowness: Vec<f64> = own.iter().map(|&rank| ranks.slowness[rank]).collect();
    // `Ranks` counts from its slowest.
    let slowest = slowness.iter().copied().fold(0.0, f64::max);
    let slowness: Vec<f64> = slowness.iter().map(|slowness| slowness / slowest).collect();
    Ranks {
        id: own.iter().map(|&rank| ranks.id[rank]).collect(),
        room: own.iter().map(|&rank| (ranks.room[rank] - taken).min(experts)).collect(),
        speed: slowness.iter().map(|slowness| 1.0 / slowness).sum(),
        slowness,
    }
}
