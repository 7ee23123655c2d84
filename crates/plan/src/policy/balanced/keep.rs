//! Writing a layer out so that as little as possible changes: which rank takes which set, and in which slots.

use std::ops::Range;

use super::relabel::Relabel;
use super::state::{NONE, State};

/// Memory of the writing.
#[derive(Debug, Default)]
pub(super) struct KeepScratch {
    relabel: Relabel,
    experts: Vec<u32>,
    free: Vec<usize>,
}

impl KeepScratch {
    /// Writes the state to `slots` (`[P]`, all -1). `own` are the slots of each live rank. With the `current` row,
    /// sets go to the ranks that hold most of them already, among ranks with the same slots and speed, and experts
    /// that stay on their rank stay in their slot.
    pub(super) fn write(
        &mut self,
        state: &State,
        own: &[Range<usize>],
        current: Option<&[i32]>,
        slots: &mut [i32],
    ) {
        let Some(current) = current else {
            for (rank, own) in own.iter().enumerate() {
                for (slot, place) in own.clone().zip(state.places(rank)) {
                    slots[slot] = state.expert[place] as i32;
                }
            }
            return;
        };
        let target = self.relabel.choose(state, own, current);
        for (rank, &to) in target.iter().enumerate() {
            self.experts.clear();
            self.experts.extend(state.expert[state.places(rank)].iter().filter(|&&e| e != NONE));
            self.free.clear();
            for slot in own[to as usize].clone() {
                match self.experts.iter().position(|&e| e as i32 == current[slot]) {
                    Some(at) => slots[slot] = self.experts.remove(at) as i32,
                    None => self.free.push(slot),
                }
            }
            for (&slot, &expert) in self.free.iter().zip(&self.experts) {
                slots[slot] = expert as i32;
            }
        }
    }
}
