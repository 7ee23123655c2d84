//! Capture of CUDA graphs, as a guest of a server has to know of it.

use cudarc::driver::sys;

use crate::call::{check, driver};
use crate::error::CudaError;
use crate::stream::CudaStream;

impl CudaStream {
    /// Whether what is enqueued now becomes part of a graph and does not run.
    ///
    /// # Errors
    /// The driver refused: the handle is none, or its context is broken.
    pub fn is_capturing(&self) -> Result<bool, CudaError> {
        let _entered = self.context().enter()?;
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the stream lives while `self` does; writes one word.
        check("cuStreamIsCapturing", unsafe { sys::cuStreamIsCapturing(self.raw(), &mut status) })?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }
}

/// Lets this thread ask for the state of events and take what it needs while another thread of the process captures a graph: without it, the
/// driver breaks that capture. For threads of ours, which enqueue on no captured stream.
///
/// # Errors
/// There is no driver.
pub fn keep_out_of_captures() -> Result<(), CudaError> {
    driver()?;
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: reads and writes one word; it is a setting of this thread alone.
    check("cuThreadExchangeStreamCaptureMode", unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) })
}
