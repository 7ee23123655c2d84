//! Packing replicas on ranks.

use super::fill::{FillScratch, fill};
use super::state::State;
use crate::layer::{Ranks, key_id, lightest_first};
use crate::order::Tournament;

/// Memory of the packing.
#[derive(Debug, Default)]
pub(super) struct PackScratch {
    /// Ranks with room, lightest first.
    open: Tournament,
    /// Where the next expert of each rank goes, and where its room ends.
    next: Vec<(usize, usize)>,
    /// Ranks that got a copy of the expert at hand, with the keys that they get back.
    aside: Vec<(usize, u64)>,
    fill: FillScratch,
}

impl PackScratch {
    /// The memory of filling alone.
    pub(super) fn fill(&mut self) -> &mut FillScratch {
        &mut self.fill
    }
}

/// Places the replicas of the experts in `sequence`, largest first, each on the lightest rank with room that does not
/// hold the expert yet (ties: lowest rank): Graham's longest-first rule with a limit on the number per rank. Then
/// fills the places that are left.
pub(super) fn pack(
    state: &mut State,
    ranks: &Ranks,
    sequence: &[u64],
    limit: usize,
    scratch: &mut PackScratch,
) {
    let PackScratch { open, next, aside, fill: fill_scratch } = scratch;
    next.clear();
    next.extend((0..ranks.len()).map(|rank| (state.places(rank).start, state.places(rank).end)));
    open.start(next.iter().enumerate().map(
        |(rank, (start, end))| {
            if start == end { u64::MAX } else { lightest_first(0.0, rank) }
        },
    ));
    let (mut whole, mut top) = (true, open.top());
    for &key in sequence {
        let expert = key_id(key);
        let (copies, size) = (state.count[expert], state.size[expert]);
        let mut place = |rank: usize| {
            let (place, end) = &mut next[rank];
            state.expert[*place] = expert as u32;
            state.load[rank] += size;
            *place += 1;
            if place == end {
                u64::MAX
            } else {
                lightest_first(state.load[rank] * state.slowness[rank], rank)
            }
        };
        if copies == 1 && top != u64::MAX {
            let rank = key_id(top);
            top = open.set(rank, place(rank));
            continue;
        }
        aside.clear();
        let mut placed = 0;
        while placed < copies && top != u64::MAX {
            let rank = key_id(top);
            top = open.set(rank, u64::MAX);
            aside.push((rank, place(rank)));
            placed += 1;
        }
        if placed < copies {
            // The rest of the copies would be second ones on their ranks.
            state.set_count(expert as u32, placed);
            whole = false;
        }
        for &(rank, back) in aside.iter() {
            top = open.set(rank, back);
        }
    }
    if !whole || top != u64::MAX {
        fill(state, limit, fill_scratch);
    }
    state.settle();
}
