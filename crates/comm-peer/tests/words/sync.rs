//! Words of the model checker, whose orderings can be made too weak.

use std::sync::atomic::{AtomicU8, Ordering as Std};

pub(crate) use loom::sync::atomic::Ordering;

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Planted {
    Nothing,
    /// Stores that release nothing.
    Release,
    /// Loads that acquire nothing.
    Acquire,
    /// A rank says that a wave may start before its bytes are written.
    WordFirst,
    /// Words that another epoch has used.
    WordOfBefore,
    /// A rank writes what others may still be reading.
    WaitForgotten,
}

static PLANTED: AtomicU8 = AtomicU8::new(Planted::Nothing as u8);

pub(crate) fn plant(planted: Planted) {
    PLANTED.store(planted as u8, Std::SeqCst);
}

pub(crate) fn is_planted(planted: Planted) -> bool {
    PLANTED.load(Std::SeqCst) == planted as u8
}

fn weakened(order: Ordering) -> Ordering {
    match order {
        Ordering::Release if is_planted(Planted::Release) => Ordering::Relaxed,
        Ordering::Acquire if is_planted(Planted::Acquire) => Ordering::Relaxed,
        order => order,
    }
}

#[derive(Debug, Default)]
pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

impl AtomicU64 {
    pub(crate) fn load(&self, order: Ordering) -> u64 {
        self.0.load(weakened(order))
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, weakened(order));
    }
}
