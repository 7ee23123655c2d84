//! A corner of another store.

use std::sync::Arc;
use std::time::Instant;

use super::error::StoreError;
use super::limits::check_key;
use super::{CasOutcome, Store};

/// Puts `prefix/` before every key, so that independent parts of a program share one store without meeting.
///
/// Two prefixes are apart unless one is the other followed by `/`: `ep0` and `ep1` are, `ep` and `ep/0` are nested.
/// Timeouts name keys without the prefix, as the caller knows them; other errors as the inner store does.
#[derive(Debug, Clone)]
pub struct PrefixStore {
    inner: Arc<dyn Store>,
    prefix: String,
}

impl PrefixStore {
    /// The corner of `inner` under `prefix`.
    ///
    /// # Errors
    /// An empty prefix, or one that is itself longer than a key.
    pub fn new(inner: Arc<dyn Store>, prefix: &str) -> Result<Self, StoreError> {
        check_key(prefix)?;
        Ok(Self { inner, prefix: format!("{prefix}/") })
    }

    fn key(&self, key: &str) -> Result<String, StoreError> {
        // An empty key would name the prefix itself; the inner store could not tell.
        check_key(key)?;
        Ok(format!("{}{key}", self.prefix))
    }

    /// An error with keys as the caller knows them.
    fn outward(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Timeout { op, mut keys, waited } => {
                for key in &mut keys {
                    if key.starts_with(&self.prefix) {
                        key.drain(..self.prefix.len());
                    }
                }
                StoreError::Timeout { op, keys, waited }
            }
            other => other,
        }
    }

    fn keys(&self, keys: &[&str]) -> Result<Vec<String>, StoreError> {
        keys.iter().map(|key| self.key(key)).collect()
    }
}

impl Store for PrefixStore {
    fn set(&self, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        self.inner.set(&self.key(key)?, value, deadline).map_err(|error| self.outward(error))
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(&self.key(key)?, deadline).map_err(|error| self.outward(error))
    }

    fn add(&self, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        self.inner.add(&self.key(key)?, delta, deadline).map_err(|error| self.outward(error))
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        self.inner
            .compare_and_set(&self.key(key)?, expected, new, deadline)
            .map_err(|error| self.outward(error))
    }

    fn wait(&self, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        let keys = self.keys(keys)?;
        self.inner
            .wait(&keys.iter().map(String::as_str).collect::<Vec<_>>(), deadline)
            .map_err(|error| self.outward(error))
    }

    fn wait_change(
        &self,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.wait_change(&self.key(key)?, known, deadline).map_err(|error| self.outward(error))
    }

    fn delete(&self, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        self.inner.delete(&self.key(key)?, deadline).map_err(|error| self.outward(error))
    }

    fn get_many(&self, keys: &[&str], deadline: Instant) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let keys = self.keys(keys)?;
        self.inner
            .get_many(&keys.iter().map(String::as_str).collect::<Vec<_>>(), deadline)
            .map_err(|error| self.outward(error))
    }

    fn max_value(&self) -> usize {
        self.inner.max_value()
    }

    fn max_key(&self) -> usize {
        self.inner.max_key().saturating_sub(self.prefix.len())
    }
}
