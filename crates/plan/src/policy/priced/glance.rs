//! A first look at changes of replicas, so that few are evaluated: what giving up a replica costs the ranks with the others,
//! and what another replica saves those that hold one, at even split. Both are the same whichever change they are a
//! part of, and computed once.

use super::facts::{Facts, Layer};
use super::power::Power;
use super::state::State;

/// Differences of sums of powers, computed when first asked for.
#[derive(Debug, Default)]
pub(super) struct Glance {
    /// State for which numbers hold.
    state: u64,
    /// For each place, and for each expert.
    given_up: Vec<(u64, f64)>,
    copied: Vec<(u64, f64)>,
}

impl Glance {
    /// Forgets all numbers.
    pub(super) fn start(&mut self, facts: &Facts) {
        self.state += 1;
        self.given_up.resize(facts.ranks.len() * facts.stride, (0, 0.0));
        self.copied.resize(facts.experts, (0, 0.0));
    }

    #[inline]
    /// What the other ranks have more of if a replica is given up that is not the only one.
    pub(super) fn given_up(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &State,
        (power, power_of): (Power, &[f64]),
        place: u32,
    ) -> f64 {
        let known = self.given_up[place as usize];
        if known.0 == self.state {
            return known.1;
        }
        let expert = state.expert[place as usize];
        let others = state.holders(facts, expert).iter().filter(|&&other| other != place);
        let count = f64::from(state.count[expert as usize]);
        let more = layer.weight[expert as usize] * (1.0 / (count - 1.0) - 1.0 / count);
        let cost = others.map(|&other| gain(facts, layer, state, (power, power_of), other, more)).sum();
        self.given_up[place as usize] = (self.state, cost);
        cost
    }

    /// What the ranks that hold an expert have more of (less than 0) with one more replica elsewhere.
    pub(super) fn copied(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &State,
        (power, power_of): (Power, &[f64]),
        expert: u32,
    ) -> f64 {
        let known = self.copied[expert as usize];
        if known.0 == self.state {
            return known.1;
        }
        let count = f64::from(state.count[expert as usize]);
        let more = layer.weight[expert as usize] * (1.0 / (count + 1.0) - 1.0 / count);
        let holders = state.holders(facts, expert).iter();
        let cost = holders.map(|&holder| gain(facts, layer, state, (power, power_of), holder, more)).sum();
        self.copied[expert as usize] = (self.state, cost);
        cost
    }
}

/// How much larger the power of a rank's time is with `more` tokens.
fn gain(
    facts: &Facts,
    layer: &Layer,
    state: &State,
    (power, power_of): (Power, &[f64]),
    place: u32,
    more: f64,
) -> f64 {
    let rank = facts.rank_of(place);
    power.of(layer.time(facts, rank, state.active[rank], state.tokens[rank] + more)) - power_of[rank]
}
