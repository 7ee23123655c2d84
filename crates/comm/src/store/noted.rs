//! A store that remembers which keys were named.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::error::StoreError;
use super::{CasOutcome, Store};

/// Passes everything on, and remembers the keys that were read, written or waited for: whoever is done with a part of a store whose
/// keys were chosen by another can delete them, those of ranks that died among them.
///
/// Clones share what they remember. A name is remembered once, and forgotten when its key is deleted through the same store.
#[derive(Debug, Clone)]
pub struct NotedStore {
    inner: Arc<dyn Store>,
    names: Arc<Mutex<BTreeSet<String>>>,
}

impl NotedStore {
    /// Notes what is done in `inner`.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, names: Arc::default() }
    }

    /// Names of the keys, ascending; they are forgotten.
    pub fn take(&self) -> Vec<String> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *names).into_iter().collect()
    }

    fn note(&self, key: &str) {
        // A set is whole between any two of its operations.
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if !names.contains(key) {
            names.insert(key.to_owned());
        }
    }
}

impl Store for NotedStore {
    fn set(&self, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        self.note(key);
        self.inner.set(key, value, deadline)
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        self.note(key);
        self.inner.get(key, deadline)
    }

    fn add(&self, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        self.note(key);
        self.inner.add(key, delta, deadline)
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        self.note(key);
        self.inner.compare_and_set(key, expected, new, deadline)
    }

    fn wait(&self, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        keys.iter().for_each(|key| self.note(key));
        self.inner.wait(keys, deadline)
    }

    fn wait_change(
        &self,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.note(key);
        self.inner.wait_change(key, known, deadline)
    }

    fn delete(&self, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        let deleted = self.inner.delete(key, deadline)?;
        self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        Ok(deleted)
    }

    fn get_many(&self, keys: &[&str], deadline: Instant) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        keys.iter().for_each(|key| self.note(key));
        self.inner.get_many(keys, deadline)
    }

    fn max_value(&self) -> usize {
        self.inner.max_value()
    }

    fn max_key(&self) -> usize {
        self.inner.max_key()
    }
}
