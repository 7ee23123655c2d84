//! Fences made of others.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::CommError;
use crate::fence::{Fence, FenceState};
use crate::host::HostFence;

/// Passed when all of its fences are.
#[derive(Debug)]
pub(super) struct AllOf(pub(super) Vec<Fence>);

impl FenceState for AllOf {
    fn poll(&self) -> Result<bool, CommError> {
        let mut all = true;
        for fence in &self.0 {
            all &= fence.poll()?;
        }
        Ok(all)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Passed some time after another fence.
#[derive(Debug)]
pub(super) struct Later {
    fence: Fence,
    by: Duration,
    /// When the other was first seen passed.
    passed: Mutex<Option<Instant>>,
}

impl Later {
    pub(super) fn new(fence: Fence, by: Duration) -> Self {
        Self { fence, by, passed: Mutex::new(None) }
    }
}

impl FenceState for Later {
    fn poll(&self) -> Result<bool, CommError> {
        if !self.fence.poll()? {
            return Ok(false);
        }
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(passed.get_or_insert_with(Instant::now).elapsed() >= self.by)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Fails with a cause once another fence is passed.
#[derive(Debug)]
pub(super) struct FailsAfter(pub(super) Fence, pub(super) CommError);

impl FenceState for FailsAfter {
    fn poll(&self) -> Result<bool, CommError> {
        if self.0.poll()? { Err(self.1.clone()) } else { Ok(false) }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Another fence, unless the first has failed.
#[derive(Debug)]
pub(super) struct Unless(pub(super) Arc<HostFence>, pub(super) Fence);

impl FenceState for Unless {
    fn poll(&self) -> Result<bool, CommError> {
        self.0.poll()?;
        self.1.poll()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Never passed.
#[derive(Debug)]
pub(super) struct Never;

impl FenceState for Never {
    fn poll(&self) -> Result<bool, CommError> {
        Ok(false)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
