//! A thread that carries a boundary out in place of the one that calls `step`.
//!
//! The thread of a server sleeps between passes, or does other things, and then finds the driver's code and data gone from its processor: five calls that
//! take 4 us on a thread that has just made some take 45 after 15 ms of sleep. So where the configuration asks for it, and while a boundary is due that has something
//! to do, the progress thread stands by without a pause, touching the driver now and then; `step` hands the boundary to it and waits for the end. One word says who
//! is where:
//!
//! ```text
//!   Away ──comes──> Near ──a step asks──> Writing ──> Asked ──takes it──> Taken ──> Done ──the step goes on──> Away
//!    ^               │                                  │ not taken in time: the step withdraws, and does it itself
//!    └───goes away───┴──────────────────────────────────┘
//! ```
//!
//! The model below explores it.

use std::fmt;

/// Nobody stands by.
const AWAY: u32 = 0;
/// Somebody stands by.
const NEAR: u32 = 1;
/// A step writes down what it asks for.
const WRITING: u32 = 2;
/// A step waits.
const ASKED: u32 = 3;
/// It is being done.
const TAKEN: u32 = 4;
/// It is done.
const DONE: u32 = 5;

/// The word; in the model it is loom's.
pub(super) trait Word: Default {
    fn load(&self) -> u32;
    fn store(&self, state: u32);
    /// Whether it was `from`, and is `to` now.
    fn swap(&self, from: u32, to: u32) -> bool;
    /// Lets time pass between two looks.
    fn pause();
}

/// That of a running engine.
#[derive(Debug, Default)]
pub(super) struct Real(std::sync::atomic::AtomicU32);

impl Word for Real {
    fn load(&self) -> u32 {
        self.0.load(std::sync::atomic::Ordering::Acquire)
    }

    fn store(&self, state: u32) {
        self.0.store(state, std::sync::atomic::Ordering::Release);
    }

    fn swap(&self, from: u32, to: u32) -> bool {
        use std::sync::atomic::Ordering::{AcqRel, Acquire};
        self.0.compare_exchange(from, to, AcqRel, Acquire).is_ok()
    }

    fn pause() {
        std::hint::spin_loop();
    }
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct StandIn<W = Real>(W);

impl<W: Word> fmt::Debug for StandIn<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StandIn").field(&self.0.load()).finish()
    }
}

impl<W: Word> StandIn<W> {
    /// Has somebody who stands by do something: `write` says what, and `waits` for how long nobody taking it is waited for. `false`: nobody does it, and nobody
    /// will. What is done is seen when this returns. For one thread at a time; another is told `false`.
    pub(super) fn ask(&self, write: impl FnOnce(), mut waits: impl FnMut() -> bool) -> bool {
        if !self.0.swap(NEAR, WRITING) {
            return false;
        }
        write();
        self.0.store(ASKED);
        loop {
            match self.0.load() {
                DONE => break,
                ASKED if !waits() && self.0.swap(ASKED, AWAY) => return false,
                _ => W::pause(),
            }
        }
        self.0.store(AWAY);
        true
    }

    /// Stands by from now on, until [`StandIn::go`]; for one thread.
    pub(super) fn come(&self) {
        self.0.swap(AWAY, NEAR);
    }

    /// Does what was asked for, if something was; also when `work` panics, the asker goes on.
    pub(super) fn serve(&self, work: impl FnOnce()) -> bool {
        struct Ends<'a, W: Word>(&'a StandIn<W>);
        impl<W: Word> Drop for Ends<'_, W> {
            fn drop(&mut self) {
                self.0.0.store(DONE);
            }
        }
        if !self.0.swap(ASKED, TAKEN) {
            return false;
        }
        let _ends = Ends(self);
        work();
        true
    }

    /// Stands by no more. `false`: somebody asks, and is to be served first.
    pub(super) fn go(&self) -> bool {
        !matches!(self.0.load(), NEAR | WRITING | ASKED) || self.0.swap(NEAR, AWAY)
    }
}

#[cfg(test)]
mod model;
