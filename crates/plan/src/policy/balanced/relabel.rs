//! Which rank takes which set of experts, so that most of them are there already.

use std::ops::Range;

use super::state::{NONE, State};

/// Above this many ranks sets are matched greedily and not improved by exchanges, which cost their square.
const MOST_EXCHANGED: usize = 512;

const FREE: u32 = u32::MAX;

/// Matches sets to ranks; owns its memory.
#[derive(Debug, Default)]
pub(super) struct Relabel {
    /// Rank that each set goes to.
    target: Vec<u32>,
    taken: Vec<bool>,
    /// Ranks that hold each expert now: `holders[start[e]..start[e + 1]]`.
    start: Vec<u32>,
    holders: Vec<u32>,
    /// Experts that a set has in common with each rank.
    common: Vec<u32>,

    /// `(common experts, set, rank)` where there are any, most first.
    pairs: Vec<(u32, u32, u32)>,
    /// Common experts of every set and rank, `[ranks * ranks]`; for exchanges.
    all: Vec<u32>,
}

impl Relabel {
    /// For the set of each rank of the state, the rank that takes it. Sets change places only among ranks with as many
    /// slots (`own`) and the same speed, where it costs no balance. Greedy, the largest overlap first, then
    /// exchanges of two while they keep more; never less than with every set on its own rank.
    pub(super) fn choose(&mut self, state: &State, own: &[Range<usize>], current: &[i32]) -> &[u32] {
        let ranks = own.len();
        let alike =
            |i: usize, j: usize| own[i].len() == own[j].len() && state.slowness[i] == state.slowness[j];
        self.find_holders(state.count.len(), own, current);
        self.find_pairs(state, ranks, alike);
        let Self { target, taken, pairs, .. } = self;
        target.clear();
        target.resize(ranks, FREE);
        taken.clear();
        taken.resize(ranks, false);
        for &(_, i, j) in pairs.iter() {
            if target[i as usize] == FREE && !taken[j as usize] {
                target[i as usize] = j;
                taken[j as usize] = true;
            }
        }
        for (i, to) in target.iter_mut().enumerate().filter(|(_, to)| **to == FREE) {
            // Among ranks alike there are as many sets as ranks, so that one is left.
            let left = (0..ranks).find(|&j| !taken[j] && alike(i, j)).unwrap_or(i);
            *to = left as u32;
            taken[left] = true;
        }
        if ranks <= MOST_EXCHANGED {
            self.exchange(ranks, alike);
        }
        self.compare_with_own();
        &self.target
    }

    /// Leaves every set where it is if that keeps more than what was found.
    fn compare_with_own(&mut self) {
        let Self { target, pairs, .. } = self;
        let (mut kept, mut kept_own) = (0, 0);
        for &(count, i, j) in pairs.iter() {
            kept += if target[i as usize] == j { count } else { 0 };
            kept_own += if i == j { count } else { 0 };
        }
        if kept_own > kept {
            target.iter_mut().zip(0..).for_each(|(to, rank)| *to = rank);
        }
    }

    fn find_holders(&mut self, experts: usize, own: &[Range<usize>], current: &[i32]) {
        let Self { start, holders, .. } = self;
        // Second copies on a rank keep nothing.
        let first = |own: &Range<usize>, slot: usize| {
            usize::try_from(current[slot]).ok().filter(|_| !current[own.start..slot].contains(&current[slot]))
        };
        start.clear();
        start.resize(experts + 2, 0);
        for own in own {
            own.clone().filter_map(|slot| first(own, slot)).for_each(|e| start[e + 2] += 1);
        }
        for e in 2..start.len() {
            start[e] += start[e - 1];
        }
        holders.clear();
        holders.resize(start[experts + 1] as usize, 0);
        for (rank, own) in own.iter().enumerate() {
            for e in own.clone().filter_map(|slot| first(own, slot)) {
                holders[start[e + 1] as usize] = rank as u32;
                start[e + 1] += 1;
            }
        }
    }

    fn find_pairs(&mut self, state: &State, ranks: usize, alike: impl Fn(usize, usize) -> bool) {
        let Self { start, holders, common, pairs, .. } = self;
        pairs.clear();
        common.clear();
        common.resize(ranks, 0);
        for i in 0..ranks {
            let experts =
                || state.expert[state.places(i)].iter().filter(|&&e| e != NONE).map(|&e| e as usize);
            let held = |e: usize| start[e] as usize..start[e + 1] as usize;
            for e in experts() {
                holders[held(e)].iter().for_each(|&j| common[j as usize] += 1);
            }
            for e in experts() {
                for &j in &holders[held(e)] {
                    let count = std::mem::take(&mut common[j as usize]);
                    if count > 0 && alike(i, j as usize) {
                        pairs.push((count, i as u32, j));
                    }
                }
            }
        }
        pairs.sort_unstable_by_key(|&(count, i, j)| (std::cmp::Reverse(count), i, j));
    }

    fn exchange(&mut self, ranks: usize, alike: impl Fn(usize, usize) -> bool) {
        let Self { target, pairs, all, .. } = self;
        all.clear();
        all.resize(ranks * ranks, 0);
        for &(count, i, j) in pairs.iter() {
            all[i as usize * ranks + j as usize] = count;
        }
        let kept = |i: usize, j: u32| all[i * ranks + j as usize];
        // Every exchange keeps more experts than before, so this ends.
        let mut better = true;
        while better {
            better = false;
            for a in 0..ranks {
                for b in a + 1..ranks {
                    let (to_a, to_b) = (target[a], target[b]);
                    if alike(a, b) && kept(a, to_b) + kept(b, to_a) > kept(a, to_a) + kept(b, to_b) {
                        target.swap(a, b);
                        better = true;
                    }
                }
            }
        }
    }
}
