//! A point in the order of a stream.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::RankId;

use crate::error::CommError;

/// What a stream records: a point that is passed once and for ever.
///
/// Ordering: everything enqueued before the point happens-before a [`FenceState::poll`] that returns `Ok(true)`
/// (implementations use acquire and release, or the driver's own ordering).
pub trait FenceState: Debug + Send + Sync {
    /// Whether the point has been passed. Never blocks. An error is final.
    ///
    /// # Errors
    /// The work before the point failed.
    fn poll(&self) -> Result<bool, CommError>;

    /// The object behind the fence, for a stream of the same kind that can wait on it without the host.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// A handle on a point in the order of a stream; cheap to clone and send.
#[derive(Debug, Clone)]
pub struct Fence(Arc<dyn FenceState>);

#[derive(Debug)]
struct Passed;

impl FenceState for Passed {
    fn poll(&self) -> Result<bool, CommError> {
        Ok(true)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Fence {
    /// A fence over the given state.
    pub fn new(state: Arc<dyn FenceState>) -> Self {
        Self(state)
    }

    /// A fence that has been passed: nothing to wait for.
    pub fn passed() -> Self {
        Self(Arc::new(Passed))
    }

    /// Whether the point has been passed. Never blocks.
    ///
    /// # Errors
    /// The work before the point failed.
    pub fn poll(&self) -> Result<bool, CommError> {
        self.0.poll()
    }

    /// The state behind the fence.
    pub fn state(&self) -> &Arc<dyn FenceState> {
        &self.0
    }

    /// Waits on the host until the point is passed. For threads that may block: never the forward path.
    ///
    /// # Errors
    /// The work failed, or the deadline passed first.
    pub fn wait(&self, rank: RankId, what: &str, deadline: Instant) -> Result<(), CommError> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(1);
        while !self.poll()? {
            if Instant::now() >= deadline {
                return Err(CommError::Timeout { rank, what: what.into(), waited: start.elapsed() });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
        Ok(())
    }
}
