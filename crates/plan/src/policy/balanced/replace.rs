//! Replacing a replica of one expert by a replica of another.

use super::state::{NONE, State};
use crate::layer::replica_units;

/// Memory of the search.
#[derive(Debug, Default)]
pub(super) struct ReplaceScratch {
    /// The two highest costs among the ranks that hold each expert.
    holders: Vec<Holders>,
    /// Places whose expert has another replica.
    spare: Vec<usize>,
    changed: Vec<usize>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Holders {
    first: f64,
    first_rank: usize,
    second: f64,
}

impl Holders {
    fn add(&mut self, cost: f64, rank: usize) {
        if cost > self.first {
            (self.second, self.first, self.first_rank) = (self.first, cost, rank);
        } else if cost > self.second {
            self.second = cost;
        }
    }

    /// Highest cost among holders other than `rank`.
    fn without(&self, rank: usize) -> f64 {
        if self.first_rank == rank { self.second } else { self.first }
    }
}

/// Lowers the worst rank `a` below `highest` by putting an expert `g` in place of one replica of `f`: either one more
/// replica of an expert of `a` on another rank, or on `a` itself a lighter expert. Among all such changes, the one
/// with the lowest cost among the ranks that it touches.
pub(super) fn replace(
    state: &mut State,
    a: usize,
    limit: usize,
    highest: f64,
    scratch: &mut ReplaceScratch,
) -> bool {
    let ReplaceScratch { holders, spare, changed } = scratch;
    collect(state, holders, spare);
    let mut best = highest;
    let mut found = None;
    for &place in spare.iter() {
        let (b, f) = (state.rank_of(place), state.expert[place]);
        let lost = state.size[f as usize];
        let rise = replica_units(state.units[f as usize], state.count[f as usize] - 1) - lost;
        // Speeds differ: the rise is largest on the slowest rank, whose slowness is 1.
        let others = holders[f as usize].without(b) + rise;
        if others >= best {
            continue;
        }
        let mut consider = |state: &State, g: u32, cost_a: f64, cost_b: f64| {
            let cost = cost_a.max(cost_b).max(others);
            if cost < best && !state.holds(b, g) {
                best = cost;
                found = Some((place, g));
            }
        };
        if a == b {
            for g in 0..state.units.len() {
                if (state.count[g] as usize) < limit {
                    let gained = replica_units(state.units[g], state.count[g] + 1);
                    let cost = (state.load[a] - lost + gained) * state.slowness[a];
                    consider(state, g as u32, cost, 0.0);
                }
            }
            continue;
        }
        let risen = if state.holds(a, f) { rise } else { 0.0 };
        for &g in &state.expert[state.places(a)] {
            if g == NONE || g == f || state.count[g as usize] as usize >= limit {
                continue;
            }
            let size = state.size[g as usize];
            let gained = replica_units(state.units[g as usize], state.count[g as usize] + 1);
            let cost_a = (state.load[a] + risen - size + gained) * state.slowness[a];
            let cost_b = (state.load[b] - lost + gained) * state.slowness[b];
            consider(state, g, cost_a, cost_b);
        }
    }
    let Some((place, g)) = found else { return false };
    apply(state, place, g, changed);
    true
}

fn collect(state: &State, holders: &mut Vec<Holders>, spare: &mut Vec<usize>) {
    holders.clear();
    holders.resize(state.units.len(), Holders::default());
    spare.clear();
    for rank in 0..state.ranks() {
        for place in state.places(rank) {
            let expert = state.expert[place];
            if expert != NONE && state.count[expert as usize] > 1 {
                spare.push(place);
                holders[expert as usize].add(state.cost(rank), rank);
            }
        }
    }
}

/// Puts `g` in `place` and brings every rank that holds either expert up to date.
fn apply(state: &mut State, place: usize, g: u32, changed: &mut Vec<usize>) {
    let f = state.expert[place];
    state.expert[place] = g;
    state.set_count(f, state.count[f as usize] - 1);
    state.set_count(g, state.count[g as usize] + 1);
    changed.clear();
    changed.extend((0..state.ranks()).filter(|&rank| state.holds(rank, f) || state.holds(rank, g)));
    for &rank in changed.iter() {
        state.settle_rank(rank);
    }
}
