//! The engine of `balanced` for other policies: sets of experts for ranks, and the writing of sets.

use std::ops::Range;

use super::keep::KeepScratch;
use super::search::Search;
use super::state::NONE;
use crate::layer::Ranks;

/// Plans a layer, or the part of it that lives on some of the ranks; owns its memory.
#[derive(Debug, Default)]
pub(in crate::policy) struct Sets {
    search: Search,
    keep: KeepScratch,
    count: Vec<u32>,
    size: Vec<f64>,
}

impl Sets {
    /// Plans experts with loads `units` (`[E]`, whole units) for these ranks.
    pub(in crate::policy) fn plan(&mut self, units: &[f64], ranks: &Ranks, limit: usize) {
        self.search.run(units, ranks, limit);
    }

    /// Experts of a rank of the last plan.
    pub(in crate::policy) fn of(&self, rank: usize) -> impl Iterator<Item = u32> + '_ {
        let state = &self.search.state;
        state.expert[state.places(rank)].iter().copied().filter(|&expert| expert != NONE)
    }

    /// Writes sets of experts, one per rank, to `slots` (`[P]`, all -1), each on the rank among those alike that holds most of
    /// it, as `balanced` does. No set has an expert twice.
    pub(in crate::policy) fn write<'a>(
        &mut self,
        set: impl Fn(usize) -> &'a [u32],
        experts: usize,
        ranks: &Ranks,
        own: &[Range<usize>],
        current: Option<&[i32]>,
        slots: &mut [i32],
    ) {
        let Self { search, keep, count, size } = self;
        count.clear();
        count.resize(experts, 0);
        size.clear();
        size.resize(experts, 0.0);
        let state = &mut search.state;
        state.reset(ranks, size, count, size);
        for rank in 0..ranks.len() {
            for (place, &expert) in state.places(rank).zip(set(rank)) {
                state.expert[place] = expert;
                if expert != NONE {
                    state.count[expert as usize] += 1;
                }
            }
        }
        keep.write(state, own, current, slots);
    }
}
