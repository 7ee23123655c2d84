//! What words and threads are made of: here the machine's and the system's; in `tests/words` and `tests/schedules` the same sources run
//! on model checkers'.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use std::thread::{sleep, yield_now};
