//! One rank's part of a submitted wave.

use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::Instant;

use eplb_comm::host::HostFence;
use eplb_comm::{CommError, FenceState};
use eplb_core::RankId;

use crate::shared::Shared;

/// What is known of a wave outside the lane that carries it out. It is the state behind the fence of `done`: a poll after
/// the deadline fails it.
#[derive(Debug)]
pub(crate) struct WaveTicket {
    number: u64,
    rank: RankId,
    fence: Arc<HostFence>,
    submitted: Instant,
    deadline: Instant,
    /// To move on when nobody else does: a communicator without a thread.
    driver: Weak<Shared>,
}

impl WaveTicket {
    pub(crate) fn new(number: u64, rank: RankId, deadline: Instant, driver: Weak<Shared>) -> Self {
        Self { number, rank, fence: HostFence::new(), submitted: Instant::now(), deadline, driver }
    }

    pub(crate) fn pass(&self) {
        self.fence.pass();
    }

    pub(crate) fn fail(&self, cause: CommError) {
        self.fence.fail(cause);
    }

    /// How it ended, if it has. A poll after the deadline ends it.
    pub(crate) fn state(&self) -> Result<bool, CommError> {
        if self.fence.poll()? {
            return Ok(true);
        }
        if Instant::now() < self.deadline {
            return Ok(false);
        }
        self.fence.fail(CommError::Timeout {
            rank: self.rank,
            what: format!("wave of ticket {}", self.number),
            waited: self.submitted.elapsed(),
        });
        // It may have ended in between; then it passed.
        self.fence.poll()
    }
}

impl FenceState for WaveTicket {
    fn poll(&self) -> Result<bool, CommError> {
        if let Some(shared) = self.driver.upgrade() {
            shared.attend();
        }
        self.state()
    }

    fn as_any(&self) -> &dyn Any {
        &*self.fence
    }
}
