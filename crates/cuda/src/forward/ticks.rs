//! Times between points of a stream, as the device saw them.

use std::sync::Arc;

use cudarc::driver::sys;

use crate::call::check;
use crate::error::CudaError;
use crate::stream::CudaStream;

/// Marks on a stream, each an event that keeps its time; a ring of them is used again and again.
#[derive(Debug)]
pub struct Ticks {
    stream: Arc<CudaStream>,
    events: Vec<sys::CUevent>,
    /// Marks set, and those of them whose time to the next was taken.
    set: usize,
    taken: usize,
}

// SAFETY: event handles may be used from any thread; the driver locks inside.
unsafe impl Send for Ticks {}

impl Ticks {
    /// Room for `open` intervals at a time, at least one.
    ///
    /// # Errors
    /// The driver refused an event.
    pub fn new(stream: &Arc<CudaStream>, open: usize) -> Result<Self, CudaError> {
        let mut ticks = Self { stream: stream.clone(), events: Vec::new(), set: 0, taken: 0 };
        let _entered = stream.context().enter()?;
        for _ in 0..=open.max(1) {
            let mut event = std::ptr::null_mut();
            // SAFETY: writes one handle, which Drop destroys once; the context is current.
            check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, 0) })?;
            ticks.events.push(event);
        }
        Ok(ticks)
    }

    /// Intervals whose time was not taken.
    pub fn open(&self) -> usize {
        (self.set - self.taken).saturating_sub(1)
    }

    /// Whether another mark can be set.
    pub fn has_room(&self) -> bool {
        self.set - self.taken < self.events.len()
    }

    /// Sets a mark behind everything enqueued so far. Without room it does nothing.
    ///
    /// # Errors
    /// The driver refused.
    pub fn mark(&mut self) -> Result<(), CudaError> {
        if !self.has_room() {
            return Ok(());
        }
        let _entered = self.stream.context().enter()?;
        let event = self.events[self.set % self.events.len()];
        // SAFETY: both live and belong to one context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event, self.stream.raw()) })?;
        self.set += 1;
        Ok(())
    }

    /// The oldest interval that was not taken, in microseconds, once it is over.
    ///
    /// # Errors
    /// Work on the stream failed.
    pub fn take(&mut self) -> Result<Option<f64>, CudaError> {
        if self.open() == 0 {
            return Ok(None);
        }
        let at = |number: usize| self.events[number % self.events.len()];
        let (begin, end) = (at(self.taken), at(self.taken + 1));
        let _entered = self.stream.context().enter()?;
        // SAFETY: the event lives.
        match unsafe { sys::cuEventQuery(end) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => return Ok(None),
            code => check("cuEventQuery", code)?,
        }
        let mut milliseconds = 0f32;
        // SAFETY: writes one number; both events have passed.
        check("cuEventElapsedTime", unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, begin, end) })?;
        self.taken += 1;
        Ok(Some(f64::from(milliseconds) * 1e3))
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        let Ok(_entered) = self.stream.context().enter() else { return };
        for event in self.events.drain(..) {
            // SAFETY: made by `new`, destroyed once; the driver keeps what a stream still needs.
            let _ = unsafe { sys::cuEventDestroy_v2(event) };
        }
    }
}
