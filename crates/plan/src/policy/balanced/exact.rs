//! The best placement of a layer with few experts on few ranks, by going through all of them.
//!
//! Refinement changes one worst rank and one lighter one at a time. With three ranks of different speeds and a handful
//! of experts that is not enough: the best plan may differ in the ranks of several experts at once, and what local
//! search leaves there is large, as one expert is a large part of a rank. Where placements are few, branch and
//! bound finds the best: experts by load descending, each on every set of ranks that has room and stays below the best
//! known cost.

use super::state::{NONE, State};
use crate::layer::{heaviest_first, key_id, replica_units};

/// Layers of at most this many ranks and experts are gone through...
const MOST_RANKS: usize = 4;
const MOST_EXPERTS: usize = 8;

/// ...as long as that takes at most so many steps. Up to 6 experts on 3 ranks end long before.
const MOST_STEPS: usize = 1 << 16;

/// Memory of the search.
#[derive(Debug, Default)]
pub(super) struct Exact {
    /// Experts by load descending, as keys.
    order: Vec<u64>,
    /// Load of the experts from each position of `order` on.
    rest: Vec<f64>,
    /// Load and places left of each rank.
    load: Vec<f64>,
    left: Vec<usize>,
    /// Ranks of each expert in `order`, as bits: at hand, and of the best placement found.
    set: Vec<u32>,
    best: Vec<u32>,
    steps: usize,
}

/// What the search must keep to.
#[derive(Debug, Clone, Copy)]
struct Rules<'a> {
    state: &'a State,
    limit: usize,
    /// Places that stay empty whatever is done.
    empty: usize,
}

impl Exact {
    /// Replaces the placement in `state` by the best one, if it is small enough and there is a better one. As many
    /// places are filled as before.
    pub(super) fn improve(&mut self, state: &mut State, limit: usize) {
        let (ranks, experts) = (state.ranks(), state.units.len());
        if ranks > MOST_RANKS || experts > MOST_EXPERTS || state.count.contains(&0) {
            return;
        }
        self.order.clear();
        self.order.extend(state.units.iter().enumerate().map(|(e, &units)| heaviest_first(units, e)));
        self.order.sort_unstable();
        self.rest.clear();
        self.rest.resize(experts + 1, 0.0);
        for (at, &key) in self.order.iter().enumerate().rev() {
            self.rest[at] = self.rest[at + 1] + state.units[key_id(key)];
        }
        self.load.clear();
        self.load.resize(ranks, 0.0);
        self.left.clear();
        self.left.extend((0..ranks).map(|rank| state.places(rank).len()));
        self.set.clear();
        self.set.resize(experts, 0);
        self.best.clear();
        self.steps = 0;
        let filled: usize = state.count.iter().map(|&count| count as usize).sum();
        let rules = Rules { state, limit, empty: self.left.iter().sum::<usize>() - filled };
        let _ = self.place(rules, 0, state.cost(state.worst()));
        if !self.best.is_empty() {
            self.apply(state);
        }
    }

    /// Goes through the placements of the experts from position `at` of the order on that cost less than `known`. Returns
    /// the least cost known afterwards.
    fn place(&mut self, rules: Rules<'_>, at: usize, known: f64) -> f64 {
        let Rules { state, limit, empty } = rules;
        let (ranks, experts) = (self.left.len(), self.order.len() - at);
        let left: usize = self.left.iter().sum();
        if experts == 0 {
            if left != empty {
                return known;
            }
            self.best.clone_from(&self.set);
            return (0..ranks).map(|rank| self.load[rank] * state.slowness[rank]).fold(0.0, f64::max);
        }
        // Each expert left needs a place, and all but `empty` places an expert.
        let most: usize = self.left.iter().map(|&left| left.min(experts)).sum();
        let wanted = left - empty;
        let room: f64 = (0..ranks).map(|rank| known / state.slowness[rank] - self.load[rank]).sum();
        if wanted < experts || wanted > most.min(experts * limit) || room <= self.rest[at] {
            return known;
        }
        let units = state.units[key_id(self.order[at])];
        let mut known = known;
        for set in 1..1u32 << ranks {
            let count = set.count_ones();
            if count as usize > limit {
                continue;
            }
            self.steps += 1;
            if self.steps > MOST_STEPS {
                break;
            }
            let size = replica_units(units, count);
            let mut each = (0..ranks).filter(|&rank| set & (1 << rank) != 0);
            if !each
                .all(|rank| self.left[rank] > 0 && (self.load[rank] + size) * state.slowness[rank] < known)
            {
                continue;
            }
            self.set[at] = set;
            self.turn(set, size, 1);
            known = self.place(rules, at + 1, known);
            self.turn(set, size, -1);
        }
        known
    }

    /// Puts a replica on each rank of a set, or takes it away again. Loads are whole units, so that nothing is left.
    fn turn(&mut self, set: u32, size: f64, sign: isize) {
        for rank in (0..self.left.len()).filter(|&rank| set & (1 << rank) != 0) {
            self.load[rank] += size * sign as f64;
            self.left[rank] = self.left[rank].wrapping_add_signed(-sign);
        }
    }

    fn apply(&self, state: &mut State) {
        state.expert.fill(NONE);
        for (&key, &set) in self.order.iter().zip(&self.best) {
            state.set_count(key_id(key) as u32, set.count_ones());
        }
        for rank in 0..state.ranks() {
            let held = self.order.iter().zip(&self.best).filter(|&(_, set)| set & (1 << rank) != 0);
            for (place, (&key, _)) in state.places(rank).zip(held) {
                state.expert[place] = key_id(key) as u32;
            }
        }
        state.settle();
    }
}
