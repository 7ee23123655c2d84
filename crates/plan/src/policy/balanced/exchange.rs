//! Exchanges between the worst rank and a lighter one.

use std::ops::Range;

use super::fits::Fits;
use super::holders::Holders;
use super::state::{LANES, State};

/// Most pairs of replicas that are looked at on one rank.
const MOST_PAIRS: usize = 64;

/// With up to so many places on a rank, exchanges with it are mostly in vain.
const FEW: usize = 6;

/// How many replicas each side gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    One,
    Two,
}

/// Memory of the search: sums of pairs of both ranks.
#[derive(Debug, Default)]
pub(super) struct ExchangeScratch {
    a: Pairs,
    b: Pairs,
}

/// Sums of pairs of places of a rank: neighbours in order of load first, then those farther apart.
#[derive(Debug)]
struct Pairs {
    /// Infinite beyond the last, to the end of its block.
    sum: [f32; MOST_PAIRS],
    count: usize,
    room: usize,
}

impl Default for Pairs {
    fn default() -> Self {
        Self { sum: [f32::INFINITY; MOST_PAIRS], count: 0, room: 0 }
    }
}

impl Pairs {
    fn of(&mut self, loads: &[f32], room: usize) {
        let loads = &loads[..room];
        let mut rest = self.sum.as_mut_slice();
        for gap in 1..room {
            let count = (room - gap).min(rest.len());
            let (sums, more) = rest.split_at_mut(count);
            for (sum, (x, y)) in sums.iter_mut().zip(loads.iter().zip(&loads[gap..])) {
                *sum = x + y;
            }
            rest = more;
        }
        self.count = MOST_PAIRS - rest.len();
        self.sum[self.count..self.count.next_multiple_of(LANES)].fill(f32::INFINITY);
        self.room = room;
    }

    fn sums(&self) -> &[f32] {
        &self.sum[..self.count]
    }

    fn lanes(&self) -> &[[f32; LANES]] {
        self.sum[..self.count.next_multiple_of(LANES)].as_chunks().0
    }

    /// The places of a pair, counted from the rank's first.
    fn places(&self, mut pair: usize) -> (usize, usize) {
        let mut gap = 1;
        while pair >= self.room - gap {
            pair -= self.room - gap;
            gap += 1;
        }
        (pair, pair + gap)
    }
}

/// Experts that two ranks exchange, and the higher cost of the two ranks afterwards.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    cost: f64,
    /// The cost at which the search may end.
    goal: f64,
    /// The lighter rank.
    b: usize,
    /// `(expert of a, expert of b)`.
    experts: [(u32, u32); 2],
    count: usize,
    /// What is looked for with rank `a`, once asked for; forgotten when the cost falls.
    fits: Option<Fits>,
}

/// Where two ranks would meet: `give` units from `a` to `b` bring both to the cost `level`.
#[derive(Debug, Clone, Copy)]
struct Meeting {
    give: f64,
    level: f64,
    /// Cost of one unit more or less on `a` and on `b`.
    slowness: [f64; 2],
}

impl Meeting {
    fn of(state: &State, a: usize, b: usize) -> Self {
        let (slow_a, slow_b) = (state.slowness[a], state.slowness[b]);
        let give = (state.cost(a) - state.cost(b)) / (slow_a + slow_b);
        Self { give, level: (state.load[a] - give) * slow_a, slowness: [slow_a, slow_b] }
    }
}

/// What rank `a` can give, where the places of a rank are one block: most ranks can be told at a glance to be of no
/// help.
#[derive(Debug, Clone, Copy)]
enum Glance {
    One([f32; LANES]),
    Two([[f32; LANES]; 2]),
}

impl Glance {
    fn of(kind: Kind, blocks: &[[f32; LANES]]) -> Option<Self> {
        let &[loads] = blocks else { return None };
        Some(match kind {
            Kind::One => Self::One(loads),
            Kind::Two => Self::Two(sums_of_two(loads)),
        })
    }

    /// Whether anything of `a` less anything of the rank with these blocks is within `distance` of `give`. Empty places
    /// are infinite, and nothing less infinity is near.
    #[inline]
    fn finds(&self, blocks: &[[f32; LANES]], give: f64, distance: f64) -> bool {
        let &[loads] = blocks else { return true };
        let (give, within) = (give as f32, distance as f32 * (1.0 + f32::EPSILON));
        match self {
            Self::One(own) => any_within(own, give, &[loads], within),
            Self::Two([a, b]) => {
                let sums = sums_of_two(loads);
                any_within(a, give, &sums, within) || any_within(&[b[0], b[1]], give, &sums, within)
            }
        }
    }
}

/// Sums of two of four, infinite in the last two places.
#[inline]
fn sums_of_two([a, b, c, d]: [f32; LANES]) -> [[f32; LANES]; 2] {
    [[a + b, b + c, c + d, d + a], [a + c, b + d, f32::INFINITY, f32::INFINITY]]
}

impl Exchange {
    /// Nothing found yet for a rank that costs less than `cost`; `goal` or less is good enough.
    pub(super) fn none(cost: f64, goal: f64) -> Self {
        Self { cost, goal, b: 0, experts: [(0, 0); 2], count: 0, fits: None }
    }

    pub(super) fn is_some(&self) -> bool {
        self.count > 0
    }

    /// Whether one is found that need not be bettered.
    fn is_good_enough(&self) -> bool {
        self.is_some() && self.cost <= self.goal
    }

    /// Carries the exchange between rank `a` and the other out, if there is one.
    pub(super) fn apply(&self, state: &mut State, a: usize, holders: &mut Holders) {
        if self.is_some() {
            state.exchange(a, self.b, &self.experts[..self.count]);
            holders.exchanged(state, a, self.b, &self.experts[..self.count]);
        }
    }

    /// Looks for a better exchange between rank `a` and the ranks at `range` of the order by cost. Returns true as
    /// soon as one leaves both at or below the goal.
    pub(super) fn search(
        &mut self,
        state: &State,
        a: usize,
        range: Range<usize>,
        kind: Kind,
        scratch: &mut ExchangeScratch,
    ) -> bool {
        if kind == Kind::Two {
            // Two of three for two of three is one for one with the ranks turned round.
            if state.places(a).len() <= 3 {
                return false;
            }
            scratch.a.of(state.lanes(a), state.places(a).len());
        }
        // Where there mostly is one, a look at all places at once does not pay.
        let sparse = range.start > 0 || state.places(a).len() <= FEW;
        if kind == Kind::One && sparse && state.alike && state.blocks(a).len() == 1 {
            return self.search_alike(state, a, range);
        }
        let glance = Glance::of(kind, state.blocks(a)).filter(|_| sparse);
        for at in range {
            let b = state.ranked(at);
            if let Some(glance) = &glance
                && b != a
            {
                // How many units at most and at least must go to `b` for both to cost less than what is known.
                let most = self.cost / state.slowness[b] - state.load[b];
                let least = state.load[a] - self.cost / state.slowness[a];
                if most <= least {
                    // Heavier ranks have less room still, unless they are faster.
                    if state.alike {
                        break;
                    }
                    continue;
                }
                if !glance.finds(state.blocks(b), 0.5 * (most + least), 0.5 * (most - least)) {
                    continue;
                }
            }
            let meeting = Meeting::of(state, a, b);
            if b == a || (state.alike && meeting.level >= self.cost) {
                break;
            }
            if meeting.level >= self.cost {
                continue;
            }
            let sparse = sparse && glance.is_none();
            match kind {
                Kind::One => self.one(state, a, b, meeting, sparse),
                Kind::Two => self.two(state, a, b, meeting, scratch, sparse),
            }
            if self.is_good_enough() {
                return true;
            }
        }
        false
    }

    /// The same for one for one, where all ranks are as fast and the places of a rank are one block.
    fn search_alike(&mut self, state: &State, a: usize, range: Range<usize>) -> bool {
        let mut from = range.start;
        while let Some(at) =
            self.fits.get_or_insert_with(|| Fits::below(self.cost, state, a)).next(state, from..range.end)
        {
            let b = state.ranked(at);
            let meeting = Meeting::of(state, a, b);
            if b == a || meeting.level >= self.cost {
                break;
            }
            self.one(state, a, b, meeting, false);
            if self.is_good_enough() {
                return true;
            }
            from = at + 1;
        }
        false
    }

    fn one(&mut self, state: &State, a: usize, b: usize, meeting: Meeting, sparse: bool) {
        let give = meeting.give as f32;
        let (lanes_a, lanes_b) = (state.lanes(a), state.lanes(b).as_chunks().0);
        let mut within = meeting.distance(self.cost);
        if sparse && !any_within(&lanes_a[..state.places(a).len()], give, lanes_b, within) {
            return;
        }
        for (p, &x) in state.places(a).zip(lanes_a) {
            if !any_within(&[x], give, lanes_b, within) {
                continue;
            }
            for q in state.places(b) {
                let cost = meeting.cost(state.place_load[p] - state.place_load[q]);
                if cost < self.cost && state.may_exchange(a, p, b, q) {
                    self.accept(cost, b, &[(state.expert[p], state.expert[q])]);
                }
            }
            if self.is_good_enough() {
                return;
            }
            within = meeting.distance(self.cost);
        }
    }

    fn two(
        &mut self,
        state: &State,
        a: usize,
        b: usize,
        meeting: Meeting,
        scratch: &mut ExchangeScratch,
        sparse: bool,
    ) {
        let (start_a, start_b) = (state.places(a).start, state.places(b).start);
        let ExchangeScratch { a: pairs_a, b: pairs_b } = scratch;
        pairs_b.of(state.lanes(b), state.places(b).len());
        let (lanes_b, give) = (pairs_b.lanes(), meeting.give as f32);
        let mut within = meeting.distance(self.cost);
        if sparse && !any_within(pairs_a.sums(), give, lanes_b, within) {
            return;
        }
        for (pair_a, &x) in pairs_a.sums().iter().enumerate() {
            if !any_within(&[x], give, lanes_b, within) {
                continue;
            }
            let (p0, p1) = pairs_a.places(pair_a);
            let p = [start_a + p0, start_a + p1];
            let load = state.place_load[p[0]] + state.place_load[p[1]];
            for (pair_b, &y) in pairs_b.sums().iter().enumerate() {
                if (x - give - y).abs() >= within {
                    continue;
                }
                let (q0, q1) = pairs_b.places(pair_b);
                let q = [start_b + q0, start_b + q1];
                let cost = meeting.cost(load - state.place_load[q[0]] - state.place_load[q[1]]);
                if cost < self.cost && p.iter().all(|&p| q.iter().all(|&q| state.may_exchange(a, p, b, q))) {
                    let pair = |i: usize| (state.expert[p[i]], state.expert[q[i]]);
                    self.accept(cost, b, &[pair(0), pair(1)]);
                }
            }
            if self.is_good_enough() {
                return;
            }
            within = meeting.distance(self.cost);
        }
    }

    fn accept(&mut self, cost: f64, b: usize, experts: &[(u32, u32)]) {
        (self.cost, self.b, self.count, self.fits) = (cost, b, experts.len(), None);
        self.experts[..experts.len()].copy_from_slice(experts);
    }
}

impl Meeting {
    /// Higher cost of the two ranks when `given` units change sides.
    #[inline]
    fn cost(&self, given: f64) -> f64 {
        let (more, [slow_a, slow_b]) = (given - self.give, self.slowness);
        self.level + (more * slow_b).max(-more * slow_a)
    }
}

impl Meeting {
    /// How far from [`Meeting::give`] what is given may be for less than `cost`, rounded up to what float32 tells apart.
    #[inline]
    fn distance(&self, cost: f64) -> f32 {
        ((cost - self.level) / self.slowness[0].min(self.slowness[1])) as f32 * (1.0 + f32::EPSILON)
    }
}

/// The cost at which ranks `a` and `b` meet.
pub(super) fn level(state: &State, a: usize, b: usize) -> f64 {
    Meeting::of(state, a, b).level
}

/// Whether `|x - give - y|` is below `within` for any `x` and `y`. Written in lanes, for which the compiler has vector
/// instructions; this is where refinement spends its time.
#[inline]
fn any_within(xs: &[f32], give: f32, ys: &[[f32; LANES]], within: f32) -> bool {
    let mut least = [f32::INFINITY; LANES];
    for x in xs {
        let wanted = x - give;
        for block in ys {
            for (least, y) in least.iter_mut().zip(block) {
                let distance = (wanted - y).abs();
                *least = if distance < *least { distance } else { *least };
            }
        }
    }
    least.iter().fold(false, |any, &distance| any | (distance < within))
}
