//! A few bytes that host and device tell each other.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::call::check;
use crate::context::Context;
use crate::error::CudaError;
use crate::pool::{DeviceBlock, PinnedBlock};
use crate::stream::CudaStream;

/// A block of device memory and one of the host of the same size, with copies between both in the order of a stream.
///
/// Whoever uses it waits for a copy (an event behind it) before touching the host's bytes again.
#[derive(Debug)]
pub struct Mirror {
    host: PinnedBlock,
    device: DeviceBlock,
}

impl Mirror {
    /// Takes both, at least one byte each.
    ///
    /// # Errors
    /// The device or the system has no room.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let bytes = bytes.max(1);
        Ok(Self { host: PinnedBlock::new(context, bytes)?, device: DeviceBlock::new(context, bytes)? })
    }

    /// Address of the first byte on the device.
    pub fn device(&self) -> u64 {
        self.device.base()
    }

    /// The bytes of the host, to be read. No copy to them may be on its way.
    pub fn host(&self) -> &[u8] {
        self.host.as_slice()
    }

    /// The bytes of the host, to be written. No copy of them may be on its way.
    pub fn host_mut(&mut self) -> &mut [u8] {
        self.host.as_mut_slice()
    }

    /// Enqueues a copy of bytes from the host to the device.
    ///
    /// # Errors
    /// The driver refused.
    pub fn push(&mut self, stream: &CudaStream, bytes: Range<usize>) -> Result<(), CudaError> {
        let Some((host, device, len)) = self.place(&bytes) else { return Ok(()) };
        let _entered = stream.context().enter()?;
        // SAFETY: `place` keeps inside both blocks, which live as long as `self`; whoever drops it has waited for the stream.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(device, host.cast(), len, stream.raw())
        })
    }

    /// Enqueues a copy of bytes from the device to the host.
    ///
    /// # Errors
    /// The driver refused.
    pub fn pull(&mut self, stream: &CudaStream, bytes: Range<usize>) -> Result<(), CudaError> {
        let Some((host, device, len)) = self.place(&bytes) else { return Ok(()) };
        let _entered = stream.context().enter()?;
        // SAFETY: as above.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(host.cast(), device, len, stream.raw())
        })
    }

    /// Where bytes lie on both sides, cut to what there is; `None` if that is nothing.
    fn place(&mut self, bytes: &Range<usize>) -> Option<(*mut u8, u64, usize)> {
        let cut = self.host.as_mut_slice().get_mut(bytes.start..bytes.end.min(self.device.bytes()))?;
        (!cut.is_empty()).then(|| (cut.as_mut_ptr(), self.device.base() + bytes.start as u64, cut.len()))
    }
}
