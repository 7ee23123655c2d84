//! Which part of an expert's tokens each of its replicas gets, and which of these cross nodes.

use super::facts::{Facts, Layer};
use crate::objective::Dispatch;

/// Memory for one expert.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Replicas on each node, `[nodes]`.
    on_node: Vec<u32>,
    /// Replicas by the time of their rank without the expert.
    order: Vec<(f64, u32)>,
}

impl Parts {
    /// Writes the parts of the replicas of an expert with `weight`, on the ranks of `places` (ascending, none twice), to `parts`.
    /// `before` tells the time of each of these ranks without the expert's tokens; only `Dispatch::Share` asks: the
    /// busiest of the ranks gets as little to do as this expert alone can bring about.
    pub(super) fn find(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        weight: f64,
        places: &[u32],
        before: impl Fn(usize) -> f64,
        parts: &mut Vec<f64>,
    ) {
        let count = places.len() as f64;
        match facts.dispatch {
            Dispatch::Nearest => {
                self.count(facts, places);
                let ranks = facts.ranks.len() as f64;
                let uncovered = self.uncovered(facts);
                parts.extend(places.iter().map(|&place| {
                    let node = facts.node[facts.rank_of(place)] as usize;
                    let (own, beside) = (f64::from(self.on_node[node]), facts.of_node[node].len() as f64);
                    1.0 / ranks + (beside - own) / ranks / own + uncovered / count
                }));
            }
            Dispatch::Share if weight > 0.0 && layer.per_all > 0.0 && places.len() > 1 => {
                self.fill(facts, layer, weight, places, before, parts);
            }
            _ => parts.extend(places.iter().map(|_| 1.0 / count)),
        }
    }

    /// Water filling: ranks that get tokens end at one time, no later than the others.
    fn fill(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        weight: f64,
        places: &[u32],
        before: impl Fn(usize) -> f64,
        parts: &mut Vec<f64>,
    ) {
        let Self { order, .. } = self;
        order.clear();
        order.extend(places.iter().zip(0..).map(|(&place, at)| (before(facts.rank_of(place)), at)));
        order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let speed =
            |at: u32| 1.0 / (facts.ranks.slowness[facts.rank_of(places[at as usize])] * layer.per_all);
        let (mut width, mut volume, mut level) = (0.0, weight, f64::INFINITY);
        for &(time, at) in order.iter() {
            if time >= level {
                break;
            }
            width += speed(at);
            volume += time * speed(at);
            level = volume / width;
        }
        let start = parts.len();
        parts.resize(start + places.len(), 0.0);
        for &(time, at) in order.iter() {
            parts[start + at as usize] = ((level - time) * speed(at) / weight).max(0.0);
        }
    }

    fn count(&mut self, facts: &Facts, places: &[u32]) {
        self.on_node.clear();
        self.on_node.resize(facts.nodes, 0);
        for &place in places {
            self.on_node[facts.node[facts.rank_of(place)] as usize] += 1;
        }
    }

    /// Part of the tokens that come from nodes without a replica.
    fn uncovered(&self, facts: &Facts) -> f64 {
        self.on_node
            .iter()
            .zip(&facts.source)
            .filter(|(count, _)| **count == 0)
            .map(|(_, source)| source)
            .sum()
    }

    /// Adds `sign` times the tokens that each node serves for other nodes, of an expert with `weight` and these
    /// replicas, to `foreign`, `[nodes]`.
    pub(super) fn add_foreign(
        &mut self,
        facts: &Facts,
        weight: f64,
        places: &[u32],
        parts: impl Fn(usize) -> f64,
        sign: f64,
        foreign: &mut [f64],
    ) {
        if facts.dispatch == Dispatch::Nearest {
            self.count(facts, places);
            let each = sign * weight * self.uncovered(facts) / places.len() as f64;
            for (foreign, &count) in foreign.iter_mut().zip(&self.on_node) {
                *foreign += each * f64::from(count);
            }
            return;
        }
        for (at, &place) in places.iter().enumerate() {
            let node = facts.node[facts.rank_of(place)] as usize;
            foreign[node] += sign * weight * parts(at) * (1.0 - facts.source[node]);
        }
    }
}

/// Strays of a group: what other nodes than its home serve for others.
pub(super) fn strays(foreign: &[f64]) -> f64 {
    let most = foreign.iter().copied().fold(0.0, f64::max);
    (foreign.iter().sum::<f64>() - most).max(0.0)
}
