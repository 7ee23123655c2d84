//! Something that happens around the operations of a store.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use super::error::{StoreError, StoreOp};
use super::{CasOutcome, Store};

/// What happens around the operations of a store. A method that is not written passes the operation on.
pub trait StoreIntercept: Debug + Send + Sync {
    /// Before each operation, with the keys that it names; an error is its outcome, and the store inside is not asked.
    ///
    /// # Errors
    /// Those of the operation.
    fn before(&self, operation: StoreOp, keys: &[&str]) -> Result<(), StoreError> {
        let _ = (operation, keys);
        Ok(())
    }

    /// In place of [`Store::set`].
    ///
    /// # Errors
    /// As [`Store::set`].
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        inner.set(key, value, deadline)
    }

    /// In place of [`Store::get`].
    ///
    /// # Errors
    /// As [`Store::get`].
    fn get(&self, inner: &dyn Store, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        inner.get(key, deadline)
    }

    /// In place of [`Store::add`].
    ///
    /// # Errors
    /// As [`Store::add`].
    fn add(&self, inner: &dyn Store, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        inner.add(key, delta, deadline)
    }

    /// In place of [`Store::compare_and_set`].
    ///
    /// # Errors
    /// As [`Store::compare_and_set`].
    fn compare_and_set(
        &self,
        inner: &dyn Store,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        inner.compare_and_set(key, expected, new, deadline)
    }

    /// In place of [`Store::wait`].
    ///
    /// # Errors
    /// As [`Store::wait`].
    fn wait(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        inner.wait(keys, deadline)
    }

    /// In place of [`Store::wait_change`].
    ///
    /// # Errors
    /// As [`Store::wait_change`].
    fn wait_change(
        &self,
        inner: &dyn Store,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        inner.wait_change(key, known, deadline)
    }

    /// In place of [`Store::delete`].
    ///
    /// # Errors
    /// As [`Store::delete`].
    fn delete(&self, inner: &dyn Store, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        inner.delete(key, deadline)
    }

    /// In place of [`Store::get_many`].
    ///
    /// # Errors
    /// As [`Store::get_many`].
    fn get_many(
        &self,
        inner: &dyn Store,
        keys: &[&str],
        deadline: Instant,
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        inner.get_many(keys, deadline)
    }
}

/// A store around whose operations something happens. Clones share the store; what happens is cloned.
#[derive(Debug, Clone)]
pub struct InterceptedStore<I> {
    inner: Arc<dyn Store>,
    by: I,
}

impl<I: StoreIntercept> InterceptedStore<I> {
    /// Puts `by` around a store.
    pub fn new(inner: Arc<dyn Store>, by: I) -> Self {
        Self { inner, by }
    }

    /// What happens around the operations.
    pub fn by(&self) -> &I {
        &self.by
    }
}

impl<I: StoreIntercept> Store for InterceptedStore<I> {
    fn set(&self, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        self.by.before(StoreOp::Set, &[key])?;
        self.by.set(&*self.inner, key, value, deadline)
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        self.by.before(StoreOp::Get, &[key])?;
        self.by.get(&*self.inner, key, deadline)
    }

    fn add(&self, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        self.by.before(StoreOp::Add, &[key])?;
        self.by.add(&*self.inner, key, delta, deadline)
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        self.by.before(StoreOp::CompareAndSet, &[key])?;
        self.by.compare_and_set(&*self.inner, key, expected, new, deadline)
    }

    fn wait(&self, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        self.by.before(StoreOp::Wait, keys)?;
        self.by.wait(&*self.inner, keys, deadline)
    }

    fn wait_change(
        &self,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.by.before(StoreOp::WaitChange, &[key])?;
        self.by.wait_change(&*self.inner, key, known, deadline)
    }

    fn delete(&self, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        self.by.before(StoreOp::Delete, &[key])?;
        self.by.delete(&*self.inner, key, deadline)
    }

    fn get_many(&self, keys: &[&str], deadline: Instant) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.by.before(StoreOp::Get, keys)?;
        self.by.get_many(&*self.inner, keys, deadline)
    }

    fn max_value(&self) -> usize {
        self.inner.max_value()
    }

    fn max_key(&self) -> usize {
        self.inner.max_key()
    }
}
