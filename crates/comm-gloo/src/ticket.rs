//! One rank's part of a submitted wave.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use eplb_comm::host::HostFence;
use eplb_comm::{CommError, Fence, FenceState};
use eplb_core::{RankId, Transfer};

use crate::slot::{WaveId, wave_hash};

/// Which way bytes go. Each direction has threads and a queue of its own: one waits for the other only through other ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To other ranks.
    Out,
    /// To this rank, or inside it.
    In,
}

/// A wave whole, and what of it this rank takes part in. It is the state behind the fence of `done`: a poll after the
/// deadline fails it.
///
/// Ordering: the lane that carries it passes the fence after the last byte (release), a poll acquires.
#[derive(Debug)]
pub(crate) struct GlooTicket {
    pub(crate) number: u64,
    pub(crate) wave: WaveId,
    rank: RankId,
    pub(crate) transfers: Arc<[Transfer]>,
    /// Indices of the transfers that this rank sends to others, in canonical order.
    sends: Vec<usize>,
    /// Indices of those that land on this rank, what it copies inside itself among them, in canonical order.
    lands: Vec<usize>,
    pub(crate) after: Fence,
    left: AtomicUsize,
    fence: Arc<HostFence>,
    submitted: Instant,
    pub(crate) deadline: Instant,
}

impl GlooTicket {
    pub(crate) fn new(
        number: u64,
        generation: u64,
        rank: RankId,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Self {
        let pick = |part: &dyn Fn(&Transfer) -> bool| -> Vec<usize> {
            transfers.iter().enumerate().filter(|(_, t)| part(t)).map(|(at, _)| at).collect()
        };
        let sends = pick(&|t| t.source == rank && t.dest != rank);
        let lands = pick(&|t| t.dest == rank);
        let parts = sends.len() + lands.len();
        let fence = HostFence::new();
        if parts == 0 {
            fence.pass();
        }
        Self {
            number,
            wave: WaveId { generation, sequence: number, hash: wave_hash(transfers) },
            rank,
            transfers: transfers.clone(),
            left: AtomicUsize::new(parts),
            sends,
            lands,
            after,
            fence,
            submitted: Instant::now(),
            deadline,
        }
    }

    /// What of it goes in a direction.
    pub(crate) fn part(&self, direction: Direction) -> &[usize] {
        match direction {
            Direction::Out => &self.sends,
            Direction::In => &self.lands,
        }
    }

    /// Whether it ended, well or not.
    pub(crate) fn is_over(&self) -> bool {
        self.fence.is_settled()
    }

    /// Whether bytes of it may be carried: it is not over, and its deadline has not passed.
    pub(crate) fn may_go_on(&self) -> bool {
        matches!(self.poll(), Ok(false))
    }

    /// One transfer is through and its guards are gone.
    pub(crate) fn transfer_done(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.fence.pass();
        }
    }

    pub(crate) fn fail(&self, cause: CommError) {
        self.fence.fail(cause);
    }

    /// The error that it ended with, if it did.
    pub(crate) fn failure(&self) -> Option<CommError> {
        self.fence.poll().err()
    }

    /// In words.
    pub(crate) fn describe(&self) -> String {
        let left = self.left.load(Ordering::Relaxed);
        format!(
            "wave of ticket {} ({left} of {} transfers left)",
            self.number,
            self.sends.len() + self.lands.len()
        )
    }
}

impl FenceState for GlooTicket {
    fn poll(&self) -> Result<bool, CommError> {
        if self.fence.poll()? {
            return Ok(true);
        }
        if Instant::now() < self.deadline {
            return Ok(false);
        }
        self.fence.fail(CommError::Timeout {
            rank: self.rank,
            what: self.describe(),
            waited: self.submitted.elapsed(),
        });
        // The last transfer may have ended in between; then it passed.
        self.fence.poll()
    }

    /// The host fence inside, which can wake a waiter.
    fn as_any(&self) -> &dyn Any {
        &*self.fence
    }
}
