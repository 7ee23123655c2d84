//! The forward path: what happens between two passes.

use std::time::{Duration, Instant};

use eplb_comm::Stream;
use eplb_core::RankId;

use super::Driver;
use super::active::Caller;
use crate::error::EngineError;

/// Why steps must not run.
#[derive(Debug, Clone)]
pub(super) enum Bar {
    /// A wave is undecided: this step and later ones.
    Undecided { step: u64, wave: usize },
    /// A commit failed on a device: no step at all.
    Broken { broken: RankId, wave: usize },
    /// The ranks do not go on from one placement yet: no step at all.
    Unformed,
}

/// What commits cost the steps that they come before: waits for decisions, and whole calls of [`Driver::step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Steps that waited for a decision.
    pub steps: u64,
    /// For how long in all.
    pub time: Duration,
    /// Steps before which a commit was enqueued.
    pub commits: u64,
    /// How long those calls took in all, waits for decisions included.
    pub commit_time: Duration,
}

impl std::ops::AddAssign for Held {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.time += other.time;
        self.commits += other.commits;
        self.commit_time += other.commit_time;
    }
}

impl<S: Stream> Driver<S> {
    /// To be called before each forward pass; `id`s rise strictly.
    ///
    /// # Errors
    /// [`EngineError::Undecided`], [`EngineError::Broken`]: the pass must not run, and no later one until the ranks have formed
    /// a new epoch and this driver was made anew. Stream or communicator errors.
    pub fn step(&mut self, id: u64) -> Result<(), EngineError> {
        match &self.barred {
            Some(Bar::Undecided { step, .. }) if id < *step => {}
            Some(bar) => return Err(self.refuse(bar, id)),
            None => {}
        }
        let (begun, enqueued);
        let wave = match &mut self.active {
            None => {
                self.last_step = Some(id);
                return Ok(());
            }
            Some(active) => {
                (begun, enqueued) = (Instant::now(), self.enqueued);
                if let Some(last) = self.last_step {
                    active.steps.push_back((last, self.stream.record()?));
                }
                active.exchange.begin_step(id, begun);
                active.exchange.wave()
            }
        };
        self.last_step = Some(id);
        self.act(Caller::Pass);
        if self.enqueued > enqueued {
            self.held.commits += 1;
            self.held.commit_time += begun.elapsed();
        }
        let Some(active) = &mut self.active else { return Ok(()) };
        if active.exchange.end_boundary() {
            return Ok(());
        }
        let bar = match active.exchange.broken() {
            Some((broken, wave)) => Bar::Broken { broken, wave },
            None => Bar::Undecided { step: id, wave },
        };
        let error = self.refuse(&bar, id);
        self.barred = Some(bar);
        Err(error)
    }

    pub(super) fn refuse(&self, bar: &Bar, step: u64) -> EngineError {
        match *bar {
            Bar::Undecided { wave, .. } => EngineError::Undecided { rank: self.rank, step, wave },
            Bar::Broken { broken, wave } => EngineError::Broken { rank: self.rank, step, broken, wave },
            Bar::Unformed => EngineError::Unformed { rank: self.rank, step },
        }
    }

    /// To be called now and then while the rank runs no steps.
    ///
    /// # Errors
    /// Stream or communicator errors.
    pub fn tick(&mut self) -> Result<(), EngineError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if let Some(last) = self.last_step
            && active.steps.back().is_none_or(|&(id, _)| id < last)
        {
            active.steps.push_back((last, self.stream.record()?));
        }
        active.exchange.tick(Instant::now());
        self.act(Caller::Pass);
        if let Some(active) = &mut self.active {
            active.exchange.end_boundary();
        }
        Ok(())
    }

    /// From now on no step may run, until [`Driver::unbar`]: slots and maps of the ranks need not fit each other.
    pub fn bar(&mut self) {
        self.barred = Some(Bar::Unformed);
    }

    /// All ranks go on from one placement, and each holds what it says: steps may run.
    pub fn unbar(&mut self) {
        self.barred = None;
    }

    /// Whether steps must not run any more.
    pub fn is_barred(&self) -> bool {
        self.barred.is_some()
    }
}
