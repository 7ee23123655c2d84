//! One layer on its way from the placement in force to a better one: what is where, and the loads that follow.

use super::marks::Marks;
use super::ranks::RankTable;

/// An empty slot.
pub(super) const EMPTY: i32 = -1;

/// End of a list of slots.
pub(super) const END: u32 = u32::MAX;

/// A change of the placement. An expert and the slot that it leaves or enters are on live ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The slot's expert, which has another replica, or nothing if the slot is empty, gives way to `expert`.
    Replace {
        /// The slot.
        slot: u32,
        /// What it gets.
        expert: i32,
    },
    /// Two slots of different ranks exchange what they hold; one of them may be empty.
    Swap {
        /// One slot.
        one: u32,
        /// The other.
        other: u32,
    },
}

impl Change {
    /// Carries the change out on a row of `phy2log`, `[P]`.
    pub(super) fn write(self, row: &mut [i32]) {
        match self {
            Self::Replace { slot, expert } => row[slot as usize] = expert,
            Self::Swap { one, other } => row.swap(one as usize, other as usize),
        }
    }
}

/// A slot and what it holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotState {
    /// Load of the replica, 0 if empty.
    pub(super) part: f64,
    /// What the other ranks of the expert suffer without the slot: the rise of their penalties. 0 if the slot is
    /// empty; meaningless if the expert has no other replica.
    pub(super) harm: f64,
    /// The expert; [`EMPTY`] on dead ranks.
    pub(super) expert: i32,
    /// The rank that owns the slot.
    pub(super) rank: u32,
    /// Next slot with the same expert.
    pub(super) next: u32,
    /// Whether the expert was not on the rank at the start.
    pub(super) moved: bool,
}

impl SlotState {
    const EMPTY: Self = Self { part: 0.0, harm: 0.0, expert: EMPTY, rank: 0, next: END, moved: false };
}

/// A rank and what it carries; the same as in the lists of [`State`], side by side.
#[derive(Debug, Clone, Copy)]
pub(super) struct RankState {
    /// Load less the aim; infinite for dead ranks.
    pub(super) excess: f64,
    pub(super) penalty: f64,
    /// One over the speed.
    pub(super) inverse: f64,
    /// Experts that were not there at the start.
    pub(super) arrivals: u32,
}

impl RankState {
    /// A rank that holds nothing and can take nothing.
    fn dead(inverse: f64) -> Self {
        Self { excess: f64::INFINITY, penalty: 0.0, inverse, arrivals: 0 }
    }
}

/// Experts in slots, the loads that follow, and the moves made since the start. The invariants stand in the
/// documentation of the policy.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Load of each expert, `[E]`.
    pub(super) weight: Vec<f64>,
    /// What a rank should carry at most per unit of speed.
    pub(super) aim: f64,
    /// Most replicas of one expert.
    pub(super) limit: u32,
    /// Slots, `[P]`.
    pub(super) slot: Vec<SlotState>,
    /// Ranks, `[ranks]`.
    pub(super) rank: Vec<RankState>,
    /// Load of each rank per unit of speed; 0 for dead ranks.
    pub(super) load: Vec<f64>,
    /// The same less the aim; infinite for dead ranks, so that nothing goes there.
    pub(super) excess: Vec<f64>,
    /// The square of the excess, if there is any; nothing for dead ranks.
    pub(super) penalty: Vec<f64>,
    /// Replicas of each expert.
    pub(super) count: Vec<u32>,
    /// Slots that can be given away, ascending: empty, or their expert has another replica.
    pub(super) spare: Vec<u32>,
    /// Empty slots of live ranks, ascending.
    pub(super) vacant: Vec<u32>,
    /// Slots whose expert was not on their rank at the start, ascending.
    pub(super) moved_slots: Vec<u32>,
    /// First slot of each expert.
    pub(super) head: Vec<u32>,
    /// Bits `[ranks, words]`: experts on each rank now, and at the start.
    pub(super) held: Vec<u64>,
    pub(super) origin: Vec<u64>,
    pub(super) words: usize,
    /// Ranks and experts that a change touched.
    pub(super) touched: Marks,
    pub(super) disturbed: Marks,
}

fn refill<T: Clone>(vector: &mut Vec<T>, length: usize, value: T) {
    vector.clear();
    vector.resize(length, value);
}

/// The square of what exceeds 0.
#[inline(always)]
pub(super) fn square(excess: f64) -> f64 {
    let over = if excess > 0.0 { excess } else { 0.0 };
    over * over
}

impl State {
    /// Starts from `row` (`[P]`, [`EMPTY`] on dead ranks, no expert twice on a rank) with the loads in `weight`. What
    /// a rank holds in `origin` (`[P]`) costs no move.
    pub(super) fn start(&mut self, ranks: &RankTable, row: &[i32], origin: &[i32]) {
        let experts = self.weight.len();
        self.words = experts.div_ceil(64);
        refill(&mut self.count, experts, 0);
        refill(&mut self.head, experts, END);
        refill(&mut self.held, ranks.len() * self.words, 0);
        refill(&mut self.origin, ranks.len() * self.words, 0);
        self.touched.resize(ranks.len());
        self.disturbed.resize(experts);
        self.disturbed.clear();
        self.moved_slots.clear();
        self.spare.clear();
        self.vacant.clear();
        self.slot.resize(row.len(), SlotState::EMPTY);
        refill(&mut self.load, ranks.len(), 0.0);
        refill(&mut self.excess, ranks.len(), f64::INFINITY);
        refill(&mut self.penalty, ranks.len(), 0.0);
        self.rank.clear();
        self.rank.extend(ranks.inverses().iter().map(|&inverse| RankState::dead(inverse)));
        // From the last slot to the first, so that every list ascends.
        for (at, (slot, &expert)) in self.slot.iter_mut().zip(row).enumerate().rev() {
            slot.expert = expert;
            if let Ok(expert) = usize::try_from(expert) {
                slot.next = std::mem::replace(&mut self.head[expert], at as u32);
                self.count[expert] += 1;
            }
        }
        for &rank in ranks.live() {
            let slots = ranks.slots(rank as usize);
            let held = &mut self.held[rank as usize * self.words..][..self.words];
            let first = slots.start as u32;
            let mut sum = 0.0;
            for (at, slot) in (first..).zip(&mut self.slot[slots]) {
                (slot.rank, slot.moved, slot.part, slot.harm) = (rank, false, 0.0, 0.0);
                let Ok(expert) = usize::try_from(slot.expert) else {
                    self.vacant.push(at);
                    self.spare.push(at);
                    continue;
                };
                held[expert / 64] |= 1 << (expert % 64);
                slot.part = self.weight[expert];
                if self.count[expert] > 1 {
                    slot.part /= f64::from(self.count[expert]);
                    self.spare.push(at);
                    self.disturbed.insert(expert);
                }
                sum += slot.part;
            }
            self.set_load(ranks, rank as usize, sum);
        }
        self.weigh_harm();
        if row == origin {
            self.origin.copy_from_slice(&self.held);
        } else {
            self.note_moves(ranks, origin);
        }
    }

    /// Compares with what ranks held at the start.
    fn note_moves(&mut self, ranks: &RankTable, origin: &[i32]) {
        for &rank in ranks.live() {
            let rank = rank as usize;
            for &expert in origin[ranks.slots(rank)].iter().filter(|&&expert| expert >= 0) {
                self.origin[rank * self.words + expert as usize / 64] |= 1 << (expert % 64);
            }
            for at in ranks.slots(rank) {
                let expert = self.slot[at].expert;
                if expert >= 0 && !self.at_origin(rank, expert) {
                    self.slot[at].moved = true;
                    self.moved_slots.push(at as u32);
                    self.rank[rank].arrivals += 1;
                }
            }
        }
    }

    /// Load of one of `count` replicas.
    #[inline]
    pub(super) fn part_of(&self, expert: usize, count: u32) -> f64 {
        self.weight[expert] / f64::from(count)
    }

    /// Moves made: slots whose expert was not on their rank at the start.
    #[inline]
    pub(super) fn moves(&self) -> u32 {
        self.moved_slots.len() as u32
    }

    /// Whether a rank holds an expert.
    #[inline]
    pub(super) fn holds(&self, rank: usize, expert: i32) -> bool {
        self.held[rank * self.words + expert as usize / 64] >> (expert % 64) & 1 != 0
    }

    /// Whether a rank held an expert at the start.
    #[inline]
    pub(super) fn at_origin(&self, rank: usize, expert: i32) -> bool {
        self.origin[rank * self.words + expert as usize / 64] >> (expert % 64) & 1 != 0
    }

    /// Slots of an expert, ascending.
    #[inline]
    pub(super) fn replicas(&self, expert: usize) -> Replicas<'_> {
        Replicas { slots: &self.slot, slot: self.head[expert] }
    }

    /// Moves that a rank makes when `enters` takes the place of `leaves`: 1 if a new expert takes the place of one
    /// that was there at the start, -1 if the other way round, else 0.
    #[inline]
    pub(super) fn cost(&self, rank: usize, leaves: i32, enters: i32) -> i32 {
        let new = |expert| i32::from(expert >= 0 && !self.at_origin(rank, expert));
        new(enters) - new(leaves)
    }

    /// Balancedness of the layer: mean rank load over the largest; 1 without load.
    pub(super) fn value(&self, ranks: &RankTable) -> f64 {
        let (mut sum, mut most) = (0.0, 0.0);
        for &load in &self.load {
            sum += load;
            most = if load > most { load } else { most };
        }
        if most > 0.0 { (sum / ranks.live().len() as f64 / most).min(1.0) } else { 1.0 }
    }
}

/// Slots of one expert, ascending.
#[derive(Debug, Clone)]
pub(super) struct Replicas<'a> {
    slots: &'a [SlotState],
    slot: u32,
}

impl<'a> Iterator for Replicas<'a> {
    type Item = (usize, &'a SlotState);

    #[inline]
    fn next(&mut self) -> Option<(usize, &'a SlotState)> {
        if self.slot == END {
            return None;
        }
        let at = self.slot as usize;
        let slot = &self.slots[at];
        self.slot = slot.next;
        Some((at, slot))
    }
}
