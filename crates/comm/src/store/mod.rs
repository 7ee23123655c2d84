//! Rendezvous: a small shared map through which ranks find each other, agree, and notice failures.
//!
//! [`Store`] is the map. Implementations: [`InProcessStore`] (threads of one process), [`FileStore`] (a shared
//! folder), [`TcpStore`] with its [`StoreServer`] (one rank serves, many connect), [`CallbackStore`] (a host's own).
//! [`PrefixStore`] gives a part of a program its own corner of any of them. All pass [`conformance`].
//!
//! On top: [`identity`] (which start of which rank takes part, and the epoch that numbers every later key),
//! [`group`] (all-gather, broadcast, barrier, agreement) and [`liveness`] (who is still there).
//!
//! # What every store promises
//! - **Linearizable**: each operation takes effect at one moment between call and return.
//! - **Deadlines**: an operation returns by its deadline, or shortly after it where a thread has to be woken, with
//!   [`StoreError::Timeout`]. One whose deadline has already passed does nothing and says so. What did time out
//!   after it had begun may or may not have taken effect.
//! - **Whole values**: a reader sees a value as it was written or not at all, whoever dies while writing it.
//! - **Keys** are text of 1 to [`Store::max_key`] bytes; no character means anything to a store. **Values** are bytes,
//!   also none at all, up to [`Store::max_value`].
//! - **Counters** are decimal ASCII numbers, so that `get`, `set` and `compare_and_set` work on them too.

#![forbid(unsafe_code)]

use std::fmt;
use std::time::Instant;

pub mod callback;
pub mod conformance;
pub mod deadlines;
pub mod eager;
pub mod error;
mod fields;
pub mod file;
pub mod group;
pub mod identity;
pub mod in_process;
pub mod intercept;
pub mod interrupt;
pub mod limits;
pub mod liveness;
pub mod locate;
pub mod noted;
pub mod prefix;
mod table;
pub mod tcp;

pub use callback::{CallbackFailure, CallbackStore, Callbacks};
pub use deadlines::Deadlines;
pub use error::{StoreError, StoreOp};
pub use file::FileStore;
pub use group::{Group, GroupError};
pub use identity::{Absent, EpochRecord, Formation, FormationError, Nonce};
pub use in_process::InProcessStore;
pub use intercept::{InterceptedStore, StoreIntercept};
pub use interrupt::{Interrupt, InterruptibleStore};
pub use limits::{Limits, MAX_KEY_BYTES};
pub use liveness::{Life, Liveness, Pulse, Renewal};
pub use locate::StoreAddress;
pub use noted::{Names, NotedStore};
pub use prefix::PrefixStore;
pub use tcp::{ServerOptions, ServerStats, StoreServer, TcpStore, Token};

#[cfg(test)]
mod tests;

/// What came of a [`Store::compare_and_set`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a compare-and-set that did not swap changed nothing"]
pub enum CasOutcome {
    /// The key held what was expected and now holds the new value.
    Swapped,
    /// It held something else, given here (`None`: absent), and still does.
    Current(Option<Vec<u8>>),
}

/// A shared map of byte strings. See the [module](self) for what every implementation promises.
///
/// Handles are used from many threads at once; a blocked wait of one thread does not hold up another.
pub trait Store: fmt::Debug + Send + Sync {
    /// Writes a value, whatever the key held.
    ///
    /// # Errors
    /// [`StoreError::Full`] when there is no room (the old value stays), [`StoreError::TooLarge`], and what can
    /// happen to any operation: [`StoreError::Timeout`], [`StoreError::Lost`], [`StoreError::BadKey`],
    /// [`StoreError::Protocol`], [`StoreError::Io`].
    fn set(&self, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError>;

    /// Reads a value; `None` when the key is absent. Waits for nobody.
    ///
    /// # Errors
    /// What can happen to any operation.
    fn get(&self, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError>;

    /// Adds to a counter, absent counting as 0, and returns the sum.
    ///
    /// # Errors
    /// [`StoreError::Counter`] when the value is no number or the sum does not fit; else as [`Store::set`].
    fn add(&self, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError>;

    /// Writes `new` if the key holds `expected` (`None`: if it is absent).
    ///
    /// # Errors
    /// As [`Store::set`]. A different value is no error but [`CasOutcome::Current`].
    fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError>;

    /// Blocks until all keys have been present, each at some moment of the call.
    ///
    /// # Errors
    /// [`StoreError::Timeout`] lists the keys that were still missing at the deadline (and those that the
    /// store could not be asked about in time); else as for any operation.
    fn wait(&self, keys: &[&str], deadline: Instant) -> Result<(), StoreError>;

    /// Blocks until the key differs from `known` (`None`: absent) and returns what it holds then.
    ///
    /// Values in between may be missed; a key that left `known` and came back may or may not be noticed. To watch
    /// many keys with one call, let their writers [`add`](Store::add) to one more key and watch that.
    ///
    /// # Errors
    /// [`StoreError::Timeout`] if it is still the same at the deadline; else as for any operation.
    fn wait_change(
        &self,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError>;

    /// Removes a key; whether it was there.
    ///
    /// # Errors
    /// What can happen to any operation.
    fn delete(&self, key: &str, deadline: Instant) -> Result<bool, StoreError>;

    /// Reads several keys, one after another in their order: of two values that a writer changes one after the other, whoever names the later one
    /// first sees the other at least as new. Each read is linearizable, all of them together are not.
    ///
    /// # Errors
    /// As [`Store::get`].
    fn get_many(&self, keys: &[&str], deadline: Instant) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        keys.iter().map(|key| self.get(key, deadline)).collect()
    }

    /// Largest value that it takes, bytes.
    fn max_value(&self) -> usize;

    /// Longest key that it takes, bytes.
    fn max_key(&self) -> usize {
        MAX_KEY_BYTES
    }
}
