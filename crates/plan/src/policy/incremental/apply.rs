//! Carrying out a change: everything that follows from which expert is in which slot is brought up to date.

use super::ranks::RankTable;
use super::state::{Change, END, State, square};

/// Puts a number into an ascending list.
fn insert(list: &mut Vec<u32>, number: u32) {
    if let Err(at) = list.binary_search(&number) {
        list.insert(at, number);
    }
}

/// Takes a number out of an ascending list.
fn remove(list: &mut Vec<u32>, number: u32) {
    if let Ok(at) = list.binary_search(&number) {
        list.remove(at);
    }
}

impl State {
    /// Carries a change out.
    pub(super) fn apply(&mut self, ranks: &RankTable, change: Change) {
        self.touched.clear();
        match change {
            Change::Replace { slot, expert } => {
                let slot = slot as usize;
                let old = self.put(slot, expert);
                self.unlink(slot, old);
                self.link(slot, expert);
                self.slot[slot].part = 0.0;
                self.touched.insert(self.slot[slot].rank as usize);
                self.recount(old);
                self.recount(expert);
            }
            Change::Swap { one, other } => {
                let (one, other) = (one as usize, other as usize);
                let (first, second) = (self.slot[one].expert, self.slot[other].expert);
                self.put(one, second);
                self.put(other, first);
                self.unlink(one, first);
                self.unlink(other, second);
                self.link(one, second);
                self.link(other, first);
                let part = self.slot[one].part;
                self.slot[one].part = std::mem::replace(&mut self.slot[other].part, part);
                self.touched.insert(self.slot[one].rank as usize);
                self.touched.insert(self.slot[other].rank as usize);
            }
        }
        self.disturbed.clear();
        for at in 0..self.touched.list.len() {
            let rank = self.touched.list[at] as usize;
            let slots = ranks.slots(rank);
            let mut sum = 0.0;
            for slot in &self.slot[slots] {
                sum += slot.part;
                if slot.expert >= 0 && self.count[slot.expert as usize] > 1 {
                    self.disturbed.insert(slot.expert as usize);
                }
            }
            self.set_load(ranks, rank, sum);
        }
        self.weigh_harm();
    }

    /// Writes a slot, keeps who is held and who has moved, and returns what the slot held.
    fn put(&mut self, at: usize, expert: i32) -> i32 {
        let rank = self.slot[at].rank as usize;
        let moved = expert >= 0 && !self.at_origin(rank, expert);
        let slot = &mut self.slot[at];
        let old = std::mem::replace(&mut slot.expert, expert);
        let was = std::mem::replace(&mut slot.moved, moved);
        let bits = rank * self.words;
        if old >= 0 {
            self.held[bits + old as usize / 64] &= !(1 << (old % 64));
        }
        if expert >= 0 {
            self.held[bits + expert as usize / 64] |= 1 << (expert % 64);
        }
        if was && !moved {
            remove(&mut self.moved_slots, at as u32);
            self.rank[rank].arrivals -= 1;
        } else if moved && !was {
            insert(&mut self.moved_slots, at as u32);
            self.rank[rank].arrivals += 1;
        }
        old
    }

    /// Takes a slot off an expert's list, or off that of the empty ones.
    fn unlink(&mut self, slot: usize, expert: i32) {
        let Ok(expert) = usize::try_from(expert) else {
            remove(&mut self.vacant, slot as u32);
            remove(&mut self.spare, slot as u32);
            return;
        };
        let after = self.slot[slot].next;
        let mut at = self.head[expert];
        if at == slot as u32 {
            self.head[expert] = after;
        } else {
            while self.slot[at as usize].next != slot as u32 {
                at = self.slot[at as usize].next;
            }
            self.slot[at as usize].next = after;
        }
        self.count[expert] -= 1;
        if self.count[expert] > 0 {
            remove(&mut self.spare, slot as u32);
        }
        if self.count[expert] == 1 {
            remove(&mut self.spare, self.head[expert]);
        }
    }

    /// Puts a slot on an expert's list, or on that of the empty ones.
    fn link(&mut self, slot: usize, expert: i32) {
        let Ok(expert) = usize::try_from(expert) else {
            insert(&mut self.vacant, slot as u32);
            insert(&mut self.spare, slot as u32);
            self.slot[slot].harm = 0.0;
            return;
        };
        let mut at = self.head[expert];
        if self.count[expert] == 1 {
            insert(&mut self.spare, at);
        }
        // Slot numbers are below the end mark, which ends the walk.
        if at > slot as u32 {
            self.slot[slot].next = at;
            self.head[expert] = slot as u32;
        } else {
            while self.slot[at as usize].next < slot as u32 {
                at = self.slot[at as usize].next;
            }
            self.slot[slot].next = std::mem::replace(&mut self.slot[at as usize].next, slot as u32);
        }
        self.count[expert] += 1;
        if self.count[expert] > 1 {
            insert(&mut self.spare, slot as u32);
        }
    }

    /// Gives all replicas of an expert their parts after its count changed.
    fn recount(&mut self, expert: i32) {
        let Ok(expert) = usize::try_from(expert) else { return };
        let part = self.part_of(expert, self.count[expert]);
        let mut at = self.head[expert];
        while at != END {
            let slot = &mut self.slot[at as usize];
            slot.part = part;
            self.touched.insert(slot.rank as usize);
            at = slot.next;
        }
    }

    /// Sets a rank's load from the sum of its slots' parts in slot order, divided by the speed last, as the metric
    /// does, and what follows from it.
    #[inline]
    pub(super) fn set_load(&mut self, ranks: &RankTable, rank: usize, sum: f64) {
        let load = sum / ranks.speed(rank);
        let excess = load - self.aim;
        let penalty = square(excess);
        (self.load[rank], self.excess[rank], self.penalty[rank]) = (load, excess, penalty);
        let state = &mut self.rank[rank];
        (state.excess, state.penalty) = (excess, penalty);
    }

    /// Computes the harm of giving up one replica of each disturbed expert.
    pub(super) fn weigh_harm(&mut self) {
        for &expert in &self.disturbed.list {
            let head = self.head[expert as usize];
            let part = self.slot[head as usize].part;
            let rise = self.part_of(expert as usize, self.count[expert as usize] - 1) - part;
            let mut sum = 0.0;
            let mut at = head;
            while at != END {
                let slot = &mut self.slot[at as usize];
                let rank = &self.rank[slot.rank as usize];
                slot.harm = square(rank.excess + rise * rank.inverse) - rank.penalty;
                sum += slot.harm;
                at = slot.next;
            }
            let mut at = head;
            while at != END {
                let slot = &mut self.slot[at as usize];
                slot.harm = sum - slot.harm;
                at = slot.next;
            }
        }
    }
}
