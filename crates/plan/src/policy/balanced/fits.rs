//! Which ranks have a replica that the worst rank could take for one of its own, told in a few instructions per rank.

use std::ops::Range;

use super::state::{LANES, State};
use crate::layer::key_id;

/// For each replica of a rank, how heavy the replica must be that comes for it, at most, and how heavy all that stays on the
/// other rank, for both ranks to remain below a cost. All ranks are as fast, and the places of a rank are one block.
///
/// Refinement with few slots per rank looks at hundreds of ranks before one helps: this is where it spends its time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fits {
    comes: [f32; LANES],
    stays: [f32; LANES],
    places: usize,
    /// Where ranks begin, in order of cost, that are too heavy themselves.
    end: usize,
}

impl Fits {
    pub(super) fn below(cost: f64, state: &State, a: usize) -> Self {
        let load = state.load[a];
        // Of two ranks below the cost one has at most as much as is left when the other has that much.
        let end = state.position(2.0 * cost - load);
        let nothing = [f32::NEG_INFINITY; LANES];
        let mut fits = Self { comes: nothing, stays: nothing, places: state.places(a).len(), end };
        // More than rounding to float32 takes away from what a rank has, so that nothing that fits is missed.
        let slack = 4.0 * f64::from(f32::EPSILON) * (cost + load);
        for (place, (comes, stays)) in state.places(a).zip(fits.comes.iter_mut().zip(&mut fits.stays)) {
            let own = state.place_load[place];
            *comes = (cost - (load - own) + slack) as f32;
            *stays = (cost - own + slack) as f32;
        }
        fits
    }

    /// The first position of the order by cost in this range where a rank may have a replica that fits.
    #[inline]
    pub(super) fn next(&self, state: &State, range: Range<usize>) -> Option<usize> {
        let range = range.start..range.end.min(self.end);
        if self.places <= 2 { self.next_of::<2>(state, range) } else { self.next_of::<LANES>(state, range) }
    }

    fn next_of<const PLACES: usize>(&self, state: &State, range: Range<usize>) -> Option<usize> {
        let (blocks, loads) = (state.lane.as_chunks::<LANES>().0, &state.load[..]);
        let at = state.keys(range.clone()).iter().position(|&key| {
            let rank = key_id(key);
            match (blocks.get(rank), loads.get(rank)) {
                (Some(&block), Some(&load)) => self.any::<PLACES>(block, load as f32),
                // No rank has this number.
                _ => false,
            }
        })?;
        Some(range.start + at)
    }

    /// Whether a rank with these places may have a replica that fits. Places beyond the rank's room are infinite and fit
    /// nowhere. Written in lanes, for which the compiler has vector instructions.
    #[inline]
    fn any<const PLACES: usize>(&self, replicas: [f32; LANES], load: f32) -> bool {
        let mut most = [f32::NEG_INFINITY; LANES];
        for (comes, stays) in self.comes[..PLACES].iter().zip(&self.stays[..PLACES]) {
            for (most, replica) in most.iter_mut().zip(&replicas) {
                let (less, rest) = (comes - replica, stays - (load - replica));
                // In this order: infinity less infinity counts as nothing.
                let less = if less < rest { less } else { rest };
                *most = if less > *most { less } else { *most };
            }
        }
        most.iter().fold(false, |any, &most| any | (most > 0.0))
    }
}

#[cfg(test)]
mod tests {
    use eplb_core::Topology;
    use proptest::prelude::*;

    use super::*;
    use crate::layer::Ranks;
    use crate::policy::balanced::state::NONE;

    /// One replica of each expert, `slots` to a rank in order, as many as there are loads; what is left stays empty.
    fn state(loads: &[u32], slots: usize) -> State {
        let ranks = loads.len().div_ceil(slots);
        let ranks = Ranks::live(&Topology::uniform(ranks, ranks * slots).unwrap(), loads.len());
        let units: Vec<f64> = loads.iter().map(|&load| f64::from(load) * 1024.0 + 1.0).collect();
        let mut state = State::default();
        state.reset(&ranks, &units, &vec![1; loads.len()], &units);
        for rank in 0..ranks.len() {
            for (at, place) in state.places(rank).enumerate() {
                let expert = rank * slots + at;
                state.expert[place] = if expert < loads.len() { expert as u32 } else { NONE };
            }
        }
        state.settle();
        state
    }

    /// Ranks with a replica that the worst rank could take for one of its own, both then below `cost`.
    fn partners(state: &State, cost: f64) -> Vec<usize> {
        let a = state.worst();
        let fit = |b: usize| {
            let below = |x: f64, y: f64| state.load[a] - x + y < cost && state.load[b] - y + x < cost;
            let each = |x: f64| state.places(b).any(|place| below(x, state.place_load[place]));
            b != a && state.places(a).any(|place| each(state.place_load[place]))
        };
        (0..state.ranks()).filter(|&rank| fit(rank)).collect()
    }

    fn found(fits: &Fits, state: &State) -> Vec<usize> {
        let (mut found, mut from) = (Vec::new(), 0);
        while let Some(at) = fits.next(state, from..state.ranks()) {
            found.push(state.ranked(at));
            from = at + 1;
        }
        found.sort_unstable();
        found
    }

    fn missed(fits: &Fits, state: &State, cost: f64) -> usize {
        let found = found(fits, state);
        partners(state, cost).iter().filter(|rank| !found.contains(rank)).count()
    }

    proptest! {
        #[test]
        fn no_partner_is_missed_and_few_are_told_in_vain(
            loads in prop::collection::vec(prop_oneof![0..50u32, 0..4_000_000u32], 4..120),
            slots in 1..=LANES,
            part in 0.0..1.0f64,
        ) {
            let state = state(&loads, slots);
            let (worst, lightest) = (state.load[state.worst()], state.load[state.ranked(0)]);
            let cost = worst - (worst - lightest) * part * part;
            let fits = Fits::below(cost, &state, state.worst());
            prop_assert_eq!(missed(&fits, &state, cost), 0);
            // What is told beyond that fits but for rounding.
            let nearly = partners(&state, cost + 16.0 * f64::from(f32::EPSILON) * (cost + worst));
            prop_assert!(found(&fits, &state).iter().all(|rank| nearly.contains(rank)));
        }
    }

    #[test]
    fn a_partner_that_is_missed_would_be_seen() {
        let loads: Vec<u32> = (0..60).map(|i| 1_000 + i * i * 37 % 4_001).collect();
        let state = state(&loads, 2);
        let worst = state.load[state.worst()];
        let cost = worst - 1.0;
        let fits = Fits::below(cost, &state, state.worst());
        assert!(!partners(&state, cost).is_empty());
        assert_eq!(missed(&fits, &state, cost), 0);
        // Looked for below another cost, not as far in the order, or for one replica alone.
        let lower = Fits::below(worst * 0.7, &state, state.worst());
        assert!(missed(&lower, &state, cost) > 0);
        assert!(missed(&Fits { end: 1, ..fits }, &state, cost) > 0);
        let mut one = fits;
        one.comes[0] = f32::NEG_INFINITY;
        one.comes[1] = f32::NEG_INFINITY;
        assert!(missed(&one, &state, cost) > 0);
    }
}
