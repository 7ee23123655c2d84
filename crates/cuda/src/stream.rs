//! Streams, our own and borrowed ones.

use std::sync::Arc;

use cudarc::driver::sys;

use crate::call::check;
use crate::context::Context;
use crate::copy::Rows;
use crate::error::CudaError;
use crate::event::Event;

/// A CUDA stream. Operations run in the order enqueued; none of these calls waits for the device.
#[derive(Debug)]
pub struct CudaStream {
    context: Arc<Context>,
    raw: sys::CUstream,
    owned: bool,
}

// SAFETY: a stream handle may be used from any thread; the driver locks inside.
unsafe impl Send for CudaStream {}
// SAFETY: as above.
unsafe impl Sync for CudaStream {}

impl CudaStream {
    /// A stream of our own that does not wait for the default stream, nor makes it wait. `priority`: lower runs first;
    /// 0 is the default.
    ///
    /// # Errors
    /// The device has no room for it.
    pub fn new(context: &Arc<Context>, priority: i32) -> Result<Arc<Self>, CudaError> {
        let _entered = context.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle, which Drop destroys once; the context is current.
        check("cuStreamCreateWithPriority", unsafe {
            sys::cuStreamCreateWithPriority(&mut raw, flags, priority)
        })?;
        Ok(Arc::new(Self { context: context.clone(), raw, owned: true }))
    }

    /// A server's stream: never destroyed and never synchronized here.
    ///
    /// # Safety
    /// `raw` is a `CUstream` of `context` (not null, which would be the default stream) that lives until the last clone of
    /// the result is dropped.
    pub unsafe fn borrow(context: &Arc<Context>, raw: *mut std::ffi::c_void) -> Arc<Self> {
        Arc::new(Self { context: context.clone(), raw: raw.cast(), owned: false })
    }

    /// The context that it belongs to.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The handle, for libraries that enqueue on it, such as NCCL.
    pub fn as_raw(&self) -> *mut std::ffi::c_void {
        self.raw.cast()
    }

    pub(crate) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Records an event behind everything enqueued so far.
    pub(crate) fn record(&self, event: &Event) -> Result<(), CudaError> {
        let _entered = self.context.enter()?;
        // SAFETY: both handles live, and belong to one context by construction of `Events`.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.raw(), self.raw) })
    }

    /// What is enqueued from now on runs after the event.
    pub(crate) fn wait(&self, event: &Event) -> Result<(), CudaError> {
        let _entered = self.context.enter()?;
        // SAFETY: both handles live; the event may be of another device.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.raw, event.raw(), 0) })
    }

    /// Enqueues a copy of rows between places of device memory.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// Both sides lie in live memory that this stream's device reaches, stay so until the copy has run, do not overlap,
    /// have equal rows and row bytes, and nobody else writes either meanwhile.
    pub unsafe fn copy(&self, from: Rows, to: Rows) -> Result<(), CudaError> {
        let _entered = self.context.enter()?;
        if from.is_gapless() && to.is_gapless() {
            // SAFETY: passed on to the caller.
            return check("cuMemcpyAsync", unsafe {
                sys::cuMemcpyAsync(to.base, from.base, from.bytes(), self.raw)
            });
        }
        let shape = between_rows(from, to);
        // SAFETY: the shape is read during the call; the rest is passed on to the caller.
        check("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&shape, self.raw) })
    }

    /// Enqueues a copy of bytes from the host to the device.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// Both sides are `bytes` bytes of live memory, the host's pinned, and stay so and are written by nobody else until the copy has run.
    pub unsafe fn to_device(&self, from: *const u8, to: u64, bytes: usize) -> Result<(), CudaError> {
        let _entered = self.context.enter()?;
        // SAFETY: passed on to the caller.
        check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.raw) })
    }

    /// Enqueues a copy of bytes from the device to the host.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// As for [`CudaStream::to_device`]; and the host does not read the copy before it has run.
    pub unsafe fn to_host(&self, from: u64, to: *mut u8, bytes: usize) -> Result<(), CudaError> {
        let _entered = self.context.enter()?;
        // SAFETY: passed on to the caller.
        check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.raw) })
    }

    /// As [`CudaStream::to_device`], to rows of the device; on the host they lie without gaps.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// As there, for the bytes of all rows.
    pub unsafe fn rows_to_device(&self, from: *const u8, to: Rows) -> Result<(), CudaError> {
        if to.is_gapless() {
            // SAFETY: passed on to the caller.
            return unsafe { self.to_device(from, to.base, to.bytes()) };
        }
        let _entered = self.context.enter()?;
        let mut shape = between_rows(to.packed_at(0), to);
        (shape.srcMemoryType, shape.srcHost) =
            (sys::CUmemorytype_enum::CU_MEMORYTYPE_HOST, from.cast::<std::ffi::c_void>());
        // SAFETY: the shape is read during the call; the rest is passed on to the caller.
        check("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&shape, self.raw) })
    }

    /// As [`CudaStream::to_host`], from rows of the device; on the host they lie without gaps.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// As there, for the bytes of all rows.
    pub unsafe fn rows_to_host(&self, from: Rows, to: *mut u8) -> Result<(), CudaError> {
        if from.is_gapless() {
            // SAFETY: passed on to the caller.
            return unsafe { self.to_host(from.base, to, from.bytes()) };
        }
        let _entered = self.context.enter()?;
        let mut shape = between_rows(from, from.packed_at(0));
        (shape.dstMemoryType, shape.dstHost) =
            (sys::CUmemorytype_enum::CU_MEMORYTYPE_HOST, to.cast::<std::ffi::c_void>());
        // SAFETY: the shape is read during the call; the rest is passed on to the caller.
        check("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&shape, self.raw) })
    }

    /// Waits on the host for everything enqueued, on a stream of our own. For start-up and checks, never for the forward
    /// path. Does nothing on a borrowed stream: that is the server's to wait for.
    ///
    /// # Errors
    /// Work on the stream failed.
    pub(crate) fn settle(&self) -> Result<(), CudaError> {
        if !self.owned {
            return Ok(());
        }
        let _entered = self.context.enter()?;
        // SAFETY: our own live stream.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }
}

/// A copy of rows between places of device memory, as the driver wants it described.
fn between_rows(from: Rows, to: Rows) -> sys::CUDA_MEMCPY2D {
    let device = sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE;
    sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: device,
        srcHost: std::ptr::null(),
        srcDevice: from.base,
        srcArray: std::ptr::null_mut(),
        srcPitch: from.pitch.max(from.row_bytes),
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: device,
        dstHost: std::ptr::null_mut(),
        dstDevice: to.base,
        dstArray: std::ptr::null_mut(),
        dstPitch: to.pitch.max(to.row_bytes),
        WidthInBytes: from.row_bytes,
        Height: from.rows,
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        if self.owned
            && let Ok(_entered) = self.context.enter()
        {
            // SAFETY: made by `new`, destroyed once; the driver lets enqueued work end first, without waiting here.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}
