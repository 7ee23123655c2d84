//! Replacing a replica of one expert by a replica of another.

use super::holders::Holders;
use super::state::{NONE, State};
use crate::layer::replica_units;

/// Memory of the search.
#[derive(Debug, Default)]
pub(super) struct ReplaceScratch {
    /// Of the layer at hand.
    pub(super) holders: Holders,
    /// Replicas that the worst rank may share with another.
    shared: Vec<Shared>,
    /// Load of a replica of each expert that gets one more; infinite if it may not. Filled when first needed.
    gained: Vec<f64>,
}

/// An expert of the worst rank that gets one more replica elsewhere.
#[derive(Debug, Clone, Copy)]
struct Shared {
    expert: u32,
    gained: f64,
    /// Cost of the worst rank then.
    cost: f64,
}

/// Lowers the worst rank `a` below `highest` by putting an expert `g` in place of one replica of `f`: either one more
/// replica of an expert of `a` on another rank, or on `a` itself a lighter expert. Of such changes, the one
/// with the lowest cost among the ranks that it touches; the first that leaves them at or below `goal`, lightest ranks
/// first, ends the search.
///
/// With few slots per rank most places hold an expert with other replicas, but hardly any expert can lose one without
/// its other holders rising above `highest`. What that would bring them to is remembered from search to search.
pub(super) fn replace(
    state: &mut State,
    a: usize,
    limit: usize,
    [highest, goal]: [f64; 2],
    scratch: &mut ReplaceScratch,
) -> bool {
    let ReplaceScratch { holders, shared, gained } = scratch;
    holders.find(state);
    shared.clear();
    for &expert in &state.expert[state.places(a)] {
        if expert != NONE && (state.count[expert as usize] as usize) < limit {
            let e = expert as usize;
            let gained = replica_units(state.units[e], state.count[e] + 1);
            let cost = (state.load[a] - state.size[e] + gained) * state.slowness[a];
            if cost < highest {
                shared.push(Shared { expert, gained, cost });
            }
        }
    }
    let least = shared.iter().map(|g| g.gained).fold(f64::INFINITY, f64::min);
    let goal = shared.iter().map(|g| g.cost).fold(f64::INFINITY, f64::min).max(goal);
    gained.clear();
    let (mut best, mut found) = (highest, None);
    for b in (0..state.ranks()).map(|at| state.ranked(at)) {
        if best <= goal {
            break;
        }
        let (load, slowness, places) = (state.load[b], state.slowness[b], state.places(b));
        let held = state.expert[places.clone()].iter().zip(&state.place_load[places.clone()]);
        for ((&f, &lost), place) in held.zip(places) {
            // Later places lose less still.
            if f == NONE || (a != b && (load - lost + least) * slowness >= best) {
                break;
            }
            let others = holders.others(state, f, b);
            if others >= best {
                continue;
            }
            let mut consider = |g: u32, cost: f64| {
                let cost = cost.max(others);
                if cost < best && !state.holds(b, g) {
                    best = cost;
                    found = Some((place, g));
                }
            };
            if a == b {
                fill_gained(state, limit, gained);
                for (g, gained) in gained.iter().enumerate() {
                    consider(g as u32, (load - lost + gained) * slowness);
                }
            } else {
                // `a` does not hold `f`: it is above `highest` as it is.
                for g in shared.iter() {
                    consider(g.expert, g.cost.max((load - lost + g.gained) * slowness));
                }
            }
            if best <= goal {
                break;
            }
        }
    }
    let Some((place, g)) = found else { return false };
    holders.replace(state, place, g);
    true
}

fn fill_gained(state: &State, limit: usize, gained: &mut Vec<f64>) {
    if gained.is_empty() {
        gained.extend(state.units.iter().zip(&state.count).map(|(&units, &count)| {
            if (count as usize) < limit { replica_units(units, count + 1) } else { f64::INFINITY }
        }));
    }
}
