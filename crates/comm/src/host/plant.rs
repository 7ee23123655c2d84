//! Faults in copies, planted by tests.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::memory::HostMemory;
use crate::memory::Place;

/// How a copy goes wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyFault {
    /// One tensor is left out.
    SkipTensor(usize),
    /// The copying thread panics before the first byte.
    Panic,
}

impl HostMemory {
    /// Plants a fault of [`crate::fault`]: the next copy into `place` goes wrong.
    pub(crate) fn plant(&self, place: Place, fault: CopyFault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push((place, fault));
        self.any_fault.store(true, Ordering::Release);
    }

    /// The fault that a copy into `place` must show, once.
    pub(super) fn take_fault(&self, place: Place) -> Option<CopyFault> {
        if !self.any_fault.load(Ordering::Acquire) {
            return None;
        }
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let at = faults.iter().position(|(planted, _)| *planted == place)?;
        Some(faults.swap_remove(at).1)
    }
}
