//! A layer while it is planned: which rank holds what, how long each takes, what crosses nodes.

use super::facts::{Facts, Layer};
use super::parts::{Parts, strays};
use crate::split::SplitScratch;

/// No expert, no node.
pub(super) const NONE: u32 = u32::MAX;

/// What a place gets: an expert, or [`NONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Put {
    pub(super) place: u32,
    pub(super) expert: u32,
}

/// Most places that one change concerns, and most experts.
pub(super) const MOST_PUTS: usize = 2;

/// Places of all ranks and what follows from what they hold.
///
/// Invariants: no rank holds an expert twice; `holders`, `count`, `part`, `tokens`, `active`, `foreign` follow from
/// `expert`, but for `part` under `Dispatch::Share`, where it is some split.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Expert in each place, [`NONE`] = empty; `[ranks * stride]`.
    pub(super) expert: Vec<u32>,
    /// Part of its expert's tokens that each place gets.
    pub(super) part: Vec<f64>,
    /// Places of each expert ascending, `[E * ranks]`, and how many.
    holders: Vec<u32>,
    pub(super) count: Vec<u32>,
    /// Tokens of each rank as a part of the layer's, and slots with tokens.
    pub(super) tokens: Vec<f64>,
    pub(super) active: Vec<u32>,
    /// Tokens of each group that each node serves for others, `[groups * nodes]`, and the strays of all groups.
    foreign: Vec<f64>,
    /// Strays of each group, and its home: the node that serves most of it for others.
    strays: Vec<f64>,
    home: Vec<u32>,
    pub(super) crossing: f64,
    pub(super) parts: Parts,
    found: Vec<f64>,
    solve: Solve,
}

/// Memory of the split solver.
#[derive(Debug, Default)]
struct Solve {
    row: Vec<f64>,
    phy2log: Vec<i32>,
    share: Vec<f64>,
    scratch: SplitScratch,
}

impl State {
    /// Empties every place.
    pub(super) fn clear(&mut self, facts: &Facts) {
        self.expert.clear();
        self.expert.resize(facts.ranks.len() * facts.stride, NONE);
    }

    /// Places of a rank.
    pub(super) fn places(&self, facts: &Facts, rank: usize) -> std::ops::Range<u32> {
        let start = rank * facts.stride;
        start as u32..(start + facts.ranks.room[rank]) as u32
    }

    /// Experts in the places of a rank, [`NONE`] included.
    pub(super) fn set(&self, facts: &Facts, rank: usize) -> &[u32] {
        &self.expert[rank * facts.stride..rank * facts.stride + facts.ranks.room[rank]]
    }

    pub(super) fn holds(&self, facts: &Facts, rank: usize, expert: u32) -> bool {
        self.set(facts, rank).contains(&expert)
    }

    /// Whether a rank holds an expert; the state is settled.
    #[inline]
    pub(super) fn has(&self, facts: &Facts, rank: usize, expert: u32) -> bool {
        let (start, end) = ((rank * facts.stride) as u32, ((rank + 1) * facts.stride) as u32);
        self.holders(facts, expert).iter().any(|&place| place >= start && place < end)
    }

    /// Places that hold an expert, ascending.
    #[inline]
    pub(super) fn holders(&self, facts: &Facts, expert: u32) -> &[u32] {
        let start = expert as usize * facts.ranks.len();
        &self.holders[start..start + self.count[expert as usize] as usize]
    }

    /// Time of a rank.
    pub(super) fn time(&self, facts: &Facts, layer: &Layer, rank: usize) -> f64 {
        layer.time(facts, rank, self.active[rank], self.tokens[rank])
    }

    /// Time of the worst rank.
    pub(super) fn worst(&self, facts: &Facts, layer: &Layer) -> f64 {
        (0..facts.ranks.len()).map(|rank| self.time(facts, layer, rank)).fold(0.0, f64::max)
    }

    /// What the layer is worth, the less the better: the worst rank's time, and the price of the crossing.
    pub(super) fn worth(&self, facts: &Facts, layer: &Layer) -> f64 {
        self.worst(facts, layer) + facts.price() * self.crossing
    }

    /// Computes all that follows from `expert`.
    pub(super) fn settle(&mut self, facts: &Facts, layer: &Layer) {
        let ranks = facts.ranks.len();
        self.count.clear();
        self.count.resize(facts.experts, 0);
        // What is beyond an expert's count is never read.
        self.holders.resize(facts.experts * ranks, NONE);
        for (place, &expert) in self.expert.iter().enumerate() {
            if expert != NONE {
                let count = &mut self.count[expert as usize];
                self.holders[expert as usize * ranks + *count as usize] = place as u32;
                *count += 1;
            }
        }
        self.part.clear();
        self.part.resize(self.expert.len(), 0.0);
        self.active.clear();
        self.active.resize(ranks, 0);
        for (place, &expert) in self.expert.iter().enumerate() {
            if expert != NONE && layer.weight[expert as usize] > 0.0 {
                self.active[place / facts.stride] += 1;
            }
        }
        if facts.splitter.is_some() {
            self.split(facts, layer);
        } else {
            let (mut found, mut parts) = (std::mem::take(&mut self.found), std::mem::take(&mut self.parts));
            for expert in 0..facts.experts as u32 {
                let places =
                    expert as usize * ranks..expert as usize * ranks + self.count[expert as usize] as usize;
                let places = &self.holders[places];
                found.clear();
                parts.find(facts, layer, layer.weight[expert as usize], places, |_| 0.0, &mut found);
                places.iter().zip(&found).for_each(|(&place, &part)| self.part[place as usize] = part);
            }
            (self.parts, self.found) = (parts, found);
            self.sum_up(facts, layer);
        }
    }

    /// Makes a change of a settled state, and computes what follows from it for the experts that it concerns. Tells
    /// `changed` of every rank on which something is not as it was; of some of them twice.
    pub(super) fn make(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        puts: &[Put],
        mut changed: impl FnMut(usize),
    ) {
        if facts.splitter.is_some() {
            puts.iter().for_each(|put| self.expert[put.place as usize] = put.expert);
            self.settle(facts, layer);
            (0..facts.ranks.len()).for_each(changed);
            return;
        }
        puts.iter().for_each(|put| changed(facts.rank_of(put.place)));
        let mut experts = [NONE; 2 * MOST_PUTS];
        let mut used = 0;
        for expert in puts.iter().flat_map(|put| [self.expert[put.place as usize], put.expert]) {
            if expert != NONE && !experts.contains(&expert) {
                experts[used] = expert;
                used += 1;
            }
        }
        let experts = &experts[..used];
        experts.iter().for_each(|&expert| self.serve(facts, layer, expert, -1.0));
        for put in puts {
            let old = std::mem::replace(&mut self.expert[put.place as usize], put.expert);
            for (expert, comes) in [(old, false), (put.expert, true)] {
                if expert != NONE {
                    self.list(facts, layer, expert, put.place, comes);
                }
            }
        }
        let (mut found, mut parts) = (std::mem::take(&mut self.found), std::mem::take(&mut self.parts));
        for &expert in experts {
            found.clear();
            let places = self.holders(facts, expert);
            parts.find(facts, layer, layer.weight[expert as usize], places, |_| 0.0, &mut found);
            let start = expert as usize * facts.ranks.len();
            for (at, &part) in found.iter().enumerate() {
                self.part[self.holders[start + at] as usize] = part;
            }
        }
        (self.parts, self.found) = (parts, found);
        for &expert in experts {
            self.serve(facts, layer, expert, 1.0);
            self.holders(facts, expert).iter().for_each(|&place| changed(facts.rank_of(place)));
        }
        experts.iter().for_each(|&expert| self.stray(facts, facts.group_of(expert)));
        self.crossing = self.strays.iter().sum();
    }

    /// Finds home and strays of a group.
    fn stray(&mut self, facts: &Facts, group: usize) {
        let foreign = self.foreign(facts, group);
        let mut home = 0;
        for (node, tokens) in foreign.iter().enumerate() {
            if *tokens > foreign[home] {
                home = node;
            }
        }
        self.strays[group] = strays(foreign);
        self.home[group] = home as u32;
    }

    /// Enters a place among those of an expert, or takes it out.
    fn list(&mut self, facts: &Facts, layer: &Layer, expert: u32, place: u32, comes: bool) {
        let (start, count) = (expert as usize * facts.ranks.len(), self.count[expert as usize] as usize);
        let held = &mut self.holders[start..start + count + usize::from(comes)];
        // Entered before the first that is larger; taken out where it is.
        let at = held[..count].iter().position(|&other| other >= place).unwrap_or(count);
        let active = &mut self.active[place as usize / facts.stride];
        let weighs = u32::from(layer.weight[expert as usize] > 0.0);
        if comes {
            held[at..].rotate_right(1);
            held[at] = place;
            self.count[expert as usize] += 1;
            *active += weighs;
        } else {
            held[at..].rotate_left(1);
            self.count[expert as usize] -= 1;
            *active -= weighs;
        }
    }

    /// Adds `sign` times what an expert's replicas serve to tokens and crossings.
    fn serve(&mut self, facts: &Facts, layer: &Layer, expert: u32, sign: f64) {
        let (start, weight) = (expert as usize * facts.ranks.len(), layer.weight[expert as usize]);
        let places = &self.holders[start..start + self.count[expert as usize] as usize];
        for &place in places {
            self.tokens[facts.rank_of(place)] += sign * weight * self.part[place as usize];
        }
        let at = facts.group_of(expert) * facts.nodes;
        let part = |i: usize| self.part[places[i] as usize];
        self.parts.add_foreign(facts, weight, places, part, sign, &mut self.foreign[at..at + facts.nodes]);
    }

    /// Solves the split of the whole layer: the worst rank's time is the least that any split of these sets gives.
    pub(super) fn split(&mut self, facts: &Facts, layer: &Layer) {
        let Some(splitter) = &facts.splitter else { return };
        let Solve { row, phy2log, share, scratch } = &mut self.solve;
        let (ranks, stride) = (facts.ranks.len(), facts.stride);
        row.clear();
        row.extend(layer.weight.iter().map(|weight| weight * layer.per_all));
        phy2log.clear();
        for rank in 0..ranks {
            let set = &self.expert[rank * stride..(rank + 1) * stride];
            // NONE as i32 is -1, an empty slot.
            phy2log.extend(set.iter().map(|&expert| expert as i32));
            // What takes time whatever the split: an expert that only this rank holds.
            phy2log.push((facts.experts + rank) as i32);
            row.push(layer.per_active * f64::from(self.active[rank]));
        }
        share.clear();
        share.resize(phy2log.len(), 0.0);
        splitter.split_layer(row, phy2log, share, scratch);
        for (rank, share) in share.chunks_exact(stride + 1).enumerate() {
            self.part[rank * stride..(rank + 1) * stride].copy_from_slice(&share[..stride]);
        }
        self.sum_up(facts, layer);
    }

    /// Adds up tokens and crossings from the parts.
    fn sum_up(&mut self, facts: &Facts, layer: &Layer) {
        self.tokens.clear();
        self.tokens.resize(facts.ranks.len(), 0.0);
        for (place, &expert) in self.expert.iter().enumerate() {
            if expert != NONE {
                self.tokens[place / facts.stride] += layer.weight[expert as usize] * self.part[place];
            }
        }
        self.cross(facts, layer);
    }

    fn cross(&mut self, facts: &Facts, layer: &Layer) {
        self.foreign.clear();
        self.foreign.resize(facts.groups * facts.nodes, 0.0);
        let ranks = facts.ranks.len();
        for expert in 0..facts.experts {
            let places = &self.holders[expert * ranks..expert * ranks + self.count[expert] as usize];
            let at = facts.group_of(expert as u32) * facts.nodes;
            let foreign = &mut self.foreign[at..at + facts.nodes];
            let part = |i: usize| self.part[places[i] as usize];
            self.parts.add_foreign(facts, layer.weight[expert], places, part, 1.0, foreign);
        }
        self.strays.resize(facts.groups, 0.0);
        self.home.resize(facts.groups, 0);
        (0..facts.groups).for_each(|group| self.stray(facts, group));
        self.crossing = self.strays.iter().sum();
    }

    /// Tokens of a group that each node serves for others, `[nodes]`.
    #[inline]
    pub(super) fn foreign(&self, facts: &Facts, group: usize) -> &[f64] {
        &self.foreign[group * facts.nodes..(group + 1) * facts.nodes]
    }

    /// Home of a group: the node that serves most of it for others.
    #[inline]
    pub(super) fn home(&self, group: usize) -> usize {
        self.home[group] as usize
    }

    /// Strays of a group.
    #[inline]
    pub(super) fn strays(&self, group: usize) -> f64 {
        self.strays[group]
    }

    /// Whether a rank may get an expert: it does not hold it, and the strict rule lets it.
    #[inline]
    pub(super) fn may_get(&self, facts: &Facts, layer: &Layer, rank: usize, expert: u32) -> bool {
        let home = layer.home[facts.group_of(expert)];
        (home == NONE || home == facts.node[rank]) && !self.has(facts, rank, expert)
    }
}
