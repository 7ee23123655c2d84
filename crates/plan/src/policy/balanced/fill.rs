//! Filling the places that packing left empty.

use super::state::{NONE, State};

/// Memory of the search.
#[derive(Debug, Default)]
pub(super) struct FillScratch {
    /// From which rank each rank was reached, and which expert would move there.
    reached: Vec<Option<(usize, u32)>>,
    queue: Vec<usize>,
}

/// Gives every empty place an expert, as long as any is possible without a second copy on a rank or more than `limit`
/// replicas. An empty place on a rank can take an expert directly, or take one from another rank whose place is then
/// filled in the same way, and so on: a breadth-first search for an augmenting path, so that places stay empty only if
/// no placement could fill more. Experts without a copy come first, then those with the largest load per replica.
///
/// The caller settles the state afterwards.
pub(super) fn fill(state: &mut State, limit: usize, scratch: &mut FillScratch) {
    for rank in 0..state.ranks() {
        for place in state.places(rank) {
            if state.expert[place] == NONE && !fill_place(state, rank, place, limit, scratch) {
                // What one empty place of a rank cannot get, its next one cannot either.
                break;
            }
        }
    }
}

fn fill_place(
    state: &mut State,
    origin: usize,
    empty: usize,
    limit: usize,
    scratch: &mut FillScratch,
) -> bool {
    let FillScratch { reached, queue } = scratch;
    reached.clear();
    reached.resize(state.ranks(), None);
    queue.clear();
    queue.push(origin);
    let mut head = 0;
    while let Some(&rank) = queue.get(head) {
        head += 1;
        if let Some(expert) = most_wanted(state, rank, limit) {
            shift(state, origin, empty, rank, expert, reached);
            return true;
        }
        // Every expert that `rank` lacks has all the replicas it may have: one could come from a rank that holds it.
        for (other, from) in reached.iter_mut().enumerate().filter(|(other, _)| *other != origin) {
            if from.is_some() {
                continue;
            }
            let experts = &state.expert[state.places(other)];
            if let Some(&expert) = experts.iter().find(|&&e| e != NONE && !state.holds(rank, e)) {
                *from = Some((rank, expert));
                queue.push(other);
            }
        }
    }
    false
}

/// The expert that `rank` lacks and that may get one more replica: one without a copy, else the one with the largest
/// load per replica; the lowest id among equals.
fn most_wanted(state: &State, rank: usize, limit: usize) -> Option<u32> {
    let mut best = None::<(bool, f64, u32)>;
    for (expert, (&count, &size)) in state.count.iter().zip(&state.size).enumerate() {
        let better = |(none, load, _): (bool, f64, u32)| (count == 0, size) > (none, load);
        if (count as usize) < limit && best.is_none_or(better) && !state.holds(rank, expert as u32) {
            best = Some((count == 0, size, expert as u32));
        }
    }
    best.map(|(_, _, expert)| expert)
}

/// Adds a replica of `expert` on the rank `last` and shifts experts along the path back to the empty place.
fn shift(
    state: &mut State,
    origin: usize,
    empty: usize,
    last: usize,
    expert: u32,
    reached: &[Option<(usize, u32)>],
) {
    let (mut rank, mut gets) = (last, expert);
    while let Some((towards, moved)) = reached[rank].filter(|_| rank != origin) {
        if let Some(place) = state.places(rank).find(|&place| state.expert[place] == moved) {
            state.expert[place] = gets;
        }
        (rank, gets) = (towards, moved);
    }
    state.expert[empty] = gets;
    state.set_count(expert, state.count[expert as usize] + 1);
}
