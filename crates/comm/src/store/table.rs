//! The map itself, bounded in bytes: what the in-process store and the TCP server hold.

use std::collections::HashMap;
use std::sync::Arc;

use super::error::StoreError;
use super::limits::{ENTRY_OVERHEAD_BYTES, Limits, check_key};

/// Keys and values. Single-threaded; the owner orders the operations.
#[derive(Debug)]
pub(crate) struct Table {
    // Looked up by key only, never iterated: its order reaches nobody.
    entries: HashMap<String, Arc<[u8]>>,
    bytes: usize,
    limits: Limits,
}

impl Table {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { entries: HashMap::new(), bytes: 0, limits }
    }

    /// Bytes held: keys, values and bookkeeping.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Arc<[u8]>> {
        self.entries.get(key)
    }

    /// Writes a value; whether the key changed by it.
    pub(crate) fn set(&mut self, key: &str, value: &[u8]) -> Result<bool, StoreError> {
        check_key(key)?;
        self.limits.check_value(key, value)?;
        let old = self.entries.get(key);
        if old.is_some_and(|old| **old == *value) {
            return Ok(false);
        }
        let freed = old.map_or(0, |old| cost(key, old));
        let bytes = self.bytes - freed + cost(key, value);
        if bytes > self.limits.max_total {
            return Err(StoreError::Full {
                key: key.to_owned(),
                detail: format!(
                    "{} keys take {} of {} bytes; delete keys that are no longer read or raise `Limits::max_total`",
                    self.entries.len(),
                    self.bytes,
                    self.limits.max_total
                ),
            });
        }
        self.entries.insert(key.to_owned(), Arc::from(value));
        self.bytes = bytes;
        Ok(true)
    }

    /// Adds to a counter; the sum, and whether the key changed by it.
    pub(crate) fn add(&mut self, key: &str, delta: i64) -> Result<(i64, bool), StoreError> {
        check_key(key)?;
        let sum = counter_sum(key, self.entries.get(key).map(|v| &**v), delta)?;
        let changed = self.set(key, sum.to_string().as_bytes())?;
        Ok((sum, changed))
    }

    /// Writes `new` where `expected` is; `None` when something else is there, else whether the key changed by it.
    pub(crate) fn compare_and_set(
        &mut self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
    ) -> Result<Option<bool>, StoreError> {
        check_key(key)?;
        self.limits.check_value(key, new)?;
        if self.entries.get(key).map(|v| &**v) != expected {
            return Ok(None);
        }
        self.set(key, new).map(Some)
    }

    /// Removes a key; whether it was there.
    pub(crate) fn delete(&mut self, key: &str) -> bool {
        match self.entries.remove(key) {
            Some(value) => {
                self.bytes -= cost(key, &value);
                true
            }
            None => false,
        }
    }
}

/// What an entry counts for.
fn cost(key: &str, value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_OVERHEAD_BYTES
}

/// A counter's value plus `delta`; absent counts as 0.
pub(crate) fn counter_sum(key: &str, current: Option<&[u8]>, delta: i64) -> Result<i64, StoreError> {
    let refuse = |detail: String| StoreError::Counter { key: key.to_owned(), detail };
    let value = match current {
        None => 0,
        Some(bytes) => std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
            .ok_or_else(|| refuse(format!("it holds {} bytes that are no number", bytes.len())))?,
    };
    value.checked_add(delta).ok_or_else(|| refuse(format!("{value} + {delta} does not fit in 64 bits")))
}
