//! Words and threads of the model checker.

pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering};
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use shuttle::thread::yield_now;

/// Time does not pass in a schedule.
pub(crate) fn sleep(_: std::time::Duration) {
    yield_now();
}
