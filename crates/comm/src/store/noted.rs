//! A store that remembers which keys were named.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Store;
use super::error::{StoreError, StoreOp};
use super::intercept::{InterceptedStore, StoreIntercept};

/// Passes everything on, and remembers the keys that were read, written or waited for: whoever is done with a part of a store whose
/// keys were chosen by another can delete them, those of ranks that died among them.
pub type NotedStore = InterceptedStore<Names>;

/// The keys that were named. Clones share them. A name is remembered once, and forgotten when its key is deleted through the same store.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<Mutex<BTreeSet<String>>>);

impl Names {
    /// All of them, ascending; they are forgotten.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lock()).into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // A set is whole between any two of its operations.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreIntercept for Names {
    fn before(&self, operation: StoreOp, keys: &[&str]) -> Result<(), StoreError> {
        if operation != StoreOp::Delete {
            let mut names = self.lock();
            for &key in keys {
                if !names.contains(key) {
                    names.insert(key.to_owned());
                }
            }
        }
        Ok(())
    }

    fn delete(&self, inner: &dyn Store, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        let deleted = inner.delete(key, deadline)?;
        self.lock().remove(key);
        Ok(deleted)
    }
}
