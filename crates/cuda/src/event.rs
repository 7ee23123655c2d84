//! Events, and fences on them.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;
use eplb_comm::{CommError, Fence, FenceState};
use eplb_core::RankId;

use crate::call::check;
use crate::context::Context;
use crate::error::CudaError;
use crate::stream::CudaStream;

/// Events of one context that are used again and again: the driver is asked for a new one only when none is free.
#[derive(Debug)]
pub struct Events {
    context: Arc<Context>,
    free: Mutex<Vec<RawEvent>>,
}

#[derive(Debug)]
struct RawEvent(sys::CUevent);

// SAFETY: an event handle may be used from any thread; the driver locks inside.
unsafe impl Send for RawEvent {}
// SAFETY: as above.
unsafe impl Sync for RawEvent {}

/// One event, given back to its pool when dropped. Streams that were told to wait keep waiting for what was recorded
/// then, whatever is recorded later.
#[derive(Debug)]
pub(crate) struct Event {
    raw: RawEvent,
    pool: Arc<Events>,
}

impl Event {
    pub(crate) fn raw(&self) -> sys::CUevent {
        self.raw.0
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.pool.lock().push(RawEvent(self.raw.0));
    }
}

impl Events {
    /// A pool with `count` events made at once. Events keep no time, which makes them cheap.
    ///
    /// # Errors
    /// The driver refused.
    pub fn new(context: &Arc<Context>, count: usize) -> Result<Arc<Self>, CudaError> {
        let pool = Arc::new(Self { context: context.clone(), free: Mutex::default() });
        let made = (0..count).map(|_| pool.make()).collect::<Result<Vec<_>, _>>()?;
        pool.lock().extend(made);
        Ok(pool)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<RawEvent>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self) -> Result<RawEvent, CudaError> {
        let _entered = self.context.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes one handle, which the pool destroys once; the context is current.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, flags) })?;
        Ok(RawEvent(raw))
    }

    /// A fence behind everything enqueued on a stream so far, told as `rank`'s.
    ///
    /// # Errors
    /// The driver refused.
    pub fn record(self: &Arc<Self>, stream: &CudaStream, rank: RankId) -> Result<Arc<CudaFence>, CudaError> {
        let free = self.lock().pop();
        let raw = match free {
            Some(raw) => raw,
            None => self.make()?,
        };
        let event = Event { raw, pool: self.clone() };
        stream.record(&event)?;
        Ok(Arc::new(CudaFence { event, rank, passed: AtomicBool::new(false) }))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        for event in self.free.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: made by `make`; events in use hold the pool, so all are here and none is used any more.
            let _ = unsafe { sys::cuEventDestroy_v2(event.0) };
        }
    }
}

/// A point in the order of a CUDA stream.
#[derive(Debug)]
pub struct CudaFence {
    event: Event,
    rank: RankId,
    passed: AtomicBool,
}

impl CudaFence {
    /// The handle to wait on.
    pub fn fence(self: &Arc<Self>) -> Fence {
        Fence::new(self.clone())
    }

    /// Work enqueued on `stream` from now on runs after the point.
    ///
    /// # Errors
    /// The driver refused.
    pub fn order(&self, stream: &CudaStream) -> Result<(), CudaError> {
        if self.passed.load(Ordering::Acquire) {
            return Ok(());
        }
        stream.wait(&self.event)
    }
}

impl FenceState for CudaFence {
    fn poll(&self) -> Result<bool, CommError> {
        if self.passed.load(Ordering::Acquire) {
            return Ok(true);
        }
        let entered = self.event.pool.context.enter();
        let _entered = entered.map_err(|error| error.at(self.rank))?;
        // SAFETY: the event lives while `self` does.
        match unsafe { sys::cuEventQuery(self.event.raw()) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => {
                check("cuEventQuery", code).map_err(|error| error.at(self.rank))?;
                self.passed.store(true, Ordering::Release);
                Ok(true)
            }
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
