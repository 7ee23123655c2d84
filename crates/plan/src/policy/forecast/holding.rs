//! Which rank holds what in a layer, and the changes that a plan is made of.

use eplb_core::Topology;

use super::scenarios::Scenarios;
use crate::layer::Ranks;

/// Expert of an empty place.
pub(super) const EMPTY: u32 = u32::MAX;

/// Slots of live ranks, numbered without gaps; the same for all layers.
#[derive(Debug)]
pub(super) struct Places {
    /// Slot of the topology.
    pub(super) slot: Vec<usize>,
    /// Live rank that owns the place.
    pub(super) rank: Vec<u32>,
    /// First place of each live rank, and the number of places.
    pub(super) first: Vec<usize>,
    /// Time per token of each live rank, 1 on average.
    pub(super) slow: Vec<f32>,
    /// Most replicas of one expert.
    pub(super) limit: u32,
}

impl Places {
    /// Places of the live ranks.
    pub(super) fn new(topology: &Topology, experts: usize, limit: usize) -> Self {
        let ranks = Ranks::live(topology, experts);
        let (mut slot, mut rank, mut first) = (Vec::new(), Vec::new(), vec![0]);
        for (at, &id) in ranks.id.iter().enumerate() {
            slot.extend(topology.slots_of(id));
            rank.resize(slot.len(), at as u32);
            first.push(slot.len());
        }
        // Rank loads over speed, with the ideal (all tokens over all speed) as the unit.
        let mean = ranks.speed / ranks.len() as f64;
        let slow = ranks.slowness.iter().map(|&slowness| (slowness * mean) as f32).collect();
        let limit = limit.min(u32::MAX as usize) as u32;
        Self { slot, rank, first, slow, limit }
    }

    /// Number of live ranks.
    pub(super) fn ranks(&self) -> usize {
        self.slow.len()
    }
}

/// A change of one or two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// A place gets a copy of an expert; it was empty, or what it held has another copy. One move.
    Put { place: u32, expert: u32 },
    /// Two places of different ranks swap what they hold. Two moves.
    Swap { a: u32, b: u32 },
}

impl Change {
    /// Experts that cross a link.
    pub(super) fn moves(self) -> usize {
        match self {
            Change::Put { .. } => 1,
            Change::Swap { .. } => 2,
        }
    }

    /// Makes the change to a row of experts by place.
    pub(super) fn apply(self, row: &mut [u32]) {
        match self {
            Change::Put { place, expert } => row[place as usize] = expert,
            Change::Swap { a, b } => row.swap(a as usize, b as usize),
        }
    }
}

/// What a change does to one rank: it gets `a` of the tokens of one expert more and `b` of another's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Effect {
    pub(super) rank: u32,
    pub(super) one: (f32, u32),
    pub(super) two: (f32, u32),
}

/// What the places of a layer hold. No rank holds an expert twice.
#[derive(Debug, Default, Clone)]
pub(super) struct Holding {
    /// Expert in each place, or [`EMPTY`].
    pub(super) row: Vec<u32>,
    /// Replicas of each expert.
    pub(super) count: Vec<u32>,
    /// Ranks that hold each expert.
    pub(super) ranks: Vec<Vec<u32>>,
}

impl Holding {
    /// Takes over a row of `phy2log`, `[P]`. A second copy on a rank balances nothing; its slot counts as empty.
    pub(super) fn start(&mut self, slots: &[i32], places: &Places, experts: usize) {
        self.row.clear();
        self.count.clear();
        self.count.resize(experts, 0);
        self.ranks.iter_mut().for_each(Vec::clear);
        self.ranks.resize(experts, Vec::new());
        for (&slot, &rank) in places.slot.iter().zip(&places.rank) {
            let held = u32::try_from(slots[slot]).ok().filter(|&e| !self.holds(rank, e as usize));
            if let Some(expert) = held {
                self.count[expert as usize] += 1;
                self.ranks[expert as usize].push(rank);
            }
            self.row.push(held.unwrap_or(EMPTY));
        }
    }

    /// Whether a rank holds an expert.
    pub(super) fn holds(&self, rank: u32, expert: usize) -> bool {
        self.ranks[expert].contains(&rank)
    }

    /// Expert of a place that could be given up: `None` if it is the only copy.
    pub(super) fn spare(&self, place: usize) -> Option<u32> {
        let held = self.row[place];
        (held == EMPTY || self.count[held as usize] > 1).then_some(held)
    }

    /// What a change does to the ranks, each of them once.
    pub(super) fn effects(&self, change: Change, places: &Places, effects: &mut Vec<Effect>) {
        effects.clear();
        match change {
            Change::Swap { a, b } => {
                let (e, f) = (self.row[a as usize], self.row[b as usize]);
                let part = |expert: u32| 1.0 / self.count[expert as usize] as f32;
                let (one, two) = (part(e), part(f));
                effects.push(Effect { rank: places.rank[a as usize], one: (-one, e), two: (two, f) });
                effects.push(Effect { rank: places.rank[b as usize], one: (one, e), two: (-two, f) });
            }
            Change::Put { place, expert } => {
                let (held, rank) = (self.row[place as usize], places.rank[place as usize]);
                let count = self.count[expert as usize] as f32;
                let part = 1.0 / (count + 1.0);
                // Of the copies that stay.
                let less = part - 1.0 / count;
                if held == EMPTY {
                    effects.push(Effect { rank, one: (part, expert), two: (0.0, expert) });
                    for &rank in &self.ranks[expert as usize] {
                        effects.push(Effect { rank, one: (less, expert), two: (0.0, expert) });
                    }
                    return;
                }
                let copies = self.count[held as usize] as f32;
                let more = 1.0 / (copies - 1.0) - 1.0 / copies;
                effects.push(Effect { rank, one: (part, expert), two: (-1.0 / copies, held) });
                for &rank in &self.ranks[expert as usize] {
                    let also = if self.holds(rank, held as usize) { more } else { 0.0 };
                    effects.push(Effect { rank, one: (less, expert), two: (also, held) });
                }
                for &other in self.ranks[held as usize].iter().filter(|&&other| other != rank) {
                    if !self.holds(other, expert as usize) {
                        effects.push(Effect { rank: other, one: (0.0, expert), two: (more, held) });
                    }
                }
            }
        }
    }

    /// Makes a change.
    pub(super) fn make(&mut self, change: Change, places: &Places) {
        match change {
            Change::Put { place, expert } => {
                let rank = places.rank[place as usize];
                let held = self.row[place as usize];
                if held != EMPTY {
                    self.count[held as usize] -= 1;
                    self.ranks[held as usize].retain(|&r| r != rank);
                }
                self.count[expert as usize] += 1;
                self.ranks[expert as usize].push(rank);
            }
            Change::Swap { a, b } => {
                for (from, to) in [(a, b), (b, a)] {
                    let (out, into) = (places.rank[from as usize], places.rank[to as usize]);
                    let expert = self.row[from as usize] as usize;
                    self.ranks[expert].iter_mut().filter(|r| **r == out).for_each(|r| *r = into);
                }
            }
        }
        change.apply(&mut self.row);
    }

    /// Expert of the place that a change writes over; [`EMPTY`] if there is none.
    pub(super) fn given_up(&self, change: Change) -> u32 {
        match change {
            Change::Put { place, .. } => self.row[place as usize],
            Change::Swap { .. } => EMPTY,
        }
    }

    /// Takes back the change made last; `held` is what it wrote over.
    pub(super) fn take_back(&mut self, change: Change, held: u32, places: &Places) {
        match change {
            Change::Put { place, expert } if held == EMPTY => {
                let rank = places.rank[place as usize];
                self.count[expert as usize] -= 1;
                self.ranks[expert as usize].retain(|&r| r != rank);
                self.row[place as usize] = EMPTY;
            }
            Change::Put { place, .. } => self.make(Change::Put { place, expert: held }, places),
            Change::Swap { .. } => self.make(change, places),
        }
    }

    /// Experts without a copy, the heaviest first.
    pub(super) fn lost(&self, scenarios: &Scenarios) -> Vec<u32> {
        let mut lost: Vec<u32> =
            (0..self.count.len() as u32).filter(|&e| self.count[e as usize] == 0).collect();
        let load = |expert: u32| scenarios.mean(expert as usize);
        lost.sort_by(|&a, &b| load(b).total_cmp(&load(a)).then(a.cmp(&b)));
        lost
    }
}
