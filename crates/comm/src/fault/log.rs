//! What struck.

use std::sync::{Arc, Mutex, PoisonError};

/// A list of the faults that struck, shared by a wrapper and the test that made it.
#[derive(Debug, Clone, Default)]
pub struct FaultLog(Arc<Mutex<Vec<String>>>);

impl FaultLog {
    /// What struck so far, in order: `"wave 3: stall"`.
    pub fn struck(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add(&self, wave: u64, what: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(format!("wave {wave}: {what}"));
    }
}
