//! The words of the models.

use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::Words;

/// The words as loom has them.
#[derive(Debug, Default)]
pub(in crate::engine) struct Loomed {
    attention: AtomicU32,
    next_step: AtomicU64,
    /// Planted by a model, before it shares them: there is no fence.
    pub(in crate::engine) unfenced: std::cell::Cell<bool>,
}

// SAFETY: `unfenced` is set before the words are shared, and only read then; the others are shared as atomics are.
#[allow(unsafe_code)]
unsafe impl Sync for Loomed {}

impl Words for Loomed {
    fn fence(&self) {
        if !self.unfenced.get() {
            fence(Ordering::SeqCst);
        }
    }

    fn next_step(&self) -> u64 {
        self.next_step.load(Ordering::Acquire)
    }

    fn set_next_step(&self, next: u64) {
        self.next_step.store(next, Ordering::Release);
    }

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
