//! The search for the change that relieves a rank most per move.

use super::ranks::RankTable;
use super::state::{Change, State};

/// A change that costs no move is worth this many times its gain: as if it cost a small part of one.
const FREE: f64 = 8.0;

/// Gains below this part of the aim's square are rounding.
const LEAST_GAIN: f64 = 1e-12;

/// A change that takes this part of the hot rank's penalty per move is taken without a look at dearer kinds.
const ENOUGH: f64 = 0.9;

/// Slots are compared in blocks of this many.
pub(super) const BLOCK: usize = 4;

/// The best change seen so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best {
    change: Option<Change>,
    /// Gain that a change which costs 0, 1 or 2 moves must exceed.
    pub(super) bars: [f64; 3],
}

impl Best {
    fn new(least: f64) -> Self {
        let mut best = Self { change: None, bars: [0.0; 3] };
        best.raise(least);
        best
    }

    #[inline]
    fn raise(&mut self, score: f64) {
        self.bars = [score * (1.0 / FREE), score, 2.0 * score];
    }

    /// Takes the change if it gains more per move.
    #[inline]
    pub(super) fn offer(&mut self, gain: f64, cost: i32, change: Change) {
        let cost = cost.clamp(0, 2) as usize;
        if gain > self.bars[cost] {
            self.raise(gain * [FREE, 1.0, 0.5][cost]);
            self.change = Some(change);
        }
    }
}

/// Which changes a search looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// All of them.
    All,
    /// Only exchanges of two slots: the number of replicas of every expert stays.
    Swaps,
}

/// What a search looks at.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) state: &'a State,
    pub(super) ranks: &'a RankTable,
    /// Most arrivals of each rank in this layer, `[ranks]`; empty = no limit.
    pub(super) caps: &'a [u32],
}

impl View<'_> {
    /// Whether a rank may make `cost` more moves.
    #[inline]
    pub(super) fn allows(&self, rank: usize, cost: i32) -> bool {
        cost <= 0 || self.caps.get(rank).is_none_or(|&most| self.state.rank[rank].arrivals < most)
    }
}

/// [`BLOCK`] slots of the hot rank, field by field, to be compared side by side. Where there is no slot, `relief` is
/// minus infinity and `rest` infinite, so that nothing gains.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    /// Load of the replica.
    pub(super) part: [f64; BLOCK],
    /// Excess of the rank without the slot.
    pub(super) rest: [f64; BLOCK],
    /// 1 if the slot makes a move when it gets another expert, 0 if it was moved before.
    pub(super) makes_move: [f64; BLOCK],
    /// What the ranks of the expert gain from one more replica; minus infinity if there can be none.
    pub(super) relief: [f64; BLOCK],
    /// Load of each replica afterwards.
    pub(super) thinned: [f64; BLOCK],
}

impl Own {
    const NONE: Self = Self {
        part: [0.0; BLOCK],
        rest: [f64::INFINITY; BLOCK],
        makes_move: [1.0; BLOCK],
        relief: [f64::NEG_INFINITY; BLOCK],
        thinned: [0.0; BLOCK],
    };
}

/// Memory of the search.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) own: Vec<Own>,
    /// The most that an exchange with each rank can gain.
    pub(super) bounds: Vec<f64>,
}

impl Scan {
    /// The change with the largest drop of the summed penalty per move among those that relieve `hot`, or `None` if
    /// none lowers it. Ties go to the change found first, in an order that follows from slot numbers alone.
    ///
    /// Looked at are: one more copy of an expert of `hot` in a slot that can be spared; one of `hot`'s spare slots
    /// given to an expert of a rank above the aim; an exchange of a slot of `hot` with one of any rank, empty ones
    /// included. Where an expert that gains a replica shares a rank with one that loses one, the gain is
    /// underestimated (the penalty is convex), never overestimated.
    pub(super) fn best(&mut self, view: View<'_>, hot: usize, reach: Reach) -> Option<Change> {
        let mut best = Best::new(LEAST_GAIN * view.state.aim * view.state.aim);
        let enough = ENOUGH * view.state.penalty[hot];
        self.prepare(view, hot);
        self.exchanges_with_moved(view, hot, &mut best);
        if reach == Reach::All && best.bars[1] < enough {
            self.copies(view, hot, &mut best);
        }
        if best.bars[1] < enough {
            self.exchanges(view, hot, &mut best);
        }
        if reach == Reach::All && best.bars[1] < enough {
            view.dumps(hot, &mut best);
        }
        best.change
    }

    /// Lists the slots of `hot` and what exchanges can gain.
    fn prepare(&mut self, view: View<'_>, hot: usize) {
        let View { state, ranks, .. } = view;
        let rank = &state.rank[hot];
        let slots = ranks.slots(hot);
        self.own.clear();
        self.own.resize(slots.len().div_ceil(BLOCK), Own::NONE);
        for (own, slots) in self.own.iter_mut().zip(state.slot[slots].chunks(BLOCK)) {
            for (i, slot) in slots.iter().enumerate() {
                own.part[i] = slot.part;
                own.rest[i] = rank.excess - slot.part * rank.inverse;
                own.makes_move[i] = if slot.moved { 0.0 } else { 1.0 };
            }
        }
        self.bound(view, hot);
    }
}

#[inline(always)]
pub(super) fn larger(one: f64, other: f64) -> f64 {
    if one > other { one } else { other }
}

/// The largest of some numbers, 0 or more of them; four chains of comparisons side by side.
#[inline(always)]
pub(super) fn largest(numbers: &[f64]) -> f64 {
    let Some(&first) = numbers.first() else { return 0.0 };
    let mut block = [first; BLOCK];
    let (blocks, rest) = numbers.as_chunks::<BLOCK>();
    for numbers in blocks {
        for i in 0..BLOCK {
            block[i] = larger(numbers[i], block[i]);
        }
    }
    for &number in rest {
        block[0] = larger(number, block[0]);
    }
    larger(larger(block[0], block[1]), larger(block[2], block[3]))
}
