//! Layers without load: nothing to balance, so nothing is moved that need not be.

use std::ops::Range;

use super::fill::{FillScratch, fill};
use super::state::{NONE, State};

/// Takes over what the live ranks hold, gives experts that have no copy a place, and fills empty places. The state
/// must be empty; `own` are the slots of each live rank. Second copies on a rank and replicas beyond `limit` go.
pub(super) fn keep_in_place(
    state: &mut State,
    own: &[Range<usize>],
    current: &[i32],
    limit: usize,
    scratch: &mut FillScratch,
) {
    for expert in 0..state.count.len() as u32 {
        state.set_count(expert, 0);
    }
    for (rank, own) in own.iter().enumerate() {
        let mut places = state.places(rank);
        for slot in own.clone() {
            let Ok(expert) = u32::try_from(current[slot]) else { continue };
            let count = state.count[expert as usize];
            if (count as usize) < limit && !state.holds(rank, expert) {
                // A rank has room for as many experts as there are, so that a place is left for a new one.
                let Some(place) = places.next() else { break };
                state.expert[place] = expert;
                state.set_count(expert, count + 1);
            }
        }
    }
    fill(state, limit, scratch);
    // Without an empty place, an expert with several replicas makes way.
    for expert in 0..state.count.len() as u32 {
        if state.count[expert as usize] > 0 {
            continue;
        }
        let count = |&place: &usize| match state.expert[place] {
            NONE => 0,
            held => state.count[held as usize],
        };
        let most = (0..state.expert.len()).rev().max_by_key(count);
        let Some(place) = most.filter(|place| count(place) > 1) else { break };
        let old = state.expert[place];
        state.set_count(old, state.count[old as usize] - 1);
        state.set_count(expert, 1);
        state.expert[place] = expert;
    }
    state.settle();
}
