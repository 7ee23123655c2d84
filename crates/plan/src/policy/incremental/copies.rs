//! Changes of one slot: one more replica of an expert in place of a replica that can be spared.

use super::scan::{BLOCK, Best, Own, Scan, View, larger, largest};
use super::state::{Change, square};

impl Scan {
    /// One more copy of an expert of `hot` in a spare slot elsewhere.
    pub(super) fn copies(&mut self, view: View<'_>, hot: usize, best: &mut Best) {
        let state = view.state;
        let slots = &state.slot[view.ranks.slots(hot)];
        let most = self.relieve(view, hot);
        let (all, ranks) = (&state.slot[..], &state.rank[..]);
        for &at in &state.spare {
            let slot = &all[at as usize];
            let rank = &ranks[slot.rank as usize];
            // What the relief is worth in this slot: first without its load on the rank that takes it, then without
            // the load of the expert that takes it.
            let base = rank.penalty - slot.harm;
            let least = usize::from(!slot.moved);
            if base + most <= best.bars[least] {
                continue;
            }
            let rest = rank.excess - slot.part * rank.inverse;
            if base - square(rest) + most <= best.bars[least] || slot.rank as usize == hot {
                continue;
            }
            let gain =
                |own: &Own, i: usize| own.relief[i] + base - square(rest + own.thinned[i] * rank.inverse);
            let mut gains = [f64::NEG_INFINITY; BLOCK];
            for own in &self.own {
                for i in 0..BLOCK {
                    gains[i] = larger(gain(own, i), gains[i]);
                }
            }
            if largest(&gains) <= best.bars[least] {
                continue;
            }
            for (i, one) in slots.iter().enumerate() {
                let gain = gain(&self.own[i / BLOCK], i % BLOCK);
                if gain > best.bars[least] {
                    view.replace(at as usize, one.expert, gain, best);
                }
            }
        }
    }

    /// Finds what one more replica of each expert of `hot` brings. Returns the most.
    fn relieve(&mut self, view: View<'_>, hot: usize) -> f64 {
        let state = view.state;
        let rank = &state.rank[hot];
        let slots = &state.slot[view.ranks.slots(hot)];
        let mut most = f64::NEG_INFINITY;
        for (own, slots) in self.own.iter_mut().zip(slots.chunks(BLOCK)) {
            for (i, slot) in slots.iter().enumerate() {
                let Ok(expert) = usize::try_from(slot.expert) else { continue };
                let count = state.count[expert];
                if count >= state.limit {
                    continue;
                }
                if count == 1 {
                    own.thinned[i] = 0.5 * own.part[i];
                    own.relief[i] = rank.penalty - square(rank.excess - own.thinned[i] * rank.inverse);
                } else {
                    own.thinned[i] = state.part_of(expert, count + 1);
                    own.relief[i] = view.relief(expert);
                }
                most = larger(own.relief[i], most);
            }
        }
        most
    }
}

impl View<'_> {
    /// Offers a spare slot to an expert.
    fn replace(self, at: usize, expert: i32, gain: f64, best: &mut Best) {
        let slot = &self.state.slot[at];
        let rank = slot.rank as usize;
        if self.state.holds(rank, expert) {
            return;
        }
        let cost = self.state.cost(rank, slot.expert, expert);
        if self.allows(rank, cost) {
            best.offer(gain, cost, Change::Replace { slot: at as u32, expert });
        }
    }

    /// A spare slot of `hot` for an expert of a rank above the aim.
    pub(super) fn dumps(self, hot: usize, best: &mut Best) {
        let Self { state, ranks, .. } = self;
        let own = &state.rank[hot];
        let most = larger(largest(&state.penalty[..hot]), largest(&state.penalty[hot + 1..]));
        for at in ranks.slots(hot) {
            let slot = &state.slot[at];
            let least = usize::from(!slot.moved);
            if slot.expert < 0 || state.count[slot.expert as usize] < 2 {
                continue;
            }
            let rest = own.excess - slot.part * own.inverse;
            let base = own.penalty - slot.harm;
            let room = base - square(rest);
            if room + most <= best.bars[least] {
                continue;
            }
            for (rank, &penalty) in state.penalty.iter().enumerate() {
                if room + penalty <= best.bars[least] || penalty <= 0.0 || rank == hot {
                    continue;
                }
                for from in &state.slot[ranks.slots(rank)] {
                    let expert = from.expert;
                    if expert < 0 || state.holds(hot, expert) || state.count[expert as usize] >= state.limit {
                        continue;
                    }
                    let part = state.part_of(expert as usize, state.count[expert as usize] + 1);
                    let gain = base - square(rest + part * own.inverse) + self.relief(expert as usize);
                    if gain > best.bars[least] {
                        self.replace(at, expert, gain, best);
                    }
                }
            }
        }
    }

    /// What the ranks of an expert gain from one more replica elsewhere.
    #[inline]
    fn relief(self, expert: usize) -> f64 {
        let state = self.state;
        let count = state.count[expert];
        let fall = state.part_of(expert, count) - state.part_of(expert, count + 1);
        let gain = |rank: usize| {
            let rank = &state.rank[rank];
            rank.penalty - square(rank.excess - fall * rank.inverse)
        };
        state.replicas(expert).map(|(_, slot)| gain(slot.rank as usize)).sum()
    }
}
