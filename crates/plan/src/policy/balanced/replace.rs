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

/// A replica of an expert put in a place, and what it leads to.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// The highest cost among the ranks that it touches, or the goal, and what the rank with the place costs before.
    cost: [f64; 2],
    rank: usize,
    f: u32,
    g: u32,
}

impl Found {
    /// Lower costs come first, then lower ranks and experts.
    fn is_before(&self, other: &Self) -> bool {
        let key = |found: &Self| (found.rank, found.f, found.g);
        self.cost < other.cost || (self.cost == other.cost && key(self) < key(other))
    }
}

/// Lowers the worst rank `a` below `highest` by putting an expert `g` in place of one replica of `f`: either one more
/// replica of an expert of `a` on another rank, or on `a` itself a lighter expert. Of such changes, the one
/// with the lowest cost among the ranks that it touches; of those that bring them to `goal` or below, one on the lightest rank.
///
/// With few slots per rank most places hold an expert with other replicas, but hardly any expert can lose one without
/// its other holders rising above `highest`. That is asked first, once per expert.
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
    let mut best = Found { cost: [highest; 2], rank: 0, f: NONE, g: NONE };
    for f in 0..state.units.len() as u32 {
        let loser = holders.loser(state, f, highest);
        if loser.least() > best.cost[0] {
            continue;
        }
        let lost = state.size[f as usize];
        let mut consider = |b: usize| {
            // Where the goal is reached only lighter ranks are better.
            if best.cost[0] <= goal && state.cost(b) > best.cost[1] {
                return;
            }
            let (load, slowness, others) = (state.load[b] - lost, state.slowness[b], loser.others(b));
            if others > best.cost[0] || (a != b && (load + least) * slowness > best.cost[0]) {
                return;
            }
            let mut weigh = |g: u32, cost: f64| {
                let cost = cost.max(others);
                let found = Found { cost: [cost.max(goal), state.cost(b)], rank: b, f, g };
                if cost < highest && found.is_before(&best) && !state.holds(b, g) {
                    best = found;
                }
            };
            if a == b {
                fill_gained(state, limit, gained);
                for (g, gained) in gained.iter().enumerate() {
                    weigh(g as u32, (load + gained) * slowness);
                }
            } else {
                // `a` does not hold `f`: it is above `highest` as it is.
                for g in shared.iter() {
                    weigh(g.expert, g.cost.max((load + g.gained) * slowness));
                }
            }
        };
        // Of holders alike that are not `a`, and not the heaviest, without which the others have less, the lightest is best.
        let (lightest, heaviest) = (holders.lightest(state, f), loser.heaviest());
        if state.alike && !shared.iter().any(|g| state.holds(lightest, g.expert)) {
            consider(lightest);
            if heaviest != lightest {
                consider(heaviest);
            }
            if a != lightest && a != heaviest && state.holds(a, f) {
                consider(a);
            }
        } else {
            holders.of(f).for_each(consider);
        }
    }
    if best.f == NONE {
        return false;
    }
    holders.replace(state, best.rank, best.f, best.g);
    true
}

fn fill_gained(state: &State, limit: usize, gained: &mut Vec<f64>) {
    if gained.is_empty() {
        gained.extend(state.units.iter().zip(&state.count).map(|(&units, &count)| {
            if (count as usize) < limit { replica_units(units, count + 1) } else { f64::INFINITY }
        }));
    }
}
