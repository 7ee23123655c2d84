//! A store that the host supplies: its own TCPStore, etcd, a database.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use super::deadlines::{Backoff, Deadlines, after, left};
use super::error::{StoreError, StoreOp};
use super::limits::{Limits, check_key};
use super::{CasOutcome, Store};

/// Why a host's callback failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallbackFailure {
    /// It ran out of the time it was given.
    Timeout,
    /// The host's store is gone for good.
    Lost(String),
    /// Anything else; it may be tried again.
    Failed(String),
}

type Outcome<T> = Result<T, CallbackFailure>;

/// What [`Callbacks::compare_and_set`] returns: `Ok(Ok(()))` for swapped, `Ok(Err(current))` for not.
pub type CallbackCas = Outcome<Result<(), Option<Vec<u8>>>>;

/// The operations of a host's store. Each has the meaning of the [`Store`] method of its name; the [`Duration`] is
/// the time that it may take. They are called from several threads at once and must not call back into this library.
///
/// `wait` may be left out: the store then polls with `get`.
pub struct Callbacks {
    /// Name for messages, such as `"c10d TCPStore"`.
    pub name: String,
    /// Writes a value.
    pub set: Box<SetFn>,
    /// Reads a value; `None` when absent. Must not wait for the key to appear.
    pub get: Box<GetFn>,
    /// Adds to a decimal ASCII counter, absent counting as 0.
    pub add: Box<AddFn>,
    /// Writes `new` if the key holds `expected` (`None`: absent), in one atomic step.
    pub compare_and_set: Box<CasFn>,
    /// Removes a key; whether it was there.
    pub delete: Box<DeleteFn>,
    /// Blocks until a key is present.
    pub wait: Option<Box<WaitFn>>,
    /// Largest value that the host's store takes, bytes.
    pub max_value: usize,
}

/// Shape of [`Callbacks::set`].
pub type SetFn = dyn Fn(&str, &[u8], Duration) -> Outcome<()> + Send + Sync;
/// Shape of [`Callbacks::get`].
pub type GetFn = dyn Fn(&str, Duration) -> Outcome<Option<Vec<u8>>> + Send + Sync;
/// Shape of [`Callbacks::add`].
pub type AddFn = dyn Fn(&str, i64, Duration) -> Outcome<i64> + Send + Sync;
/// Shape of [`Callbacks::compare_and_set`].
pub type CasFn = dyn Fn(&str, Option<&[u8]>, &[u8], Duration) -> CallbackCas + Send + Sync;
/// Shape of [`Callbacks::delete`].
pub type DeleteFn = dyn Fn(&str, Duration) -> Outcome<bool> + Send + Sync;
/// Shape of [`Callbacks::wait`].
pub type WaitFn = dyn Fn(&str, Duration) -> Outcome<()> + Send + Sync;

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks")
            .field("name", &self.name)
            .field("wait", &self.wait.is_some())
            .field("max_value", &self.max_value)
            .finish_non_exhaustive()
    }
}

/// A [`Store`] on a host's callbacks.
///
/// A deadline is as good as the host keeps it: a callback that overruns its time is waited for, since Rust cannot
/// take a thread back from it.
#[derive(Debug)]
pub struct CallbackStore {
    host: Callbacks,
}

impl CallbackStore {
    /// Polling of waits: from this..
    const SHORTEST_POLL: Duration = Duration::from_millis(2);
    /// .. to this. A host's store is often a remote one that others use as well.
    const LONGEST_POLL: Duration = Duration::from_millis(50);

    /// A store on these callbacks.
    pub fn new(host: Callbacks) -> Self {
        Self { host }
    }

    /// Checks the call, makes it with the time that is left, and names what went wrong.
    fn call<T>(
        &self,
        op: StoreOp,
        key: &str,
        deadline: Instant,
        call: impl FnOnce(&Callbacks, Duration) -> Outcome<T>,
    ) -> Result<T, StoreError> {
        check_key(key)?;
        let start = Instant::now();
        let left = left(deadline);
        if left.is_zero() {
            return Err(StoreError::timeout(op, key, Duration::ZERO));
        }
        call(&self.host, left).map_err(|failure| match failure {
            CallbackFailure::Timeout => StoreError::timeout(op, key, start.elapsed()),
            CallbackFailure::Lost(cause) => StoreError::Lost { store: self.host.name.clone(), cause },
            CallbackFailure::Failed(detail) => StoreError::Io {
                store: self.host.name.clone(),
                action: format!("callback {op} of {key:?}"),
                kind: io::ErrorKind::Other,
                detail,
            },
        })
    }

    fn check_value(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        Limits { max_value: self.host.max_value, max_total: usize::MAX }.check_value(key, value)
    }

    /// Which keys to name when a wait for the first of them timed out: the others may be there by now, and whoever
    /// should write those is not to blame. Looking takes `reply_grace` at most.
    fn still_missing(&self, keys: &[&str]) -> Vec<String> {
        let deadline = after(Deadlines::DEFAULT.reply_grace);
        let missing = |key: &&&str| !matches!(self.get(key, deadline), Ok(Some(_)));
        let (first, others) =
            keys.split_first().map_or((None, keys), |(first, others)| (Some(first), others));
        first.into_iter().chain(others.iter().filter(missing)).map(|key| (*key).to_owned()).collect()
    }

    /// Polls until `found` says so.
    fn poll<T>(
        &self,
        op: StoreOp,
        key: &str,
        deadline: Instant,
        found: impl Fn(Option<Vec<u8>>) -> Option<T>,
    ) -> Result<T, StoreError> {
        let start = Instant::now();
        let mut backoff = Backoff::new(Self::SHORTEST_POLL, Self::LONGEST_POLL);
        loop {
            match self.call(op, key, deadline, |host, left| (host.get)(key, left)).map(&found) {
                Ok(Some(found)) => return Ok(found),
                Err(StoreError::Timeout { .. }) => {
                    return Err(StoreError::timeout(op, key, start.elapsed()));
                }
                Err(error) => return Err(error),
                Ok(None) => {
                    backoff.pause(deadline);
                }
            }
        }
    }
}

impl Store for CallbackStore {
    fn set(&self, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        self.check_value(key, value)?;
        self.call(StoreOp::Set, key, deadline, |host, left| (host.set)(key, value, left))
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        self.call(StoreOp::Get, key, deadline, |host, left| (host.get)(key, left))
    }

    fn add(&self, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        self.call(StoreOp::Add, key, deadline, |host, left| (host.add)(key, delta, left))
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        self.check_value(key, new)?;
        let outcome = self.call(StoreOp::CompareAndSet, key, deadline, |host, left| {
            (host.compare_and_set)(key, expected, new, left)
        })?;
        Ok(match outcome {
            Ok(()) => CasOutcome::Swapped,
            Err(current) => CasOutcome::Current(current),
        })
    }

    fn wait(&self, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        let start = Instant::now();
        for (i, key) in keys.iter().enumerate() {
            let waited = match &self.host.wait {
                Some(wait) => self.call(StoreOp::Wait, key, deadline, |_, left| wait(key, left)),
                None => self.poll(StoreOp::Wait, key, deadline, |value| value.map(drop)),
            };
            match waited {
                Ok(()) => {}
                Err(StoreError::Timeout { .. }) => {
                    let keys = self.still_missing(&keys[i..]);
                    return Err(StoreError::Timeout { op: StoreOp::Wait, keys, waited: start.elapsed() });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait_change(
        &self,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.poll(StoreOp::WaitChange, key, deadline, |value| (value.as_deref() != known).then_some(value))
    }

    fn delete(&self, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        self.call(StoreOp::Delete, key, deadline, |host, left| (host.delete)(key, left))
    }

    fn max_value(&self) -> usize {
        self.host.max_value
    }
}
