//! One rank's part of a submitted wave.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use eplb_core::{RankId, Transfer};

use crate::error::CommError;
use crate::fence::FenceState;
use crate::host::HostFence;

/// The transfers that one rank pulls for a wave, and how many are left. It is the state behind the fence of
/// `done`: a poll after the deadline fails it.
///
/// Ordering: a thread that ends a transfer releases its bytes with the decrement of `left`; the thread that reaches 0
/// has acquired all of them and passes the fence.
#[derive(Debug)]
pub(super) struct LocalTicket {
    pub(super) number: u64,
    pub(super) rank: RankId,
    pub(super) transfers: Vec<Transfer>,
    left: AtomicUsize,
    fence: Arc<HostFence>,
    submitted: Instant,
    deadline: Instant,
}

impl LocalTicket {
    pub(super) fn new(number: u64, rank: RankId, transfers: Vec<Transfer>, deadline: Instant) -> Self {
        let left = AtomicUsize::new(transfers.len());
        let fence = HostFence::new();
        if transfers.is_empty() {
            fence.pass();
        }
        Self { number, rank, transfers, left, fence, submitted: Instant::now(), deadline }
    }

    /// Whether it ended, well or not: nothing of it may start any more.
    pub(super) fn is_over(&self) -> bool {
        self.fence.is_settled()
    }

    /// Whether a copy of it may start: it is not over, and its deadline has not passed.
    pub(super) fn may_start(&self) -> bool {
        matches!(self.poll(), Ok(false))
    }

    /// One transfer is done and its guards are gone.
    pub(super) fn transfer_done(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.fence.pass();
        }
    }

    pub(super) fn fail(&self, cause: CommError) {
        self.fence.fail(cause);
    }
}

impl FenceState for LocalTicket {
    fn poll(&self) -> Result<bool, CommError> {
        if self.fence.poll()? {
            return Ok(true);
        }
        if Instant::now() < self.deadline {
            return Ok(false);
        }
        let left = self.left.load(Ordering::Relaxed);
        self.fence.fail(CommError::Timeout {
            rank: self.rank,
            what: format!(
                "wave of ticket {} ({left} of {} transfers left)",
                self.number,
                self.transfers.len()
            ),
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
