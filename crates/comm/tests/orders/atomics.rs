//! Words of the model checker, whose orderings can be made too weak.

use std::sync::atomic::{AtomicU8, Ordering as Std};

pub(crate) use loom::sync::atomic::Ordering;

/// What is taken out of all words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Planted {
    Nothing,
    Release,
    Acquire,
    Fences,
}

static PLANTED: AtomicU8 = AtomicU8::new(Planted::Nothing as u8);

pub(crate) fn plant(planted: Planted) {
    PLANTED.store(planted as u8, Std::SeqCst);
}

fn is_planted(planted: Planted) -> bool {
    PLANTED.load(Std::SeqCst) == planted as u8
}

fn weakened(order: Ordering) -> Ordering {
    match order {
        Ordering::Release if is_planted(Planted::Release) => Ordering::Relaxed,
        Ordering::Acquire if is_planted(Planted::Acquire) => Ordering::Relaxed,
        order => order,
    }
}

pub(crate) fn fence(order: Ordering) {
    if !is_planted(Planted::Fences) {
        loom::sync::atomic::fence(order);
    }
}

#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

impl AtomicU64 {
    pub(crate) fn load(&self, order: Ordering) -> u64 {
        self.0.load(weakened(order))
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, weakened(order));
    }
}

#[derive(Debug)]
pub(crate) struct AtomicU32(loom::sync::atomic::AtomicU32);

impl AtomicU32 {
    pub(crate) fn new(value: u32) -> Self {
        Self(loom::sync::atomic::AtomicU32::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> u32 {
        self.0.load(weakened(order))
    }

    pub(crate) fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, weakened(order));
    }

    pub(crate) fn fetch_sub(&self, value: u32, order: Ordering) -> u32 {
        self.0.fetch_sub(value, weakened(order))
    }

    pub(crate) fn compare_exchange(
        &self,
        current: u32,
        new: u32,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u32, u32> {
        self.0.compare_exchange(current, new, weakened(success), failure)
    }

    pub(crate) fn compare_exchange_weak(
        &self,
        current: u32,
        new: u32,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u32, u32> {
        self.0.compare_exchange_weak(current, new, weakened(success), failure)
    }
}
