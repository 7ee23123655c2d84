//! Which ranks hold each expert, and what its loss of a replica would mean to them.

use super::state::{NONE, State};
use crate::layer::{lightest_first, replica_units};

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
    /// Ranks whose load replacements changed, since this was made.
    pub(super) all_changed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    rank: u32,
    /// The next node of the same expert, [`NONE`] after the last.
    next: u32,
}

/// What becomes of an expert that loses a replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Loser {
    /// The highest cost among its holders once another than `heaviest` has lost it. NaN if not known.
    others: f64,
    heaviest: u32,
    /// The holder with the least cost, the lowest rank among equals; [`NONE`] until it is asked for.
    lightest: u32,
    /// The same as `others` once `heaviest` has lost it.
    without: f64,
}

impl Loser {
    const UNKNOWN: Self = Self { others: f64::NAN, heaviest: 0, lightest: NONE, without: f64::NAN };
    /// It has one replica, which it may not lose.
    const LAST: Self = Self { others: f64::INFINITY, heaviest: 0, lightest: NONE, without: f64::INFINITY };

    /// The highest cost among the other holders once `rank` has lost it.
    #[inline]
    pub(super) fn others(&self, rank: usize) -> f64 {
        if self.heaviest as usize == rank { self.without } else { self.others }
    }

    /// The same for the holder that is best to lose it.
    #[inline]
    pub(super) fn least(&self) -> f64 {
        self.without
    }

    /// The holder with the highest cost.
    #[inline]
    pub(super) fn heaviest(&self) -> usize {
        self.heaviest as usize
    }
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
    pub(super) fn of(&self, expert: u32) -> impl Iterator<Item = usize> + '_ {
        let mut at = self.first[expert as usize];
        std::iter::from_fn(move || {
            let node = self.nodes.get(at as usize)?;
            at = node.next;
            Some(node.rank as usize)
        })
    }

    /// What becomes of an expert that loses a replica. If that brings one of its holders to `highest` whoever loses it,
    /// costs may be lower than they are, but not below `highest`; it must not be higher in later calls.
    #[inline]
    pub(super) fn loser(&mut self, state: &State, expert: u32, highest: f64) -> Loser {
        let known = self.loser[expert as usize];
        if !known.others.is_nan() {
            return known;
        }
        let loser = self.find_loser(state, expert, highest);
        self.loser[expert as usize] = loser;
        loser
    }

    #[inline(never)]
    fn find_loser(&self, state: &State, expert: u32, highest: f64) -> Loser {
        let e = expert as usize;
        if state.count[e] <= 1 {
            return Loser::LAST;
        }
        // Speeds differ: the rise is largest on the slowest rank, whose slowness is 1.
        let rise = replica_units(state.units[e], state.count[e] - 1) - state.size[e];
        let (mut heaviest, mut first, mut second) = (0, 0.0, 0.0);
        // In any order: of two that cost the same it does not matter which is the heaviest.
        for rank in self.of(expert) {
            let cost = state.cost(rank);
            if cost > first {
                (heaviest, first, second) = (rank as u32, cost, first);
            } else if cost > second {
                second = cost;
            }
            if second + rise >= highest {
                break;
            }
        }
        Loser { others: first + rise, heaviest, lightest: NONE, without: second + rise }
    }

    /// The holder of an expert with the least cost, the lowest rank among equals.
    pub(super) fn lightest(&mut self, state: &State, expert: u32) -> usize {
        let known = self.loser[expert as usize].lightest;
        if known != NONE {
            return known as usize;
        }
        let cost = |rank: usize| lightest_first(state.cost(rank), rank);
        let found = self.of(expert).min_by_key(|&rank| cost(rank)).unwrap_or_default();
        self.loser[expert as usize].lightest = found as u32;
        found
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

    /// Puts `g` in the place of the replica of `f` on a rank, not the last one of `f`, and brings every rank that holds
    /// either up to date.
    pub(super) fn replace(&mut self, state: &mut State, rank: usize, f: u32, g: u32) {
        state.put_for(rank, f, g);
        state.set_count(f, state.count[f as usize] - 1);
        state.set_count(g, state.count[g as usize] + 1);
        self.relink(rank, f, g);
        let mut changed = std::mem::take(&mut self.changed);
        changed.clear();
        // A rank that holds both is there twice: the second time nothing is left to do.
        changed.extend(self.of(f).chain(self.of(g)));
        self.all_changed += changed.len() as u64;
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

#[cfg(test)]
mod tests {
    use eplb_core::Topology;

    use super::*;
    use crate::layer::Ranks;

    /// Ranks that hold what is written, expert `e` having 60 and `e` tokens.
    fn state(experts: usize, held: &[&[u32]]) -> State {
        let slots = held[0].len();
        let ranks = Ranks::live(&Topology::uniform(held.len(), held.len() * slots).unwrap(), experts);
        let units: Vec<f64> = (0..experts).map(|e| 60.0 + e as f64).collect();
        let mut state = State::default();
        state.reset(&ranks, &units, &vec![0; experts], &vec![0.0; experts]);
        for (rank, held) in held.iter().enumerate() {
            for (place, &expert) in state.places(rank).zip(held.iter()) {
                state.expert[place] = expert;
                if expert != NONE {
                    state.set_count(expert, state.count[expert as usize] + 1);
                }
            }
        }
        state.settle();
        state
    }

    /// Compares lists and what is remembered with what a look at every place tells.
    fn check(holders: &mut Holders, state: &State) -> Result<(), String> {
        for expert in 0..state.units.len() as u32 {
            let mut listed: Vec<usize> = holders.of(expert).collect();
            listed.sort_unstable();
            let held: Vec<usize> = (0..state.ranks()).filter(|&rank| state.holds(rank, expert)).collect();
            if listed != held {
                return Err(format!("expert {expert} is on {held:?}, listed on {listed:?}"));
            }
            let count = held.len() as u32;
            let loser = holders.loser(state, expert, f64::INFINITY);
            for &rank in held.iter().filter(|_| count > 1) {
                let rise =
                    replica_units(state.units[expert as usize], count - 1) - state.size[expert as usize];
                let others = held.iter().filter(|&&other| other != rank).map(|&other| state.cost(other));
                let wanted = others.fold(0.0, f64::max) + rise;
                if loser.others(rank) != wanted || loser.least() > wanted {
                    return Err(format!("expert {expert} without rank {rank}: {wanted}, not {loser:?}"));
                }
            }
            if count <= 1 && loser.least() != f64::INFINITY {
                return Err(format!("expert {expert} may not lose its only replica"));
            }
            let lightest = held.iter().copied().min_by(|&a, &b| state.cost(a).total_cmp(&state.cost(b)));
            if count > 0 && lightest != Some(holders.lightest(state, expert)) {
                return Err(format!("expert {expert} is lightest on {lightest:?}, not as in {loser:?}"));
            }
        }
        Ok(())
    }

    #[test]
    fn lists_follow_every_change() {
        let mut state = state(6, &[&[0, 1, 2], &[0, 3, NONE], &[0, 1, 4], &[5, 3, 2]]);
        let mut holders = Holders::default();
        holders.exchanged(&state, 0, 1, &[(1, 3)]);
        assert!(holders.first.is_empty(), "nothing is followed before it was asked for");
        holders.find(&state);
        check(&mut holders, &state).unwrap();
        for (a, b, pairs) in [(0, 1, &[(2, NONE)][..]), (2, 3, &[(1, 3), (4, 2)]), (0, 2, &[(1, 2)])] {
            state.exchange(a, b, pairs);
            holders.exchanged(&state, a, b, pairs);
            check(&mut holders, &state).unwrap();
        }
        holders.replace(&mut state, 2, 3, 5);
        check(&mut holders, &state).unwrap();
        holders.replace(&mut state, 1, 2, 4);
        check(&mut holders, &state).unwrap();
    }

    #[test]
    fn a_change_that_lists_were_not_told_of_is_noticed() {
        let mut state = state(6, &[&[0, 1, 2], &[0, 3, NONE], &[0, 1, 4], &[5, 3, 2]]);
        let mut holders = Holders::default();
        holders.find(&state);
        check(&mut holders, &state).unwrap();
        state.exchange(0, 1, &[(1, 3)]);
        holders.loser.fill(Loser::UNKNOWN);
        assert!(check(&mut holders, &state).unwrap_err().contains("is on"));
        holders.clear();
        holders.find(&state);
        check(&mut holders, &state).unwrap();
        // Costs that were remembered from before.
        let old = holders.loser.clone();
        state.exchange(0, 1, &[(3, NONE)]);
        holders.exchanged(&state, 0, 1, &[(3, NONE)]);
        holders.loser = old;
        assert!(check(&mut holders, &state).unwrap_err().contains("without rank"));
        // A lightest holder that another has become lighter than.
        holders.loser.fill(Loser::UNKNOWN);
        check(&mut holders, &state).unwrap();
        holders.loser[0].lightest = holders.loser[0].heaviest;
        assert!(check(&mut holders, &state).unwrap_err().contains("is lightest on"));
    }

    #[test]
    fn an_expert_that_nobody_can_lose_is_told_early_and_never_too_low() {
        let state = state(3, &[&[0, 1], &[0, 1], &[0, 2], &[0, 2]]);
        let mut holders = Holders::default();
        holders.find(&state);
        let highest = 40.0;
        let early = holders.loser(&state, 0, highest);
        assert!(early.least() >= highest);
        holders.clear();
        holders.find(&state);
        assert!(holders.loser(&state, 0, f64::INFINITY).least() >= early.least());
    }
}
