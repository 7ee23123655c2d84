//! What lock-free words are made of: here the machine's; in `tests/orders` the same sources run on a model checker's.

pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
