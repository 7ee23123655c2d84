//! A store for the threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::deadlines::left;
use super::error::{StoreError, StoreOp};
use super::limits::{Limits, check_key};
use super::table::Table;
use super::{CasOutcome, Store};

/// A map behind a mutex, with a condition variable for waits. Clones are handles of the same store.
///
/// Memory ordering: what a thread did before an operation happens-before what another thread does after an operation
/// that saw its effect (the mutex orders both).
#[derive(Debug, Clone)]
pub struct InProcessStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    limits: Limits,
}

#[derive(Debug)]
struct State {
    table: Table,
    /// Why the store was closed; every later operation fails with it.
    closed: Option<String>,
}

impl InProcessStore {
    /// An empty store with the default limits.
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// An empty store.
    pub fn with_limits(limits: Limits) -> Self {
        let state = State { table: Table::new(limits), closed: None };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), limits }) }
    }

    /// Ends the store: waits under way and every later operation of any handle fail with [`StoreError::Lost`].
    pub fn close(&self, cause: &str) {
        self.lock().closed.get_or_insert_with(|| cause.to_owned());
        self.shared.changed.notify_all();
    }

    /// Number of keys held.
    pub fn len(&self) -> usize {
        self.lock().table.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No operation leaves the table half changed when it panics, so a poisoned lock is still a good one.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, when the store is open and the deadline ahead.
    fn enter(&self, op: StoreOp, key: &str, deadline: Instant) -> Result<MutexGuard<'_, State>, StoreError> {
        check_key(key)?;
        let state = self.lock();
        state.open()?;
        if left(deadline).is_zero() {
            return Err(StoreError::timeout(op, key, std::time::Duration::ZERO));
        }
        Ok(state)
    }

    /// Runs a mutation and wakes the waiting when it changed something.
    fn mutate<T>(
        &self,
        op: StoreOp,
        key: &str,
        deadline: Instant,
        change: impl FnOnce(&mut Table) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let result = change(&mut self.enter(op, key, deadline)?.table);
        if result.is_ok() {
            self.shared.changed.notify_all();
        }
        result
    }
}

impl State {
    fn open(&self) -> Result<(), StoreError> {
        match &self.closed {
            Some(cause) => Err(StoreError::Lost { store: "in process".to_owned(), cause: cause.clone() }),
            None => Ok(()),
        }
    }
}

impl Default for InProcessStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for InProcessStore {
    fn set(&self, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        self.mutate(StoreOp::Set, key, deadline, |table| table.set(key, value).map(drop))
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.enter(StoreOp::Get, key, deadline)?.table.get(key).cloned();
        Ok(value.map(|value| value.to_vec()))
    }

    fn add(&self, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        self.mutate(StoreOp::Add, key, deadline, |table| table.add(key, delta).map(|(sum, _)| sum))
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        self.mutate(StoreOp::CompareAndSet, key, deadline, |table| {
            Ok(match table.compare_and_set(key, expected, new)? {
                Some(_) => CasOutcome::Swapped,
                None => CasOutcome::Current(table.get(key).map(|value| value.to_vec())),
            })
        })
    }

    fn wait(&self, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let mut missing = keys.to_vec();
        for key in keys {
            check_key(key)?;
        }
        let had_passed = left(deadline).is_zero();
        let mut state = self.lock();
        loop {
            state.open()?;
            // Before the clock: what came while this thread was kept from looking is not missing.
            if !had_passed {
                missing.retain(|key| state.table.get(key).is_none());
                if missing.is_empty() {
                    return Ok(());
                }
            }
            let left = left(deadline);
            if left.is_zero() {
                let keys = missing.into_iter().map(str::to_owned).collect();
                return Err(StoreError::Timeout { op: StoreOp::Wait, keys, waited: start.elapsed() });
            }
            (state, _) =
                self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait_change(
        &self,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let start = Instant::now();
        check_key(key)?;
        let had_passed = left(deadline).is_zero();
        let mut state = self.lock();
        loop {
            state.open()?;
            // Before the clock, as in `wait`.
            let current = state.table.get(key);
            if !had_passed && current.map(|value| &**value) != known {
                return Ok(current.map(|value| value.to_vec()));
            }
            let left = left(deadline);
            if left.is_zero() {
                return Err(StoreError::timeout(StoreOp::WaitChange, key, start.elapsed()));
            }
            (state, _) =
                self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn delete(&self, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        self.mutate(StoreOp::Delete, key, deadline, |table| Ok(table.delete(key)))
    }

    fn max_value(&self) -> usize {
        self.shared.limits.max_value
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::store::deadlines::after;

    /// What a wait ends with that cannot look between its first look and its deadline, while `key` comes.
    fn kept_from_looking<T: Send>(key: &str, wait: impl FnOnce(&InProcessStore, Instant) -> T + Send) -> T {
        let store = InProcessStore::new();
        let (begin, begun) = mpsc::channel();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let deadline = after(Duration::from_secs(3));
                begin.send(deadline).unwrap();
                wait(&store, deadline)
            });
            let deadline = begun.recv().unwrap();
            let mut state = store.lock();
            state.table.set(key, b"new").unwrap();
            thread::sleep(left(deadline) + Duration::from_millis(1));
            drop(state);
            waiting.join().unwrap()
        })
    }

    #[test]
    fn a_wait_that_looks_late_names_only_what_has_not_come() {
        let outcome =
            kept_from_looking("comes", |store, deadline| store.wait(&["comes", "does not"], deadline));
        match outcome {
            Err(StoreError::Timeout { keys, .. }) => assert_eq!(keys, ["does not"]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_change_that_is_seen_late_is_seen() {
        let seen = kept_from_looking("k", |store, deadline| store.wait_change("k", None, deadline));
        assert_eq!(seen, Ok(Some(b"new".to_vec())));
    }
}
