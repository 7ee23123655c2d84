//! How a step and an exchange that begins see each other: two words, stored and loaded crosswise.
//!
//! A step stores its id and then looks whether anything wants attention; the progress thread asks for attention and then looks which step was
//! the last to begin. Between the two of each stands a sequentially consistent fence, so at least one sees the other: either the step goes the
//! slow way, or the exchange knows that the step has begun. Everything else goes under the lock of the slow way. The model below explores it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The words, and a fence; in the model they are loom's.
pub(super) trait Words: Default {
    /// The fence between storing one word and loading the other.
    fn fence(&self);
    /// Loads the id above that of the last step begun.
    fn next_step(&self) -> u64;
    /// Stores it.
    fn set_next_step(&self, next: u64);
    /// Loads what wants attention.
    fn attention(&self) -> u32;
    /// Adds to it.
    fn raise(&self, bits: u32);
    /// Takes away from it.
    fn clear(&self, bits: u32);
}

/// The words of a running engine.
#[derive(Debug, Default)]
pub(super) struct Real {
    attention: AtomicU32,
    next_step: AtomicU64,
}

impl Words for Real {
    #[inline]
    fn fence(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    #[inline]
    fn next_step(&self) -> u64 {
        self.next_step.load(Ordering::Acquire)
    }

    #[inline]
    fn set_next_step(&self, next: u64) {
        self.next_step.store(next, Ordering::Release);
    }

    #[inline]
    fn attention(&self) -> u32 {
        self.attention.load(Ordering::Acquire)
    }

    fn raise(&self, bits: u32) {
        self.attention.fetch_or(bits, Ordering::AcqRel);
    }

    fn clear(&self, bits: u32) {
        self.attention.fetch_and(!bits, Ordering::AcqRel);
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Handover<W = Real>(W);

impl<W: Words> Handover<W> {
    /// A step begins; `false`: its id does not rise. For one thread at a time.
    #[inline]
    pub(super) fn begin(&self, id: u64) -> bool {
        if id < self.0.next_step() || id == u64::MAX {
            return false;
        }
        self.0.set_next_step(id + 1);
        self.0.fence();
        true
    }

    /// What wants attention: after [`Handover::begin`], what the step must not pass by.
    #[inline]
    pub(super) fn attention(&self) -> u32 {
        self.0.attention()
    }

    /// Asks for attention; the last step that had begun before. Every later one sees that it was asked for.
    pub(super) fn raise(&self, bits: u32) -> Option<u64> {
        self.0.raise(bits);
        self.0.fence();
        self.last_step()
    }

    /// Nothing of this kind wants attention any more.
    pub(super) fn clear(&self, bits: u32) {
        self.0.clear(bits);
    }

    /// The id above that of the last step begun; 0 = none.
    pub(super) fn next_step(&self) -> u64 {
        self.0.next_step()
    }

    /// The last step begun.
    pub(super) fn last_step(&self) -> Option<u64> {
        self.0.next_step().checked_sub(1)
    }
}

/// Whether a step that goes the slow way has begun, to the exchange under way, before that began: it runs with the maps that are in force, and is no
/// boundary.
pub(super) fn began_before(known: Option<u64>, id: u64) -> bool {
    known >= Some(id)
}

#[cfg(test)]
pub(super) mod loomed;
#[cfg(test)]
mod model;
