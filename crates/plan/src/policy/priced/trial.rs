//! What a change would be worth.
//!
//! Only what changes is computed: the ranks that gain or lose tokens, and the groups whose tokens cross nodes in another way.
//! Swaps that leave the parts of both experts as they are, which most changes are, concern two ranks and two groups.
//! Where the server splits by `share`, parts depend on the times of ranks, and `resplit` finds them.

use super::facts::{Facts, Layer};
use super::find::Replica;
use super::glance::Glance;
use super::parts::strays;
use super::power::Power;
use super::resplit::Resplit;
use super::state::{MOST_PUTS, NONE, Put, State};
use crate::objective::Dispatch;

/// Two ranks swap what they hold in two places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Swap {
    pub(super) from: usize,
    pub(super) ours: Replica,
    pub(super) to: usize,
    pub(super) theirs: Replica,
}

impl Swap {
    /// The same as puts.
    pub(super) fn puts(self) -> [Put; 2] {
        let Self { ours, theirs, .. } = self;
        [Put { place: ours.place, expert: theirs.expert }, Put { place: theirs.place, expert: ours.expert }]
    }
}

/// Evaluates changes of one layer; owns its memory.
#[derive(Debug, Default)]
pub(super) struct Trial {
    /// Sum of the powers of the ranks' times.
    sum: f64,
    power: Power,
    power_of: Vec<f64>,
    /// What ranks gain.
    gains: Gains,
    /// Tokens of a group that each node would serve for others, for each group that changes, `[nodes]` each.
    groups: Vec<usize>,
    foreign: Vec<f64>,
    /// Replicas of an expert on each node after a change.
    on_node: Vec<u32>,
    glance: Glance,
    resplit: Resplit,
}

/// Tokens and active slots that ranks gain.
#[derive(Debug, Default)]
struct Gains {
    tokens: Vec<f64>,
    active: Vec<i32>,
    /// Change for which the numbers of a rank hold.
    of: Vec<u64>,
    change: u64,
    touched: Vec<usize>,
}

impl Gains {
    fn start(&mut self, ranks: usize) {
        self.tokens.resize(ranks, 0.0);
        self.active.resize(ranks, 0);
        self.of.resize(ranks, 0);
    }

    fn next(&mut self) {
        self.change += 1;
        self.touched.clear();
    }

    #[inline]
    fn add(&mut self, rank: usize, tokens: f64, active: i32) {
        if self.of[rank] != self.change {
            self.of[rank] = self.change;
            (self.tokens[rank], self.active[rank]) = (0.0, 0);
            self.touched.push(rank);
        }
        self.tokens[rank] += tokens;
        self.active[rank] += active;
    }
}

impl Trial {
    /// Gets ready for changes of this state, weighed with this power.
    pub(super) fn start(&mut self, facts: &Facts, layer: &Layer, state: &State, power: Power) {
        self.power = power;
        self.again(facts, layer, state);
    }

    /// The same after the state has changed.
    pub(super) fn again(&mut self, facts: &Facts, layer: &Layer, state: &State) {
        let power = self.power;
        let ranks = facts.ranks.len();
        self.power_of.clear();
        self.power_of.extend((0..ranks).map(|rank| power.of(state.time(facts, layer, rank))));
        self.sum = self.power_of.iter().sum();
        self.gains.start(ranks);
        self.glance.start(facts);
        self.resplit.start(ranks);
    }

    /// Whether a replica of `expert` in `place`, instead of what is there, could make the layer worth less than `limit`. What
    /// is no becomes yes only where ranks are both relieved and burdened by it.
    pub(super) fn may_replace(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &State,
        put: Put,
        limit: f64,
    ) -> bool {
        if facts.dispatch != Dispatch::Even {
            return true;
        }
        let (place, old) = (put.place, state.expert[put.place as usize]);
        let rank = facts.rank_of(place);
        let powers = (self.power, &self.power_of[..]);
        let weight = layer.weight[put.expert as usize];
        let comes = weight / f64::from(state.count[put.expert as usize] + 1);
        let mut sum = self.sum + self.glance.copied(facts, layer, state, powers, put.expert);
        let (mut goes, mut active) = (0.0, state.active[rank] + u32::from(weight > 0.0));
        if old != NONE {
            let weight = layer.weight[old as usize];
            goes = weight * state.part[place as usize];
            active -= u32::from(weight > 0.0);
            sum += self.glance.given_up(facts, layer, state, powers, place);
        }
        let time = layer.time(facts, rank, active, state.tokens[rank] + comes - goes);
        sum += self.power.of(time) - self.power_of[rank];
        self.is_below(facts, state, sum, comes + goes, limit)
    }

    /// Whether a layer with this sum of powers is worth less than `limit` if all of `tokens` came home by the change.
    fn is_below(&self, facts: &Facts, state: &State, sum: f64, tokens: f64, limit: f64) -> bool {
        let left = limit - facts.price() * (state.crossing - tokens).max(0.0);
        left > 0.0 && sum < self.power.of(left)
    }

    /// What the state is worth now: the power mean of the times and the price of the crossing.
    pub(super) fn now(&self, facts: &Facts, state: &State) -> f64 {
        self.power.root(self.sum) + facts.price() * state.crossing
    }

    /// What it would be worth after a change, if that is less than `limit`. The puts concern different places; what they put
    /// is not on the rank yet.
    pub(super) fn after(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        puts: &[Put],
        limit: f64,
    ) -> Option<f64> {
        debug_assert!(puts.len() <= MOST_PUTS);
        if facts.splitter.is_some() {
            let Self { resplit, sum, power_of, power, .. } = self;
            return resplit.after(facts, layer, state, puts, *power, (*sum, power_of), limit);
        }
        let (sum, more) = self.after_spread(facts, layer, state, puts, limit)?;
        self.worth(facts, state, (sum, more), limit)
    }

    /// The same for a swap.
    pub(super) fn after_swap(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        swap: Swap,
        limit: f64,
    ) -> Option<f64> {
        let Swap { from, ours, to, theirs } = swap;
        let nodes = (facts.node[from] as usize, facts.node[to] as usize);
        // The only replica gets all tokens wherever it is.
        let only = |replica: Replica| replica.expert == NONE || !replica.spare;
        let fixed = facts.dispatch == Dispatch::Even || nodes.0 == nodes.1 || (only(ours) && only(theirs));
        if facts.splitter.is_some() || !fixed {
            return self.after(facts, layer, state, &swap.puts(), limit);
        }
        // No replica's part changes.
        let more = i32::from(theirs.size > 0.0) - i32::from(ours.size > 0.0);
        let time = |rank: usize, active: i32, tokens: f64| {
            let active = state.active[rank].saturating_add_signed(active);
            layer.time(facts, rank, active, state.tokens[rank] + tokens)
        };
        let (out, back) = (ours.size, theirs.size);
        let (here, there) = (time(from, more, back - out), time(to, -more, out - back));
        if there >= limit || here >= limit {
            return None;
        }
        let sum = self.sum
            + (self.power.of(here) - self.power_of[from])
            + (self.power.of(there) - self.power_of[to]);
        if facts.price() == 0.0 || nodes.0 == nodes.1 {
            return self.worth(facts, state, (sum, 0.0), limit);
        }
        if !self.is_below(facts, state, sum, out + back, limit) {
            return None;
        }
        let more = swapped_strays(facts, state, nodes, (ours.expert, out), (theirs.expert, back));
        self.worth(facts, state, (sum, more), limit)
    }

    /// What a layer is worth with this sum of powers and so much more crossing, if less than `limit`.
    fn worth(&self, facts: &Facts, state: &State, (sum, more): (f64, f64), limit: f64) -> Option<f64> {
        // Powers are cheaper than roots: what is not below the limit is mostly seen before.
        let left = limit - facts.price() * (state.crossing + more);
        if left <= 0.0 || sum >= self.power.of(left) {
            return None;
        }
        let worth = self.power.root(sum) + facts.price() * (state.crossing + more);
        (worth < limit).then_some(worth)
    }

    /// Sum of the powers and additional crossing after a change, where parts follow from how many replicas there are, and
    /// on which nodes.
    fn after_spread(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &State,
        puts: &[Put],
        limit: f64,
    ) -> Option<(f64, f64)> {
        self.gains.next();
        self.groups.clear();
        self.foreign.clear();
        let mut experts = [NONE; 2 * MOST_PUTS];
        for (at, put) in puts.iter().enumerate() {
            for (i, expert) in [state.expert[put.place as usize], put.expert].into_iter().enumerate() {
                if expert != NONE && !experts.contains(&expert) {
                    experts[2 * at + i] = expert;
                    self.spread(facts, layer, state, puts, expert);
                }
            }
        }
        let mut sum = self.sum;
        for &rank in &self.gains.touched {
            let active = state.active[rank].saturating_add_signed(self.gains.active[rank]);
            let time = layer.time(facts, rank, active, state.tokens[rank] + self.gains.tokens[rank]);
            if time >= limit {
                return None;
            }
            sum += self.power.of(time) - self.power_of[rank];
        }
        let after = self.foreign.chunks_exact(facts.nodes).zip(&self.groups);
        let more = after.map(|(foreign, &group)| strays(foreign) - state.strays(group)).sum();
        Some((sum, more))
    }

    /// What one of the experts of a change does to the ranks and to its group.
    fn spread(&mut self, facts: &Facts, layer: &Layer, state: &State, puts: &[Put], expert: u32) {
        let weight = layer.weight[expert as usize];
        let goes = |place: u32| puts.iter().any(|put| put.place == place);
        let holders = state.holders(facts, expert);
        let mut count = holders.len() as u32;
        let nearest = facts.dispatch == Dispatch::Nearest;
        let node_of = |place: u32| facts.node[facts.rank_of(place)] as usize;
        if nearest {
            self.on_node.clear();
            self.on_node.resize(facts.nodes, 0);
            holders.iter().for_each(|&place| self.on_node[node_of(place)] += 1);
        }
        let mut uncovered_before = 0.0;
        if nearest && facts.price() > 0.0 {
            uncovered_before = uncovered(facts, &self.on_node) / f64::from(count);
        }
        let foreign = (facts.price() > 0.0).then(|| self.group(facts, state, facts.group_of(expert)));
        if let (Some(at), true) = (foreign, nearest) {
            for (foreign, &own) in self.foreign[at..].iter_mut().zip(&self.on_node) {
                *foreign -= weight * uncovered_before * f64::from(own);
            }
        }
        for put in puts {
            let (out, comes) = (state.expert[put.place as usize] == expert, put.expert == expert);
            let more = i32::from(comes) - i32::from(out);
            count = count.saturating_add_signed(more);
            if nearest {
                let own = &mut self.on_node[node_of(put.place)];
                *own = own.saturating_add_signed(more);
            }
        }
        let count = f64::from(count);
        let far = if nearest { uncovered(facts, &self.on_node) / count } else { 0.0 };
        let ranks = facts.ranks.len() as f64;
        let on_node = &self.on_node;
        let part = |place: u32| {
            if !nearest {
                return 1.0 / count;
            }
            let node = node_of(place);
            let (own, beside) = (f64::from(on_node[node]), facts.of_node[node].len() as f64);
            1.0 / ranks + (beside - own) / ranks / own + far
        };
        let active = i32::from(weight > 0.0);
        let kept = holders.iter().map(|&place| {
            let old = state.part[place as usize];
            if goes(place) { (place, -old, -active) } else { (place, part(place) - old, 0) }
        });
        let put =
            puts.iter().filter(|put| put.expert == expert).map(|put| (put.place, part(put.place), active));
        for (place, part, active) in kept.chain(put) {
            let tokens = weight * part;
            self.gains.add(facts.rank_of(place), tokens, active);
            if let (Some(at), false) = (foreign, nearest) {
                let node = node_of(place);
                self.foreign[at + node] += tokens * (1.0 - facts.source[node]);
            }
        }
        if let (Some(at), true) = (foreign, nearest) {
            for (foreign, &own) in self.foreign[at..].iter_mut().zip(&self.on_node) {
                *foreign += weight * far * f64::from(own);
            }
        }
    }

    /// Where a group's tokens for other nodes begin in `foreign`; those of now if it is new there.
    fn group(&mut self, facts: &Facts, state: &State, group: usize) -> usize {
        let at = self.groups.iter().position(|&known| known == group).unwrap_or_else(|| {
            self.groups.push(group);
            self.foreign.extend_from_slice(state.foreign(facts, group));
            self.groups.len() - 1
        });
        at * facts.nodes
    }
}

/// Part of the tokens that come from nodes without a replica.
fn uncovered(facts: &Facts, on_node: &[u32]) -> f64 {
    on_node.iter().zip(&facts.source).filter(|(own, _)| **own == 0).map(|(_, source)| source).sum()
}

/// More strays when `out` tokens of one expert go from the first node to the second and `back` of another return.
fn swapped_strays(
    facts: &Facts,
    state: &State,
    (from, to): (usize, usize),
    (one, out): (u32, f64),
    (other, back): (u32, f64),
) -> f64 {
    let (here, there) = (1.0 - facts.source[from], 1.0 - facts.source[to]);
    let group = |expert: u32| (expert != NONE).then(|| facts.group_of(expert));
    let more = |group: usize, tokens: f64| {
        let mut most = 0.0f64;
        let mut sum = 0.0;
        for (node, &now) in state.foreign(facts, group).iter().enumerate() {
            let after = match node {
                _ if node == from => now - tokens * here,
                _ if node == to => now + tokens * there,
                _ => now,
            };
            sum += after;
            most = most.max(after);
        }
        (sum - most).max(0.0) - state.strays(group)
    };
    match (group(one), group(other)) {
        (Some(a), Some(b)) if a == b => more(a, out - back),
        (a, b) => a.map_or(0.0, |a| more(a, out)) + b.map_or(0.0, |b| more(b, -back)),
    }
}
