//! Local search: change after change that makes a layer worth more.

use super::facts::{Facts, Layer};
use super::find::Pairs;
use super::power::Power;
use super::state::{MOST_PUTS, NONE, Put, State};
use super::trial::{Swap, Trial};

/// Powers of the mean that stands for the worst rank, one after the other, as doublings: 32, 512.
const DOUBLINGS: [u32; 2] = [5, 9];

/// A change must gain this part of what the layer is worth, for each of the powers.
const LEAST_GAIN: [f64; 2] = [1e-4, 1e-5];

/// A worst rank this close to what an even spread would take is not improved further if nothing crosses nodes.
const CLOSE: f64 = 2e-4;

/// Memory of the search.
#[derive(Debug, Default)]
pub(super) struct Descent {
    pub(super) trial: Trial,
    pub(super) pairs: Pairs,
    /// What a change must gain now, as a part.
    least_gain: f64,
    best: Vec<u32>,
    /// What each rank held at the start, `[ranks * E]`, and how many moves may still be made.
    held: Vec<bool>,
    pub(super) left: usize,
}

/// The best change found so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// What a change must be worth less than.
    pub(super) limit: f64,
    /// Gain per move; without a budget, gain.
    pub(super) rate: f64,
    pub(super) puts: [Put; MOST_PUTS],
    pub(super) used: usize,
}

impl Descent {
    /// Lets changes make up to `moves` moves (see [`Descent::left`]), away from what `state` holds; they are then weighed by
    /// gain per move.
    pub(super) fn limit_moves(&mut self, facts: &Facts, state: &State, moves: usize) {
        self.held.clear();
        self.held.resize(facts.ranks.len() * facts.experts, false);
        for rank in 0..facts.ranks.len() {
            for &expert in state.set(facts, rank).iter().filter(|&&e| e != NONE) {
                self.held[rank * facts.experts + expert as usize] = true;
            }
        }
        self.left = moves;
    }

    /// Lets changes make any number of moves.
    pub(super) fn any_moves(&mut self) {
        self.held.clear();
        self.left = usize::MAX;
    }

    /// Moves from what was held to what the state holds.
    pub(super) fn made(&self, facts: &Facts, state: &State) -> usize {
        let new = |&(place, &expert): &(usize, &u32)| {
            expert != NONE && !self.held[place / facts.stride * facts.experts + expert as usize]
        };
        state.expert.iter().enumerate().filter(new).count()
    }

    /// Gets ready for [`Descent::step`].
    pub(super) fn begin(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &State,
        power: Power,
        least_gain: f64,
    ) {
        self.least_gain = least_gain;
        self.trial.start(facts, layer, state, power);
        self.pairs.start(facts);
    }

    /// Moves that a change adds: experts new on their rank less new ones that go.
    pub(super) fn moves(&self, facts: &Facts, state: &State, puts: &[Put]) -> i64 {
        if self.held.is_empty() {
            return 0;
        }
        let new = |put: &Put, expert: u32| {
            let at = facts.rank_of(put.place) * facts.experts + expert as usize;
            i64::from(expert != NONE && !self.held[at])
        };
        puts.iter().map(|put| new(put, put.expert) - new(put, state.expert[put.place as usize])).sum()
    }

    /// Changes the state while that makes it worth more. It never ends worth less than it was.
    pub(super) fn run(&mut self, facts: &Facts, layer: &Layer, state: &mut State) {
        let mut best = state.worth(facts, layer);
        self.best.clone_from(&state.expert);
        for (doublings, least_gain) in DOUBLINGS.into_iter().zip(LEAST_GAIN) {
            if best <= 1.0 + CLOSE && facts.price() * state.crossing == 0.0 {
                return;
            }
            let power = Power::new(doublings, state.worst(facts, layer));
            self.begin(facts, layer, state, power, least_gain);
            // Every step gains; the number of steps is bounded as well, lest rounding keep it alive.
            for _ in 0..4 * state.expert.len() {
                if !self.step(facts, layer, state) {
                    break;
                }
            }
            let worth = state.worth(facts, layer);
            if worth < best {
                best = worth;
                self.best.clone_from(&state.expert);
            } else if worth > best {
                state.expert.clone_from(&self.best);
                state.settle(facts, layer);
            }
        }
    }

    /// Makes one change for the better; false if none is found.
    pub(super) fn step(&mut self, facts: &Facts, layer: &Layer, state: &mut State) -> bool {
        let Some(found) = self.find(facts, layer, state) else {
            return facts.price() > 0.0 && self.bring_home(facts, layer, state);
        };
        self.make(facts, layer, state, &found);
        true
    }

    /// Makes a change.
    pub(super) fn make(&mut self, facts: &Facts, layer: &Layer, state: &mut State, found: &Found) {
        let puts = &found.puts[..found.used];
        state.make(facts, layer, puts, |rank| self.pairs.change(rank));
        self.trial.again(facts, layer, state);
    }

    /// Whether changes are weighed by gain per move.
    pub(super) fn counts_moves(&self) -> bool {
        !self.held.is_empty()
    }

    /// No change: what others must gain more than.
    pub(super) fn nothing(&self, facts: &Facts, state: &State) -> Found {
        let limit = self.trial.now(facts, state) * (1.0 - self.least_gain);
        Found { limit, rate: 0.0, puts: [Put { place: 0, expert: NONE }; MOST_PUTS], used: 0 }
    }

    /// Weighs one replica in place of another.
    pub(super) fn weigh_one(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        put: Put,
        best: &mut Found,
    ) {
        if self.trial.may_replace(facts, layer, state, put, self.limit(best)) {
            self.weigh(facts, layer, state, &[put], best);
        }
    }

    /// What a change must be worth less than: without a budget, also than the best so far.
    fn limit(&self, best: &Found) -> f64 {
        if self.held.is_empty() { best.limit - best.rate } else { best.limit }
    }

    /// Takes a change that gains more than the best so far.
    pub(super) fn weigh(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        puts: &[Put],
        best: &mut Found,
    ) {
        let limit = self.limit(best);
        if let Some(worth) = self.trial.after(facts, layer, state, puts, limit) {
            self.take(facts, state, puts, worth, best);
        }
    }

    /// The same for a swap.
    pub(super) fn weigh_swap(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        swap: Swap,
        best: &mut Found,
    ) {
        let limit = self.limit(best);
        if let Some(worth) = self.trial.after_swap(facts, layer, state, swap, limit) {
            self.take(facts, state, &swap.puts(), worth, best);
        }
    }

    fn take(&self, facts: &Facts, state: &State, puts: &[Put], worth: f64, best: &mut Found) {
        let mut rate = best.limit - worth;
        if !self.held.is_empty() {
            let moves = self.moves(facts, state, puts);
            if moves > self.left as i64 {
                return;
            }
            // What needs no move, or undoes one, comes first.
            rate *= if moves > 0 { 1.0 / moves as f64 } else { (2 - moves) as f64 };
        }
        if rate > best.rate {
            best.rate = rate;
            best.used = puts.len();
            best.puts[..puts.len()].copy_from_slice(puts);
        }
    }
}
