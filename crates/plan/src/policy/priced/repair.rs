//! What is in place, made to fit the rules: nothing twice on a rank, the hottest experts everywhere, no expert lost.

use super::facts::{Facts, Layer};
use super::state::{NONE, State};

/// Memory of the repairs.
#[derive(Debug, Default)]
pub(super) struct Repair {
    count: Vec<u32>,
    load: Vec<f64>,
}

impl Repair {
    /// Takes over what live ranks hold, without second copies on a rank and replicas beyond the limit. `own` are the
    /// slots of each live rank, `current` the layer's row of `phy2log`. The caller settles the state.
    pub(super) fn take_over(
        &mut self,
        facts: &Facts,
        own: &[std::ops::Range<usize>],
        current: &[i32],
        state: &mut State,
    ) {
        state.clear(facts);
        self.count.clear();
        self.count.resize(facts.experts, 0);
        for (rank, own) in own.iter().enumerate() {
            let mut places = state.places(facts, rank);
            for &entry in &current[own.clone()] {
                let Ok(expert) = u32::try_from(entry) else { continue };
                let count = &mut self.count[expert as usize];
                if (*count as usize) < facts.limit && !state.holds(facts, rank, expert) {
                    let Some(place) = places.next() else { break };
                    state.expert[place as usize] = expert;
                    *count += 1;
                }
            }
        }
    }

    /// Puts the hottest experts on every rank, then experts without a replica on some rank: in an empty place, else in that
    /// of the lightest replica that has another. The caller settles the state.
    pub(super) fn complete(&mut self, facts: &Facts, layer: &Layer, state: &mut State) {
        for &expert in &layer.hottest_first()[..facts.top] {
            for rank in 0..facts.ranks.len() {
                if state.holds(facts, rank, expert) {
                    continue;
                }
                let place = self
                    .spare(facts, layer, state, rank)
                    .or_else(|| self.make_room(facts, layer, state, rank));
                if let Some(place) = place {
                    self.put(state, place, expert);
                }
            }
        }
        self.weigh(facts, layer, state);
        for &expert in layer.hottest_first() {
            if self.count[expert as usize] > 0 {
                continue;
            }
            let cost = |rank: usize| self.load[rank] * facts.ranks.slowness[rank];
            let spare = (0..facts.ranks.len()).filter_map(|rank| {
                let place = self.spare(facts, layer, state, rank)?;
                Some((self.piece(layer, state, place), cost(rank), place))
            });
            let least =
                spare.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
            let Some((_, _, place)) = least else { break };
            self.put(state, place, expert);
            self.weigh(facts, layer, state);
        }
    }

    /// The place of a rank that is cheapest to give up: an empty one, else the lightest replica that has another.
    fn spare(&self, facts: &Facts, layer: &Layer, state: &State, rank: usize) -> Option<u32> {
        state
            .places(facts, rank)
            .filter(|&place| match state.expert[place as usize] {
                NONE => true,
                expert => !layer.pinned[expert as usize] && self.count[expert as usize] > 1,
            })
            .min_by(|&a, &b| {
                self.piece(layer, state, a).total_cmp(&self.piece(layer, state, b)).then(a.cmp(&b))
            })
    }

    /// Takes the lightest expert that is not pinned off a rank, to a place elsewhere that can be given up.
    fn make_room(&mut self, facts: &Facts, layer: &Layer, state: &mut State, rank: usize) -> Option<u32> {
        let loose = |&place: &u32| {
            let expert = state.expert[place as usize];
            expert != NONE && !layer.pinned[expert as usize]
        };
        let place = state.places(facts, rank).filter(loose).min_by(|&a, &b| {
            self.piece(layer, state, a).total_cmp(&self.piece(layer, state, b)).then(a.cmp(&b))
        })?;
        let expert = state.expert[place as usize];
        let to = (0..facts.ranks.len())
            .filter(|&other| other != rank && !state.holds(facts, other, expert))
            .find_map(|other| self.spare(facts, layer, state, other));
        // Without such a place the expert is without a replica for now, and the second pass looks for one.
        self.put(state, place, NONE);
        if let Some(to) = to {
            self.put(state, to, expert);
        }
        Some(place)
    }

    fn put(&mut self, state: &mut State, place: u32, expert: u32) {
        let old = std::mem::replace(&mut state.expert[place as usize], expert);
        if old != NONE {
            self.count[old as usize] -= 1;
        }
        if expert != NONE {
            self.count[expert as usize] += 1;
        }
    }

    /// Tokens of the replica in a place at even split; below 0 if it is empty.
    fn piece(&self, layer: &Layer, state: &State, place: u32) -> f64 {
        match state.expert[place as usize] {
            NONE => -1.0,
            expert => layer.weight[expert as usize] / f64::from(self.count[expert as usize]),
        }
    }

    fn weigh(&mut self, facts: &Facts, layer: &Layer, state: &State) {
        self.load.clear();
        for rank in 0..facts.ranks.len() {
            let places = state.places(facts, rank).filter(|&place| state.expert[place as usize] != NONE);
            let load = places.map(|place| self.piece(layer, state, place)).sum();
            self.load.push(load);
        }
    }
}
