//! Local search: change after change that makes a layer worth more.

use super::facts::{Facts, Layer};
use super::state::{MOST_PUTS, NONE, Put, State};
use super::trial::{Power, Trial};

/// Powers of the mean that stands for the worst rank, one after the other, as doublings: 32, 512.
const DOUBLINGS: [u32; 2] = [5, 9];

/// A change must gain this part of what the layer is worth, for each of the powers.
const LEAST_GAIN: [f64; 2] = [1e-4, 1e-5];

/// How many of the most loaded ranks are tried before a search gives up.
const WORST_TRIED: usize = 3;

/// Partners are tried in such numbers at a time, the least loaded first; the best change with any of them is made.
const PARTNERS: usize = 2;

/// A worst rank this close to what an even spread would take is not improved further if nothing crosses nodes.
const CLOSE: f64 = 2e-4;

/// Memory of the search.
#[derive(Debug, Default)]
pub(super) struct Descent {
    trial: Trial,
    order: Vec<(f64, usize)>,
    /// What a change must gain now, as a part.
    least_gain: f64,
    best: Vec<u32>,
    /// What each rank held at the start, `[ranks * E]`, and how many moves may still be made.
    held: Vec<bool>,
    pub(super) left: usize,
}

/// The best change found so far.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// What a change must be worth less than.
    limit: f64,
    /// Gain per move; without a budget, gain.
    rate: f64,
    puts: [Put; MOST_PUTS],
    used: usize,
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
                if !self.step(facts, layer, state, power) {
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
    pub(super) fn step(&mut self, facts: &Facts, layer: &Layer, state: &mut State, power: Power) -> bool {
        let Some(found) = self.find(facts, layer, state, power) else {
            return facts.price() > 0.0 && self.bring_home(facts, layer, state, power);
        };
        let puts = &found.puts[..found.used];
        self.trial.make(facts, layer, state, puts, power);
        true
    }

    fn find(&mut self, facts: &Facts, layer: &Layer, state: &mut State, power: Power) -> Option<Found> {
        let ranks = facts.ranks.len();
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend((0..ranks).map(|rank| (state.time(facts, layer, rank), rank)));
        order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let mut best = self.nothing(facts, state, power);
        'found: for worst in 0..WORST_TRIED.min(ranks) {
            let from = order[ranks - 1 - worst].1;
            self.give_up(facts, layer, state, from, power, &mut best);
            for partners in order[..ranks - 1 - worst].chunks(PARTNERS) {
                for &(_, to) in partners {
                    self.between(facts, layer, state, (from, to), power, &mut best);
                }
                if best.used > 0 {
                    break 'found;
                }
            }
        }
        self.order = order;
        (best.used > 0).then_some(best)
    }

    /// Changes between a rank that takes long and another.
    fn between(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        (from, to): (usize, usize),
        power: Power,
        best: &mut Found,
    ) {
        let most = state.time(facts, layer, from);
        let time_to = state.time(facts, layer, to);
        let per_token = layer.per_all * facts.ranks.slowness[to];
        for a in state.places(facts, from) {
            let i = state.expert[a as usize];
            if i == NONE || layer.pinned[i as usize] {
                continue;
            }
            let goes = state.may_get(facts, layer, to, i);
            let more = goes && (state.count[i as usize] as usize) < facts.limit;
            let less = state.count[i as usize] > 1 && self.others_bear(facts, layer, state, a, most);
            let size = layer.weight[i as usize] * state.part[a as usize];
            let copies = f64::from(state.count[i as usize]);
            for b in state.places(facts, to) {
                let j = state.expert[b as usize];
                if j == i || (j != NONE && layer.pinned[j as usize]) {
                    continue;
                }
                // A first guess at the other rank's time: it may not become the new worst.
                let theirs = if j == NONE { 0.0 } else { layer.weight[j as usize] * state.part[b as usize] };
                let with = |tokens: f64| time_to + (tokens - theirs) * per_token;
                if more
                    && (j == NONE || state.count[j as usize] > 1)
                    && with(size * copies / (copies + 1.0)) < most
                {
                    self.weigh(facts, layer, state, &[Put { place: b, expert: i }], power, best);
                }
                let comes = j == NONE || state.may_get(facts, layer, from, j);
                if !comes {
                    continue;
                }
                let copies_j = if j == NONE { 0.0 } else { f64::from(state.count[j as usize]) };
                let lighter = theirs * copies_j / (copies_j + 1.0) < size;
                if j != NONE && less && lighter && (state.count[j as usize] as usize) < facts.limit {
                    self.weigh(facts, layer, state, &[Put { place: a, expert: j }], power, best);
                }
                if goes && theirs < size && with(size) < most {
                    let puts = [Put { place: a, expert: j }, Put { place: b, expert: i }];
                    self.weigh(facts, layer, state, &puts, power, best);
                }
            }
        }
    }

    /// Whether the other replicas of an expert could take what the one in a place gets without a rank as late as `most`, if
    /// they took equal parts of it; a split may find a better way.
    fn others_bear(&self, facts: &Facts, layer: &Layer, state: &State, place: u32, most: f64) -> bool {
        let expert = state.expert[place as usize];
        let holders = state.holders(facts, expert);
        let each = layer.weight[expert as usize] * state.part[place as usize] / (holders.len() - 1) as f64;
        facts.splitter.is_some()
            || holders.iter().filter(|&&other| other != place).all(|&other| {
                let rank = facts.rank_of(other);
                let more = each * layer.per_all * facts.ranks.slowness[rank];
                state.time(facts, layer, rank) + more < most
            })
    }

    /// A rank gives up replicas of experts that others hold as well, and gets nothing for them: worth it where experts cost
    /// time whatever their tokens.
    fn give_up(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        from: usize,
        power: Power,
        best: &mut Found,
    ) {
        if layer.per_active == 0.0 {
            return;
        }
        let most = state.time(facts, layer, from);
        for place in state.places(facts, from) {
            let expert = state.expert[place as usize];
            if expert != NONE
                && !layer.pinned[expert as usize]
                && state.count[expert as usize] > 1
                && self.others_bear(facts, layer, state, place, most)
            {
                self.weigh(facts, layer, state, &[Put { place, expert: NONE }], power, best);
            }
        }
    }

    /// One pass over the replicas on other nodes than the home of their group: each goes home, for the replica there that
    /// is best swapped for it, if that gains. Returns whether any went.
    fn bring_home(&mut self, facts: &Facts, layer: &Layer, state: &mut State, power: Power) -> bool {
        let mut any = false;
        for from in 0..facts.ranks.len() {
            for a in state.places(facts, from) {
                let mut best = self.nothing(facts, state, power);
                self.swaps_home(facts, layer, state, (from, a), power, &mut best);
                if best.used > 0 {
                    self.trial.make(facts, layer, state, &best.puts[..best.used], power);
                    any = true;
                }
            }
        }
        any
    }

    fn swaps_home(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        (from, a): (usize, u32),
        power: Power,
        best: &mut Found,
    ) {
        let i = state.expert[a as usize];
        if i == NONE || layer.pinned[i as usize] {
            return;
        }
        let foreign = state.foreign(facts, facts.group_of(i));
        let home = (0..facts.nodes).rev().max_by(|&a, &b| foreign[a].total_cmp(&foreign[b])).unwrap_or(0);
        if home == facts.node[from] as usize {
            return;
        }
        let worst = state.worst(facts, layer);
        let size = layer.weight[i as usize] * state.part[a as usize];
        let less = state.count[i as usize] > 1;
        for &to in &facts.of_node[home] {
            if state.holds(facts, to, i) {
                continue;
            }
            let room = |rank: usize| {
                (worst - state.time(facts, layer, rank)) / (layer.per_all * facts.ranks.slowness[rank])
            };
            let (room_from, room_to) = (room(from), room(to));
            for b in state.places(facts, to) {
                let j = state.expert[b as usize];
                let theirs = if j == NONE { 0.0 } else { layer.weight[j as usize] * state.part[b as usize] };
                // A first guess, which leaves out what replicas elsewhere would get.
                if size - theirs > room_to || theirs - size > room_from {
                    continue;
                }
                if j == NONE || (!layer.pinned[j as usize] && state.may_get(facts, layer, from, j)) {
                    let puts = [Put { place: a, expert: j }, Put { place: b, expert: i }];
                    self.weigh(facts, layer, state, &puts, power, best);
                }
            }
        }
        if less {
            self.weigh(facts, layer, state, &[Put { place: a, expert: NONE }], power, best);
        }
    }

    /// No change: what others must gain more than.
    fn nothing(&self, facts: &Facts, state: &State, power: Power) -> Found {
        let limit = self.trial.now(facts, state, power) * (1.0 - self.least_gain);
        Found { limit, rate: 0.0, puts: [Put { place: 0, expert: NONE }; MOST_PUTS], used: 0 }
    }

    fn weigh(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        puts: &[Put],
        power: Power,
        best: &mut Found,
    ) {
        // Without a budget only what gains more than the best so far.
        let limit = if self.held.is_empty() { best.limit - best.rate } else { best.limit };
        let Some(worth) = self.trial.after(facts, layer, state, puts, power, limit) else { return };
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
