//! Replacing a replica of one expert by a replica of another.

use super::state::{NONE, State};
use crate::layer::replica_units;

/// Memory of the search.
#[derive(Debug, Default)]
pub(super) struct ReplaceScratch {
    /// What each expert means to its holders, `[E]`.
    losers: Vec<Loser>,
    /// Places of experts that may lose a replica.
    spare: Vec<usize>,
    /// Replicas that the worst rank may share with another.
    shared: Vec<Shared>,
    /// Load of a replica of each expert that gets one more; infinite if it may not. Filled when first needed.
    gained: Vec<f64>,
    changed: Vec<usize>,
}

/// What becomes of an expert that loses a replica.
#[derive(Debug, Clone, Copy)]
struct Loser {
    /// What each of its other replicas then takes more; infinite if it may not.
    rise: f64,
    /// Whether a holder cannot take more.
    full: bool,
    /// The two highest costs among its holders.
    first: f64,
    first_rank: usize,
    second: f64,
}

impl Loser {
    const NONE: Self = Self { rise: f64::INFINITY, full: false, first: 0.0, first_rank: 0, second: 0.0 };

    fn add(&mut self, cost: f64, rank: usize) {
        if cost > self.first {
            (self.second, self.first, self.first_rank) = (self.first, cost, rank);
        } else if cost > self.second {
            self.second = cost;
        }
    }

    /// Highest cost among its other holders once `rank` has lost it. Speeds differ: the rise is largest on the slowest
    /// rank, whose slowness is 1.
    fn others(&self, rank: usize) -> f64 {
        self.rise + if self.first_rank == rank { self.second } else { self.first }
    }
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
/// its other holders rising above `highest`. That is asked first, once per expert.
pub(super) fn replace(
    state: &mut State,
    a: usize,
    limit: usize,
    [highest, goal]: [f64; 2],
    scratch: &mut ReplaceScratch,
) -> bool {
    let ReplaceScratch { losers, spare, shared, gained, changed } = scratch;
    if !collect(state, highest, losers, spare) {
        return false;
    }
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
    for &place in spare.iter() {
        if best <= goal {
            break;
        }
        let (b, f) = (state.rank_of(place), state.expert[place]);
        let lost = state.place_load[place];
        if a != b && (state.load[b] - lost + least) * state.slowness[b] >= best {
            continue;
        }
        let others = losers[f as usize].others(b);
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
                consider(g as u32, (state.load[a] - lost + gained) * state.slowness[a]);
            }
        } else {
            // `a` does not hold `f`: it is above `highest` as it is.
            for g in shared.iter() {
                consider(g.expert, g.cost.max((state.load[b] - lost + g.gained) * state.slowness[b]));
            }
        }
    }
    let Some((place, g)) = found else { return false };
    apply(state, place, g, changed);
    true
}

/// Finds the experts that may lose a replica, and where they are; false if there are none.
fn collect(state: &State, highest: f64, losers: &mut Vec<Loser>, spare: &mut Vec<usize>) -> bool {
    losers.clear();
    losers.extend(state.units.iter().zip(&state.count).zip(&state.size).map(|((&units, &count), &size)| {
        Loser {
            rise: if count > 1 { replica_units(units, count - 1) - size } else { f64::INFINITY },
            ..Loser::NONE
        }
    }));
    let least_rise = losers.iter().map(|loser| loser.rise).fold(f64::INFINITY, f64::min);
    // Two holders that cannot take more, and no place is left to lose a replica at. Lighter ranks can all take more.
    let heavy = (0..state.ranks()).rev().map(|at| state.ranked(at));
    for rank in heavy.take_while(|&rank| state.cost(rank) + least_rise >= highest) {
        let cost = state.cost(rank);
        for &expert in &state.expert[state.places(rank)] {
            if let Some(loser) = losers.get_mut(expert as usize)
                && cost + loser.rise >= highest
            {
                if loser.full {
                    loser.rise = f64::INFINITY;
                }
                loser.full = true;
            }
        }
    }
    spare.clear();
    for rank in (0..state.ranks()).map(|at| state.ranked(at)) {
        let places = state.places(rank);
        for (&expert, place) in state.expert[places.clone()].iter().zip(places) {
            if let Some(loser) = losers.get_mut(expert as usize)
                && loser.rise < f64::INFINITY
            {
                loser.add(state.cost(rank), rank);
                spare.push(place);
            }
        }
    }
    !spare.is_empty()
}

fn fill_gained(state: &State, limit: usize, gained: &mut Vec<f64>) {
    if gained.is_empty() {
        gained.extend(state.units.iter().zip(&state.count).map(|(&units, &count)| {
            if (count as usize) < limit { replica_units(units, count + 1) } else { f64::INFINITY }
        }));
    }
}

/// Puts `g` in `place` and brings every rank that holds either expert up to date.
fn apply(state: &mut State, place: usize, g: u32, changed: &mut Vec<usize>) {
    let f = state.expert[place];
    state.expert[place] = g;
    state.set_count(f, state.count[f as usize] - 1);
    state.set_count(g, state.count[g as usize] + 1);
    changed.clear();
    // A rank that held both, or gets one for the other, is there once or twice: the second time nothing is left to do.
    let held = |(at, &expert): (usize, &u32)| (expert == f || expert == g).then(|| state.rank_of(at));
    changed.extend(state.expert.iter().enumerate().filter_map(held));
    for &rank in changed.iter() {
        state.settle_rank(rank);
    }
}
