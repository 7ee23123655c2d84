//! When what happened in an exchange: a recorder that the parts of a rank share, for benches.
//!
//! A part that was given no recorder looks at an `Option` and does no more. One that was writes a few words under a lock that the threads
//! of one rank share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eplb_core::RankId;

use crate::communicator::Ticket;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// An exchange began.
    Began,
    /// The exchange came into a phase of a wave.
    Phase {
        /// Number of the wave.
        wave: usize,
        /// Name of the phase.
        name: &'static str,
    },
    /// A part of a wave is about to be handed to the communicator.
    Submitting,
    /// A part of a wave was handed to the communicator.
    Submitted {
        /// Number of the wave.
        wave: usize,
        /// Whether it goes beside the wave before.
        early: bool,
        /// The communicator's name for it.
        ticket: Ticket,
    },
    /// The communicator said that a submission may start at this rank.
    Announced(Ticket),
    /// The first of a submission's transfers was enqueued.
    FirstEnqueued(Ticket),
    /// All of its transfers are enqueued.
    AllEnqueued(Ticket),
    /// Its bytes are in.
    Landed(Ticket),
    /// The exchange knows that a submission's bytes are in.
    Arrived(Ticket),
    /// The commit of a wave was enqueued.
    CommitEnqueued(usize),
    /// The commit of a wave is complete.
    Committed(usize),
    /// The exchange is over.
    Ended,
}

/// A moment of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Since the recorder was made.
    pub at: Duration,
    /// What happened.
    pub what: Moment,
}

/// The moments of one rank, in the order in which they were told.
#[derive(Debug)]
pub struct Timeline {
    /// The rank.
    pub rank: RankId,
    start: Instant,
    marks: Mutex<Vec<Mark>>,
}

impl Timeline {
    /// Nothing yet. `start` is what times count from: the same for all ranks of a process.
    pub fn new(rank: RankId, start: Instant) -> Arc<Self> {
        Arc::new(Self { rank, start, marks: Mutex::default() })
    }

    /// Tells that something happened now.
    pub fn tell(&self, what: Moment) {
        let mark = Mark { at: self.start.elapsed(), what };
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).push(mark);
    }

    /// What was told since the last call.
    pub fn take(&self) -> Vec<Mark> {
        std::mem::take(&mut *self.marks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Tells a moment to a recorder, if there is one.
pub fn tell(timeline: &Option<Arc<Timeline>>, what: impl FnOnce() -> Moment) {
    if let Some(timeline) = timeline {
        timeline.tell(what());
    }
}
