//! What a change would be worth where the server splits tokens by `share`: the experts that change come last, and level
//! the times of their ranks as far as they alone can.

use super::facts::{Facts, Layer};
use super::parts::strays;
use super::power::Power;
use super::state::{NONE, Put, State};

/// Evaluates changes of one layer; owns its memory.
#[derive(Debug, Default)]
pub(super) struct Resplit {
    /// Tokens and active slots that ranks gain, and which ranks.
    tokens: Vec<f64>,
    active: Vec<i32>,
    touched: Vec<usize>,
    /// Experts whose replicas change; their places after the change, those of `experts[i]` from `start[i]` to
    /// `start[i + 1]`, and the parts of these.
    experts: Vec<u32>,
    start: Vec<usize>,
    places: Vec<u32>,
    part: Vec<f64>,
    /// Tokens of a group that each node would serve for others.
    foreign: Vec<f64>,
}

impl Resplit {
    /// Gets ready for changes.
    pub(super) fn start(&mut self, ranks: usize) {
        self.tokens.clear();
        self.tokens.resize(ranks, 0.0);
        self.active.clear();
        self.active.resize(ranks, 0);
        self.touched.clear();
    }

    /// What the layer would be worth after a change, if that is less than `limit`; `now` are the sum of the powers of
    /// the ranks' times and the powers.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn after(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        puts: &[Put],
        power: Power,
        now: (f64, &[f64]),
        limit: f64,
    ) -> Option<f64> {
        self.find(facts, layer, state, puts);
        let sum = self.sum_below(facts, layer, state, power, now, power.of(limit));
        for rank in self.touched.drain(..) {
            self.tokens[rank] = 0.0;
            self.active[rank] = 0;
        }
        let mut worth = power.root(sum?);
        if facts.price() > 0.0 {
            worth += facts.price() * (state.crossing + self.more_strays(facts, layer, state));
        }
        (worth < limit).then_some(worth)
    }

    /// Sum of the powers after the change; `None` if it is not below `most`, as soon as one rank shows that.
    fn sum_below(
        &self,
        facts: &Facts,
        layer: &Layer,
        state: &State,
        power: Power,
        (mut sum, power_of): (f64, &[f64]),
        most: f64,
    ) -> Option<f64> {
        for &rank in &self.touched {
            let active = state.active[rank].saturating_add_signed(self.active[rank]);
            let time = layer.time(facts, rank, active, state.tokens[rank] + self.tokens[rank]);
            let new = power.of(time);
            if new >= most {
                return None;
            }
            sum += new - power_of[rank];
        }
        (sum < most).then_some(sum)
    }

    /// Finds the experts whose replicas change, their parts after it, and what ranks gain.
    fn find(&mut self, facts: &Facts, layer: &Layer, state: &mut State, puts: &[Put]) {
        self.experts.clear();
        for expert in puts.iter().flat_map(|put| [state.expert[put.place as usize], put.expert]) {
            if expert != NONE && !self.experts.contains(&expert) {
                self.experts.push(expert);
            }
        }
        self.start.clear();
        self.places.clear();
        self.part.clear();
        // All of their tokens off, so that each is then split as if it came last.
        for i in 0..self.experts.len() {
            let expert = self.experts[i];
            let weight = layer.weight[expert as usize];
            for &place in state.holders(facts, expert) {
                let rank = facts.rank_of(place);
                touch(&mut self.touched, rank);
                self.tokens[rank] -= weight * state.part[place as usize];
            }
            self.start.push(self.places.len());
            let from = self.places.len();
            let stays = |place: &&u32| puts.iter().all(|put| put.place != **place);
            self.places.extend(state.holders(facts, expert).iter().filter(stays));
            self.places.extend(puts.iter().filter(|put| put.expert == expert).map(|put| put.place));
            self.places[from..].sort_unstable();
            if weight > 0.0 {
                for put in puts {
                    let rank = facts.rank_of(put.place);
                    touch(&mut self.touched, rank);
                    self.active[rank] += i32::from(put.expert == expert)
                        - i32::from(state.expert[put.place as usize] == expert);
                }
            }
        }
        self.start.push(self.places.len());
        let mut parts = std::mem::take(&mut state.parts);
        for (i, &expert) in self.experts.iter().enumerate() {
            let weight = layer.weight[expert as usize];
            let places = &self.places[self.start[i]..self.start[i + 1]];
            let (tokens, active) = (&self.tokens, &self.active);
            let before = |rank: usize| {
                let active = state.active[rank].saturating_add_signed(active[rank]);
                layer.time(facts, rank, active, state.tokens[rank] + tokens[rank])
            };
            parts.find(facts, layer, weight, places, before, &mut self.part);
            for (&place, &part) in places.iter().zip(&self.part[self.start[i]..]) {
                let rank = facts.rank_of(place);
                touch(&mut self.touched, rank);
                self.tokens[rank] += weight * part;
            }
        }
        state.parts = parts;
    }

    /// How much more of the layer's tokens would cross nodes.
    fn more_strays(&mut self, facts: &Facts, layer: &Layer, state: &mut State) -> f64 {
        let mut more = 0.0;
        for i in 0..self.experts.len() {
            let group = facts.group_of(self.experts[i]);
            if self.experts[..i].iter().any(|&expert| facts.group_of(expert) == group) {
                continue;
            }
            self.foreign.clear();
            self.foreign.extend_from_slice(state.foreign(facts, group));
            more -= strays(&self.foreign);
            let mut parts = std::mem::take(&mut state.parts);
            for (j, &expert) in self.experts.iter().enumerate().skip(i) {
                if facts.group_of(expert) != group {
                    continue;
                }
                let weight = layer.weight[expert as usize];
                let old = state.holders(facts, expert);
                parts.add_foreign(
                    facts,
                    weight,
                    old,
                    |at| state.part[old[at] as usize],
                    -1.0,
                    &mut self.foreign,
                );
                let (start, end) = (self.start[j], self.start[j + 1]);
                let new = &self.places[start..end];
                parts.add_foreign(facts, weight, new, |at| self.part[start + at], 1.0, &mut self.foreign);
            }
            state.parts = parts;
            more += strays(&self.foreign);
        }
        more
    }
}

fn touch(touched: &mut Vec<usize>, rank: usize) {
    if !touched.contains(&rank) {
        touched.push(rank);
    }
}
