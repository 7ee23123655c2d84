//! What a store takes: sizes of keys and values, and how much it holds in all.

use super::error::StoreError;

/// Longest key of any store, bytes, prefixes included.
pub const MAX_KEY_BYTES: usize = 512;

/// What one entry costs beside its key and value, bytes; a round figure for the bookkeeping of the map.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 96;

/// Bounds of a store. Every handle of one store must be given the same; a [`TcpStore`](super::TcpStore) learns them
/// from its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest value, bytes. Default 4 MiB: phy2log and shares of 128 layers of 2,048 slots fit.
    pub max_value: usize,
    /// Bytes of all keys and values together, bookkeeping included (in-process and TCP). Default 256 MiB.
    pub max_total: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_value: 4 << 20, max_total: 256 << 20 }
    }
}

impl Limits {
    /// Refuses a value that is too long.
    pub(crate) fn check_value(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        if value.len() > self.max_value {
            return Err(StoreError::TooLarge {
                what: "value",
                key: key.to_owned(),
                bytes: value.len(),
                limit: self.max_value,
            });
        }
        Ok(())
    }
}

/// Refuses a key that is empty or too long. Any other text is a key: no byte has a meaning to a store.
pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::BadKey { key: String::new(), reason: "a key has at least one character" });
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(StoreError::TooLarge {
            what: "key",
            key: key.chars().take(64).collect(),
            bytes: key.len(),
            limit: MAX_KEY_BYTES,
        });
    }
    Ok(())
}
