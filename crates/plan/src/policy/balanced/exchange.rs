//! Exchanges between the worst rank and a lighter one.

use std::ops::Range;

use super::state::{LANES, State};

/// Most pairs of replicas that are looked at on one rank.
const MOST_PAIRS: usize = 64;

/// How many replicas each side gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    One,
    Two,
}

/// Memory of the search: sums of pairs of both ranks.
#[derive(Debug, Default)]
pub(super) struct ExchangeScratch {
    a: Vec<f32>,
    b: Vec<f32>,
    pairs: Pairs,
}

/// Pairs of places inside a rank.
#[derive(Debug, Default)]
struct Pairs {
    room: usize,
    places: Vec<(u32, u32)>,
}

impl Pairs {
    /// Neighbours in order of load first, then those farther apart, up to [`MOST_PAIRS`]. The pairs of a smaller room
    /// are not a prefix of those of a larger one, so they are made again when the room changes.
    fn of(&mut self, room: usize) -> &[(u32, u32)] {
        if self.room != room {
            self.room = room;
            let all = (1..room as u32).flat_map(|gap| (0..room as u32 - gap).map(move |i| (i, i + gap)));
            self.places.clear();
            self.places.extend(all.take(MOST_PAIRS));
        }
        &self.places
    }

    /// Sums over the pairs, infinite beyond the last up to a whole block.
    fn sums(&mut self, loads: &[f32], room: usize, sums: &mut Vec<f32>) {
        let pairs = self.of(room);
        sums.clear();
        sums.extend(pairs.iter().map(|&(i, j)| loads[i as usize] + loads[j as usize]));
        sums.resize(sums.len().next_multiple_of(LANES), f32::INFINITY);
    }
}

/// Places that are exchanged one for one, and the higher cost of the two ranks afterwards.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    cost: f64,
    /// `(place of a, place of b)`.
    places: [(usize, usize); 2],
    count: usize,
}

/// Where two ranks would meet: `give` units from `a` to `b` bring both to the cost `level`.
#[derive(Debug, Clone, Copy)]
struct Meeting {
    give: f64,
    level: f64,
    /// Cost of one unit more or less, at most.
    slowness: f64,
}

impl Meeting {
    fn of(state: &State, a: usize, b: usize) -> Self {
        let (slow_a, slow_b) = (state.slowness[a], state.slowness[b]);
        let give = (state.cost(a) - state.cost(b)) / (slow_a + slow_b);
        Self { give, level: (state.load[a] - give) * slow_a, slowness: slow_a.max(slow_b) }
    }
}

impl Exchange {
    /// Nothing found yet that costs less than `cost`.
    pub(super) fn none(cost: f64) -> Self {
        Self { cost, places: [(0, 0); 2], count: 0 }
    }

    pub(super) fn is_some(&self) -> bool {
        self.count > 0
    }

    /// Carries the exchange out; false if there is none.
    pub(super) fn apply(&self, state: &mut State) -> bool {
        let at = |state: &State, place: usize, expert: u32| {
            // An exchange sorts the places again, but a rank never holds an expert twice.
            let places = state.places(state.rank_of(place));
            places.clone().find(|&p| state.expert[p] == expert).unwrap_or(places.start)
        };
        let experts = self.places.map(|(p, q)| (state.expert[p], state.expert[q]));
        for (&(p, q), (i, j)) in self.places.iter().zip(experts).take(self.count) {
            let (p, q) = (at(state, p, i), at(state, q, j));
            state.exchange(p, q);
        }
        self.is_some()
    }

    /// Looks for a better exchange between rank `a` and the ranks at `range` of the order by cost. Returns true as
    /// soon as one leaves both at or below `goal`.
    pub(super) fn search(
        &mut self,
        state: &State,
        a: usize,
        range: Range<usize>,
        kind: Kind,
        goal: f64,
        scratch: &mut ExchangeScratch,
    ) -> bool {
        let room_a = state.places(a).len();
        if kind == Kind::Two {
            scratch.pairs.sums(state.lanes(a), room_a, &mut scratch.a);
        }
        for at in range {
            let b = state.ranked(at);
            let meeting = Meeting::of(state, a, b);
            // Heavier ranks meet at a higher level still.
            if b == a || meeting.level >= self.cost {
                break;
            }
            match kind {
                Kind::One => self.one(state, a, b, meeting, goal),
                Kind::Two => self.two(state, a, b, meeting, goal, scratch),
            }
            if self.cost <= goal {
                return true;
            }
        }
        false
    }

    fn one(&mut self, state: &State, a: usize, b: usize, meeting: Meeting, goal: f64) {
        let give = meeting.give as f32;
        let (lanes_a, lanes_b) = (state.lanes(a), state.lanes(b));
        for (p, &x) in state.places(a).zip(lanes_a) {
            if !self.promises(least_distance(x - give, lanes_b), meeting) {
                continue;
            }
            for q in state.places(b) {
                let cost = meeting.cost(state.place_load[p] - state.place_load[q]);
                if cost < self.cost && state.may_exchange(a, p, b, q) {
                    (self.cost, self.places[0], self.count) = (cost, (p, q), 1);
                }
            }
            if self.cost <= goal {
                return;
            }
        }
    }

    fn two(
        &mut self,
        state: &State,
        a: usize,
        b: usize,
        meeting: Meeting,
        goal: f64,
        scratch: &mut ExchangeScratch,
    ) {
        let ExchangeScratch { a: sums_a, b: sums_b, pairs } = scratch;
        let (room_a, room_b) = (state.places(a).len(), state.places(b).len());
        pairs.sums(state.lanes(b), room_b, sums_b);
        let give = meeting.give as f32;
        for (row, &x) in sums_a.iter().enumerate() {
            if !self.promises(least_distance(x - give, sums_b), meeting) {
                continue;
            }
            let (start_a, start_b) = (state.places(a).start, state.places(b).start);
            let (p0, p1) = pairs.of(room_a)[row];
            let (p0, p1) = (start_a + p0 as usize, start_a + p1 as usize);
            let load = state.place_load[p0] + state.place_load[p1];
            for &(q0, q1) in pairs.of(room_b) {
                let (q0, q1) = (start_b + q0 as usize, start_b + q1 as usize);
                let cost = meeting.cost(load - state.place_load[q0] - state.place_load[q1]);
                if cost < self.cost
                    && [p0, p1].iter().all(|&p| [q0, q1].iter().all(|&q| state.may_exchange(a, p, b, q)))
                {
                    (self.cost, self.places, self.count) = (cost, [(p0, q0), (p1, q1)], 2);
                }
            }
            if self.cost <= goal {
                return;
            }
        }
    }

    /// Whether a distance found in float32 may be better than what is known.
    #[inline]
    fn promises(&self, distance: f32, meeting: Meeting) -> bool {
        meeting.level + f64::from(distance) * meeting.slowness < self.cost
    }
}

impl Meeting {
    /// Higher cost of the two ranks when `given` units change sides.
    #[inline]
    fn cost(&self, given: f64) -> f64 {
        self.level + (given - self.give).abs() * self.slowness
    }
}

/// The cost at which ranks `a` and `b` meet.
pub(super) fn level(state: &State, a: usize, b: usize) -> f64 {
    Meeting::of(state, a, b).level
}

/// Least `|wanted - y|`. Written in lanes, for which the compiler has vector instructions.
#[inline]
fn least_distance(wanted: f32, ys: &[f32]) -> f32 {
    let mut least = [f32::INFINITY; LANES];
    for block in ys.chunks_exact(LANES) {
        for (least, y) in least.iter_mut().zip(block) {
            let distance = (wanted - y).abs();
            *least = if distance < *least { distance } else { *least };
        }
    }
    let lower = |x: f32, y: f32| if x < y { x } else { y };
    lower(lower(least[0], least[1]), lower(least[2], least[3]))
}
