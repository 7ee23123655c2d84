//! Fences that host threads pass.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::CommError;
use crate::fence::{Fence, FenceState};

const PENDING: u8 = 0;
const PASSED: u8 = 1;
const FAILED: u8 = 2;

type Waker = Box<dyn FnOnce(Result<(), CommError>) + Send>;

/// A fence that a host thread passes or fails, once and for ever.
///
/// Ordering: what the thread did before [`HostFence::pass`] happens-before a poll that sees it passed (a release store
/// of the state, an acquire load).
pub struct HostFence {
    state: AtomicU8,
    settled: Mutex<Settled>,
}

#[derive(Default)]
struct Settled {
    cause: Option<CommError>,
    wakers: Vec<Waker>,
}

impl fmt::Debug for HostFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state.load(Ordering::Acquire) {
            PENDING => "pending",
            PASSED => "passed",
            _ => "failed",
        };
        f.debug_tuple("HostFence").field(&state).finish()
    }
}

impl HostFence {
    /// A fence that is not passed yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: AtomicU8::new(PENDING), settled: Mutex::default() })
    }

    /// The handle to wait on.
    pub fn fence(self: &Arc<Self>) -> Fence {
        Fence::new(self.clone())
    }

    /// Passes the fence. Does nothing if it was passed or failed before; returns whether it did something.
    pub fn pass(&self) -> bool {
        self.settle(PASSED, None)
    }

    /// Fails the fence. Does nothing if it was passed or failed before; returns whether it did something.
    pub fn fail(&self, cause: CommError) -> bool {
        self.settle(FAILED, Some(cause))
    }

    /// Whether it was passed or failed.
    pub fn is_settled(&self) -> bool {
        self.state.load(Ordering::Acquire) != PENDING
    }

    fn settle(&self, state: u8, cause: Option<CommError>) -> bool {
        let wakers = {
            let mut settled = self.lock();
            if self.is_settled() {
                return false;
            }
            settled.cause = cause.clone();
            self.state.store(state, Ordering::Release);
            std::mem::take(&mut settled.wakers)
        };
        let result = cause.map_or(Ok(()), Err);
        wakers.into_iter().for_each(|wake| wake(result.clone()));
        true
    }

    /// Calls `wake` with the outcome once the fence is passed or failed: at once if it is. Wakers must be short and
    /// never panic; they run on the thread that settles the fence, with no lock of the fence held.
    pub fn on_settled(&self, wake: impl FnOnce(Result<(), CommError>) + Send + 'static) {
        let result = {
            let mut settled = self.lock();
            if !self.is_settled() {
                settled.wakers.push(Box::new(wake));
                return;
            }
            settled.cause.clone().map_or(Ok(()), Err)
        };
        wake(result);
    }

    fn lock(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FenceState for HostFence {
    fn poll(&self) -> Result<bool, CommError> {
        match self.state.load(Ordering::Acquire) {
            PENDING => Ok(false),
            PASSED => Ok(true),
            // `fail` is the only way here and leaves a cause.
            _ => self.lock().cause.clone().map_or(Ok(false), Err),
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
