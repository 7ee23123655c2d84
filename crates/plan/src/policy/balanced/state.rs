//! One layer while it is being planned: which rank holds which experts, and what that loads it with.

use std::ops::Range;

use crate::layer::{Ranks, key_id, lightest_first, replica_units};

/// No expert: an empty place.
pub(super) const NONE: u32 = u32::MAX;

/// Places of a rank come in blocks of this many, so that the compiler can compare them side by side.
pub(super) const LANES: usize = 4;

/// Experts on ranks. Where inside a rank an expert is has no meaning here.
///
/// Invariants: `places` of a rank are sorted by load descending, expert ascending, empty ones last; no rank holds an
/// expert twice; `load`, `cost` and `order` follow from the places and `size`.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct State {
    /// Places of each rank that can hold an expert, `[ranks]`.
    room: Vec<usize>,
    /// Places from one rank to the next, a multiple of [`LANES`].
    stride: usize,
    /// Expert in each place, [`NONE`] = empty, `[ranks * stride]`.
    pub(super) expert: Vec<u32>,
    /// Load of the replica in each place, 0 if empty.
    pub(super) place_load: Vec<f64>,
    /// The same in float32, infinite beyond the rank's room: what searches run over. They check what they find.
    pub(super) lane: Vec<f32>,
    /// Load of each rank, in units.
    pub(super) load: Vec<f64>,
    /// Time per unit of load of each rank, see [`Ranks::slowness`].
    pub(super) slowness: Vec<f64>,
    /// Load of each expert, in units.
    pub(super) units: Vec<f64>,
    /// Replicas of each expert.
    pub(super) count: Vec<u32>,
    /// Load of one replica of each expert.
    pub(super) size: Vec<f64>,
    /// Whether all ranks are as fast.
    pub(super) alike: bool,
    /// Keys of the ranks by cost ascending, rank ascending.
    order: Vec<u64>,
}

impl State {
    /// Starts a layer with every place empty.
    pub(super) fn reset(&mut self, ranks: &Ranks, units: &[f64], count: &[u32], size: &[f64]) {
        fn copy<T: Copy>(to: &mut Vec<T>, from: &[T]) {
            to.clear();
            to.extend_from_slice(from);
        }
        copy(&mut self.room, &ranks.room);
        copy(&mut self.slowness, &ranks.slowness);
        self.alike = self.slowness.iter().all(|&slowness| slowness == self.slowness[0]);
        copy(&mut self.units, units);
        copy(&mut self.count, count);
        copy(&mut self.size, size);
        self.stride = self.room.iter().copied().max().unwrap_or(0).max(1).next_multiple_of(LANES);
        let places = self.stride * self.room.len();
        self.expert.clear();
        self.expert.resize(places, NONE);
        self.place_load.clear();
        self.place_load.resize(places, 0.0);
        self.lane.clear();
        self.lane.resize(places, f32::INFINITY);
        self.load.clear();
        self.load.resize(self.room.len(), 0.0);
    }

    /// Number of live ranks.
    #[inline]
    pub(super) fn ranks(&self) -> usize {
        self.room.len()
    }

    /// Places of a rank.
    #[inline]
    pub(super) fn places(&self, rank: usize) -> Range<usize> {
        rank * self.stride..rank * self.stride + self.room[rank]
    }

    /// Loads of a rank's places in whole blocks of [`LANES`].
    #[inline]
    pub(super) fn lanes(&self, rank: usize) -> &[f32] {
        &self.lane[rank * self.stride..rank * self.stride + self.room[rank].next_multiple_of(LANES)]
    }

    /// The same with all blocks of the longest rank.
    #[inline]
    pub(super) fn blocks(&self, rank: usize) -> &[[f32; LANES]] {
        self.lane[rank * self.stride..(rank + 1) * self.stride].as_chunks().0
    }

    /// The rank that owns a place.
    #[inline]
    pub(super) fn rank_of(&self, place: usize) -> usize {
        place / self.stride
    }

    /// Load times slowness.
    #[inline]
    pub(super) fn cost(&self, rank: usize) -> f64 {
        self.load[rank] * self.slowness[rank]
    }

    /// Whether a rank holds an expert.
    #[inline]
    pub(super) fn holds(&self, rank: usize, expert: u32) -> bool {
        self.expert[self.places(rank)].contains(&expert)
    }

    /// Sets how many replicas an expert has. The caller puts its places in order again.
    pub(super) fn set_count(&mut self, expert: u32, count: u32) {
        let e = expert as usize;
        self.count[e] = count;
        self.size[e] = replica_units(self.units[e], count);
    }

    /// Puts `g` in the place of `f` on a rank. The caller sets counts and settles the rank.
    pub(super) fn put_for(&mut self, rank: usize, f: u32, g: u32) {
        let places = self.places(rank);
        if let Some(place) = self.expert[places].iter_mut().find(|expert| **expert == f) {
            *place = g;
        }
    }

    /// Exchanges `expert_a` on rank `a` for `expert_b` on rank `b`, for each of the pairs.
    pub(super) fn exchange(&mut self, a: usize, b: usize, pairs: &[(u32, u32)]) {
        for (rank, forward) in [(a, true), (b, false)] {
            let old = self.key(rank);
            for &(expert_a, expert_b) in pairs {
                let (gone, new) = if forward { (expert_a, expert_b) } else { (expert_b, expert_a) };
                self.put(rank, gone, new);
            }
            self.resort(rank, old);
        }
    }

    /// Puts an expert in the place of another (or of an empty place), keeping the rank's places sorted and its load
    /// right. The caller brings `order` up to date.
    fn put(&mut self, rank: usize, gone: u32, new: u32) {
        let Range { start, end } = self.places(rank);
        let load = if new == NONE { 0.0 } else { self.size[new as usize] };
        let experts = &mut self.expert[start..end];
        let loads = &mut self.place_load[start..end];
        let lanes = &mut self.lane[start..end];
        let Some(mut at) = experts.iter().position(|&e| e == gone) else { return };
        self.load[rank] += load - loads[at];
        // NONE is the largest number, so empty places sort behind replicas without load.
        let before = |l: f64, e: u32| l > load || (l == load && e < new);
        while at > 0 && !before(loads[at - 1], experts[at - 1]) {
            (experts[at], loads[at], lanes[at]) = (experts[at - 1], loads[at - 1], lanes[at - 1]);
            at -= 1;
        }
        while at + 1 < experts.len() && before(loads[at + 1], experts[at + 1]) {
            (experts[at], loads[at], lanes[at]) = (experts[at + 1], loads[at + 1], lanes[at + 1]);
            at += 1;
        }
        (experts[at], loads[at], lanes[at]) = (new, load, load as f32);
    }

    /// Whether the experts in two places of ranks `a` and `b` may be exchanged without a second copy on a rank.
    pub(super) fn may_exchange(&self, a: usize, place_a: usize, b: usize, place_b: usize) -> bool {
        let (i, j) = (self.expert[place_a], self.expert[place_b]);
        let free =
            |expert: u32, to| expert == NONE || self.count[expert as usize] == 1 || !self.holds(to, expert);
        i != j && free(i, b) && free(j, a)
    }

    /// Computes loads, the sorting inside ranks and `order` from the experts in the places.
    pub(super) fn settle(&mut self) {
        for rank in 0..self.ranks() {
            self.sort_places(rank);
        }
        self.sort_ranks();
    }

    /// Brings one rank up to date after its experts or their sizes have changed.
    pub(super) fn settle_rank(&mut self, rank: usize) {
        let old = self.key(rank);
        self.sort_places(rank);
        self.resort(rank, old);
    }

    /// Insertion sort of one rank's places (they are few, and mostly sorted), and its load.
    fn sort_places(&mut self, rank: usize) {
        let Range { start, end } = self.places(rank);
        let experts = &mut self.expert[start..end];
        let loads = &mut self.place_load[start..end];
        let lanes = &mut self.lane[start..end];
        let (mut sum, mut last, mut sorted) = (0.0, f64::INFINITY, true);
        for ((&expert, place_load), lane) in experts.iter().zip(&mut *loads).zip(&mut *lanes) {
            let load = self.size.get(expert as usize).copied().unwrap_or(0.0);
            sum += load;
            // Of equal ones it is left to the sort which comes first.
            sorted &= load < last;
            (*place_load, *lane, last) = (load, load as f32, load);
        }
        for place in 1..if sorted { 0 } else { experts.len() } {
            let (expert, load) = (experts[place], loads[place]);
            let mut at = place;
            while at > 0 && (loads[at - 1] < load || (loads[at - 1] == load && experts[at - 1] > expert)) {
                (experts[at], loads[at], lanes[at]) = (experts[at - 1], loads[at - 1], lanes[at - 1]);
                at -= 1;
            }
            (experts[at], loads[at], lanes[at]) = (expert, load, load as f32);
        }
        self.load[rank] = sum;
    }

    /// Sorts `order` from scratch.
    pub(super) fn sort_ranks(&mut self) {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend((0..self.ranks()).map(|rank| self.key(rank)));
        order.sort_unstable();
        self.order = order;
    }

    /// Moves a rank to its place in `order` after its load has changed; `old` is its key from before.
    fn resort(&mut self, rank: usize, old: u64) {
        let new = self.key(rank);
        let from = self.order.partition_point(|&key| key < old);
        if new > old {
            let to = from + self.order[from + 1..].partition_point(|&key| key < new);
            self.order.copy_within(from + 1..=to, from);
            self.order[to] = new;
        } else {
            let to = self.order[..from].partition_point(|&key| key < new);
            self.order.copy_within(to..from, to + 1);
            self.order[to] = new;
        }
    }

    #[inline]
    fn key(&self, rank: usize) -> u64 {
        lightest_first(self.cost(rank), rank)
    }

    /// The rank at a position of the order by cost, lightest first.
    #[inline]
    pub(super) fn ranked(&self, at: usize) -> usize {
        key_id(self.order[at])
    }

    /// Keys of the ranks at these positions of the order by cost.
    pub(super) fn keys(&self, range: Range<usize>) -> &[u64] {
        self.order.get(range).unwrap_or_default()
    }

    /// Where ranks begin, in order of cost, that cost so much or more.
    pub(super) fn position(&self, cost: f64) -> usize {
        let key = lightest_first(cost.max(0.0), 0);
        self.order.partition_point(|&other| other < key)
    }

    /// The most loaded rank.
    #[inline]
    pub(super) fn worst(&self) -> usize {
        self.ranked(self.order.len() - 1)
    }

    /// Remembers which experts are where.
    pub(super) fn save(&self, saved: &mut Saved) {
        saved.expert.clone_from(&self.expert);
        saved.count.clone_from(&self.count);
    }

    /// Goes back to what [`State::save`] remembered of the same layer.
    pub(super) fn restore(&mut self, saved: &Saved) {
        self.expert.clone_from(&saved.expert);
        for (expert, &count) in saved.count.iter().enumerate() {
            self.set_count(expert as u32, count);
        }
        self.settle();
    }
}

/// The experts of a [`State`] and their counts.
#[derive(Debug, Default)]
pub(super) struct Saved {
    expert: Vec<u32>,
    count: Vec<u32>,
}
