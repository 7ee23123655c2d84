//! Changes of two slots: the hot rank and another exchange an expert.

use super::scan::{BLOCK, Best, Own, Scan, View, larger, largest};
use super::state::{Change, square};

impl Scan {
    /// Exchanges of a slot of `hot` with a slot that was moved before or is empty: they cost the fewest moves.
    pub(super) fn exchanges_with_moved(&mut self, view: View<'_>, hot: usize, best: &mut Best) {
        let View { state, ranks, .. } = view;
        let fewest = usize::from(state.rank[hot].arrivals == 0);
        for &other in state.moved_slots.iter().chain(&state.vacant) {
            let other = other as usize;
            let bound = self.bounds[state.slot[other].rank as usize];
            if bound > best.bars[1] {
                self.exchanges_for(view, hot, other, 0, best);
            } else if bound > best.bars[fewest] {
                for one in ranks.slots(hot).filter(|&one| state.slot[one].moved) {
                    view.exchange(one, other, best);
                }
            }
        }
    }

    /// Exchanges of a slot of `hot` with any other.
    pub(super) fn exchanges(&mut self, view: View<'_>, hot: usize, best: &mut Best) {
        let fewest = usize::from(view.state.rank[hot].arrivals == 0);
        // The most promising rank first, so that most others need no look.
        loop {
            let bound = largest(&self.bounds);
            if bound <= best.bars[1 + fewest] {
                return;
            }
            let Some(rank) = self.bounds.iter().position(|&other| other == bound) else { return };
            for other in view.ranks.slots(rank) {
                if bound > best.bars[1 + fewest] {
                    self.exchanges_for(view, hot, other, 1, best);
                }
            }
            self.bounds[rank] = f64::NEG_INFINITY;
        }
    }

    /// Finds the most that `hot` and each other rank can gain however tokens pass between them.
    pub(super) fn bound(&mut self, view: View<'_>, hot: usize) {
        let View { state, ranks, .. } = view;
        let (warm, penalty) = (state.excess[hot], state.penalty[hot]);
        let speed = ranks.speed(hot);
        self.bounds.clear();
        let others = state.excess.iter().zip(&state.penalty);
        if ranks.equal() {
            self.bounds.extend(others.map(|(&cold, &other)| penalty + other - 0.5 * square(warm + cold)));
        } else {
            self.bounds.extend(others.zip(ranks.speeds()).map(|((&cold, &other), &its)| {
                penalty + other - square(warm * speed + cold * its) / (speed * speed + its * its)
            }));
        }
        self.bounds[hot] = f64::NEG_INFINITY;
    }

    /// Exchanges of any slot of `hot` with `other`, which makes `moves` moves besides those of the slot of `hot`.
    #[inline(always)]
    fn exchanges_for(&self, view: View<'_>, hot: usize, other: usize, moves: usize, best: &mut Best) {
        let state = view.state;
        let slot = &state.slot[other];
        let (warm, cold) = (&state.rank[hot], &state.rank[slot.rank as usize]);
        let rest = cold.excess - slot.part * cold.inverse;
        let back = slot.part * warm.inverse;
        let inverse = cold.inverse;
        // Gain beyond the bar, which is higher where the slot of `hot` makes a move too.
        let base = warm.penalty + cold.penalty - best.bars[moves];
        let more = best.bars[moves + 1] - best.bars[moves];
        let beyond = |own: &Own, i: usize| {
            let left = square(own.rest[i] + back) + square(rest + own.part[i] * inverse);
            base - left - more * own.makes_move[i]
        };
        let mut most = [f64::NEG_INFINITY; BLOCK];
        for own in &self.own {
            for i in 0..BLOCK {
                most[i] = larger(beyond(own, i), most[i]);
            }
        }
        if largest(&most) <= 0.0 {
            return;
        }
        for (at, one) in view.ranks.slots(hot).enumerate() {
            if beyond(&self.own[at / BLOCK], at % BLOCK) > 0.0 {
                view.exchange(one, other, best);
            }
        }
    }
}

impl View<'_> {
    /// Offers the exchange of two slots.
    fn exchange(self, one: usize, other: usize, best: &mut Best) {
        let state = self.state;
        let (first, second) = (&state.slot[one], &state.slot[other]);
        let (hot, cold) = (first.rank as usize, second.rank as usize);
        let (warm, cool) = (&state.rank[hot], &state.rank[cold]);
        let shift = first.part - second.part;
        let gain = warm.penalty + cool.penalty
            - square(warm.excess - shift * warm.inverse)
            - square(cool.excess + shift * cool.inverse);
        let (expert, back) = (first.expert, second.expert);
        if gain <= best.bars[0]
            || expert < 0
            || state.holds(cold, expert)
            || (back >= 0 && state.holds(hot, back))
        {
            return;
        }
        let (arrives, returns) = (state.cost(cold, back, expert), state.cost(hot, expert, back));
        if self.allows(cold, arrives) && self.allows(hot, returns) {
            best.offer(gain, arrives + returns, Change::Swap { one: one as u32, other: other as u32 });
        }
    }
}
