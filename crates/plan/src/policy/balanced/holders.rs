//! Which ranks hold each expert, and what its loss of a replica would mean to them.

use super::state::{NONE, State};
use crate::layer::replica_units;

/// Lists of the ranks that hold each expert, linked through a node per filled place, so that a replica changes rank or
/// expert without a look at any other expert. A list is in no particular order: nothing may depend on one.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// First node of each expert, [`NONE`] = no holder, `[E]`.
    first: Vec<u32>,
    nodes: Vec<Node>,
    /// Found when asked for, and good until a holder's cost or the number of holders changes, `[E]`.
    loser: Vec<Loser>,
    changed: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    rank: u32,
    /// The next node of the same expert, [`NONE`] after the last.
    next: u32,
}

/// What becomes of an expert that loses a replica.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Loser {
    /// The highest cost among its holders once another than `heaviest` has lost it; infinite if it has no other. NaN if
    /// not known.
    others: f64,
    heaviest: u32,
    /// The same once `heaviest` has lost it.
    without: f64,
}

impl Loser {
    const UNKNOWN: Self = Self { others: f64::NAN, heaviest: 0, without: f64::NAN };
    /// It has one replica, which it may not lose.
    const LAST: Self = Self { others: f64::INFINITY, heaviest: 0, without: f64::INFINITY };
}

impl Holders {
    /// Forgets everything: ranks have been filled anew. Lists are made when first needed.
    pub(super) fn clear(&mut self) {
        self.first.clear();
        self.nodes.clear();
        self.loser.clear();
    }

    /// Makes the lists, unless they are there.
    pub(super) fn find(&mut self, state: &State) {
        if !self.first.is_empty() {
            return;
        }
        self.first.resize(state.units.len(), NONE);
        self.loser.resize(state.units.len(), Loser::UNKNOWN);
        for (place, &expert) in state.expert.iter().enumerate().filter(|&(_, &expert)| expert != NONE) {
            let next = std::mem::replace(&mut self.first[expert as usize], self.nodes.len() as u32);
            self.nodes.push(Node { rank: state.rank_of(place) as u32, next });
        }
    }

    /// The ranks that hold an expert, each once.
    fn of(&self, expert: u32) -> impl Iterator<Item = usize> + '_ {
        let mut at = self.first[expert as usize];
        std::iter::from_fn(move || {
            let node = self.nodes.get(at as usize)?;
            at = node.next;
            Some(node.rank as usize)
        })
    }

    /// The highest cost among the other holders of an expert once `rank` has lost it; infinite if there are none.
    #[inline]
    pub(super) fn others(&mut self, state: &State, expert: u32, rank: usize) -> f64 {
        let mut loser = self.loser[expert as usize];
        if loser.others.is_nan() {
            loser = self.loser(state, expert);
            self.loser[expert as usize] = loser;
        }
        if loser.heaviest as usize == rank { loser.without } else { loser.others }
    }

    #[inline(never)]
    fn loser(&self, state: &State, expert: u32) -> Loser {
        let e = expert as usize;
        if state.count[e] <= 1 {
            return Loser::LAST;
        }
        let (mut heaviest, mut first, mut second) = (0, 0.0, 0.0);
        // In any order: of two that cost the same it does not matter which is the heaviest.
        for rank in self.of(expert) {
            let cost = state.cost(rank);
            if cost > first {
                (heaviest, first, second) = (rank as u32, cost, first);
            } else if cost > second {
                second = cost;
            }
        }
        // Speeds differ: the rise is largest on the slowest rank, whose slowness is 1.
        let rise = replica_units(state.units[e], state.count[e] - 1) - state.size[e];
        Loser { others: first + rise, heaviest, without: second + rise }
    }

    /// Follows [`State::exchange`].
    pub(super) fn exchanged(&mut self, state: &State, a: usize, b: usize, pairs: &[(u32, u32)]) {
        if self.first.is_empty() {
            return;
        }
        for &(expert_a, expert_b) in pairs {
            for (expert, from, to) in [(expert_a, a, b), (expert_b, b, a)] {
                let mut at = self.first.get(expert as usize).copied().unwrap_or(NONE);
                while let Some(node) = self.nodes.get_mut(at as usize) {
                    if node.rank as usize == from {
                        node.rank = to as u32;
                        break;
                    }
                    at = node.next;
                }
            }
        }
        self.cost_changed(state, a);
        self.cost_changed(state, b);
    }

    /// Puts `g` in the place of a replica of `f` that is not the last, and brings every rank that holds either up to date.
    pub(super) fn replace(&mut self, state: &mut State, place: usize, g: u32) {
        let (rank, f) = (state.rank_of(place), state.expert[place]);
        state.expert[place] = g;
        state.set_count(f, state.count[f as usize] - 1);
        state.set_count(g, state.count[g as usize] + 1);
        self.relink(rank, f, g);
        let mut changed = std::mem::take(&mut self.changed);
        changed.clear();
        // A rank that holds both is there twice: the second time nothing is left to do.
        changed.extend(self.of(f).chain(self.of(g)));
        for &rank in &changed {
            state.settle_rank(rank);
            self.cost_changed(state, rank);
        }
        self.changed = changed;
    }

    /// The node of `f` on `rank` becomes one of `g`.
    fn relink(&mut self, rank: usize, f: u32, g: u32) {
        let (mut before, mut at) = (NONE, self.first[f as usize]);
        while let Some(&Node { rank: held, next }) = self.nodes.get(at as usize) {
            if held as usize != rank {
                (before, at) = (at, next);
                continue;
            }
            match self.nodes.get_mut(before as usize) {
                Some(before) => before.next = next,
                None => self.first[f as usize] = next,
            }
            self.nodes[at as usize].next = std::mem::replace(&mut self.first[g as usize], at);
            return;
        }
    }

    /// What experts of a rank mean to their holders is to be found again.
    fn cost_changed(&mut self, state: &State, rank: usize) {
        for &expert in &state.expert[state.places(rank)] {
            if let Some(loser) = self.loser.get_mut(expert as usize) {
                *loser = Loser::UNKNOWN;
            }
        }
    }
}
