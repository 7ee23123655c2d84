//! Errors of every store.

use std::fmt;
use std::io;
use std::time::Duration;

/// The operation of a store that an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreOp {
    /// Reaching the store for the first time.
    Connect,
    /// [`Store::set`](super::Store::set).
    Set,
    /// [`Store::get`](super::Store::get) and [`Store::get_many`](super::Store::get_many).
    Get,
    /// [`Store::add`](super::Store::add).
    Add,
    /// [`Store::compare_and_set`](super::Store::compare_and_set).
    CompareAndSet,
    /// [`Store::wait`](super::Store::wait).
    Wait,
    /// [`Store::wait_change`](super::Store::wait_change).
    WaitChange,
    /// [`Store::delete`](super::Store::delete).
    Delete,
}

impl fmt::Display for StoreOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Set => "set",
            Self::Get => "get",
            Self::Add => "add",
            Self::CompareAndSet => "compare-and-set",
            Self::Wait => "wait",
            Self::WaitChange => "wait-change",
            Self::Delete => "delete",
        })
    }
}

/// Why an operation of a store failed.
///
/// After [`StoreError::Timeout`] and [`StoreError::Lost`] a mutation may or may not have taken effect; every other
/// error means that it has not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The deadline passed.
    #[error("store {op} of {} timed out after {waited:?}: {}", Keys(keys), advice(*op))]
    Timeout {
        /// The operation.
        op: StoreOp,
        /// Its key; for a wait, the keys that are still missing; for connect, the address.
        keys: Vec<String>,
        /// Time from the call to giving up.
        waited: Duration,
    },
    /// The rank that waited was told not to wait any more; see [`Interrupt`](super::Interrupt).
    #[error("store {op} of {} was left: this rank was told to end, or to form a new epoch", Keys(keys))]
    Interrupted {
        /// The operation.
        op: StoreOp,
        /// Its keys.
        keys: Vec<String>,
    },
    /// The store is gone for good: this handle answers nothing any more, whatever is tried.
    #[error(
        "store {store} is lost ({cause}); its contents are gone for this process: start a store and open it again"
    )]
    Lost {
        /// Which store: its address or folder.
        store: String,
        /// What was seen.
        cause: String,
    },
    /// One side of a TCP store does not accept the other.
    #[error("store {store} refused: {reason}")]
    Refused {
        /// The server's address.
        store: String,
        /// Why, and what to set.
        reason: String,
    },
    /// A key or value is longer than the store takes.
    #[error("{what} of {bytes} bytes for store key {key:?} is over the limit of {limit}; {}", shorten(what))]
    TooLarge {
        /// `"key"`, `"value"` or `"request"`.
        what: &'static str,
        /// The key (its beginning, if the key is what is too long).
        key: String,
        /// Size found, bytes.
        bytes: usize,
        /// Largest size taken, bytes.
        limit: usize,
    },
    /// A key that no store takes.
    #[error("store key {key:?} cannot be used: {reason}")]
    BadKey {
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The store has no room left; what it held is unharmed.
    #[error("store has no room for {key:?}: {detail}")]
    Full {
        /// The key that was to be written or waited for.
        key: String,
        /// Which bound was met and what to raise or free.
        detail: String,
    },
    /// `add` on a value that is no counter, or past the range of `i64`.
    #[error("store key {key:?} cannot be added to: {detail}; a counter is a decimal number in ASCII")]
    Counter {
        /// The key.
        key: String,
        /// What was found.
        detail: String,
    },
    /// The other side, or a file, does not speak this store's format.
    #[error("store {store} does not follow the store protocol: {detail}; is every rank of the same version?")]
    Protocol {
        /// Its address or path.
        store: String,
        /// What was found.
        detail: String,
    },
    /// The operating system or a host's callback refused.
    #[error("store {store}: {action} failed: {detail}")]
    Io {
        /// Address, path or the callbacks' name.
        store: String,
        /// What was tried.
        action: String,
        /// Kind of the refusal, for programs.
        kind: io::ErrorKind,
        /// Its text, for people.
        detail: String,
    },
}

impl StoreError {
    /// An error of the operating system.
    pub(crate) fn io(store: impl fmt::Display, action: impl Into<String>, error: &io::Error) -> Self {
        Self::Io {
            store: store.to_string(),
            action: action.into(),
            kind: error.kind(),
            detail: error.to_string(),
        }
    }

    /// A deadline that passed on one key.
    pub(crate) fn timeout(op: StoreOp, key: impl Into<String>, waited: Duration) -> Self {
        Self::Timeout { op, keys: vec![key.into()], waited }
    }

    /// Whether the deadline passed and the same call may be tried again.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }

    /// Whether the call was left because this rank was told not to wait.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted { .. })
    }

    /// Whether the store is gone for good.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

fn advice(op: StoreOp) -> &'static str {
    match op {
        StoreOp::Connect => "start the rank that serves it first, and check address, port and firewall",
        StoreOp::Wait | StoreOp::WaitChange => {
            "a rank that should write it is late, stopped or dead, or its deadline is too short"
        }
        _ => "the store is overloaded or unreachable, or its lock is held by a stopped process",
    }
}

fn shorten(what: &str) -> &'static str {
    match what {
        "key" => "use a shorter prefix",
        _ => "send less in one message, or raise `Limits::max_value`",
    }
}

/// Keys in a message: the first few, and how many more.
struct Keys<'a>(&'a [String]);

impl fmt::Display for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (i, key) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{key:?}", if i > 0 { ", " } else { "" })?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(f, " and {more} more"),
            _ => Ok(()),
        }
    }
}
