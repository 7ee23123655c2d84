//! A few bytes by which a path between two devices is tried out: copied for real, and compared.

use std::sync::Arc;

use cudarc::driver::sys;

use super::block::{HandleKind, VmmBlock};
use crate::call::check;
use crate::context::Context;
use crate::copy::Rows;
use crate::error::CudaError;
use crate::pool::{DeviceBlock, PinnedBlock};
use crate::stream::CudaStream;

/// Bytes of a mark.
const BYTES: usize = 4096;

/// Device memory with bytes that follow from a number, and a place to which those of others are copied.
#[derive(Debug)]
pub struct Mark {
    own: Block,
    landing: DeviceBlock,
    stream: Arc<CudaStream>,
    pinned: PinnedBlock,
}

#[derive(Debug)]
enum Block {
    Plain(DeviceBlock),
    Vmm(VmmBlock),
}

fn byte(seed: u64, at: usize) -> u8 {
    let word = (seed ^ (at as u64 / 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (word >> (8 * (at % 8))) as u8
}

impl Mark {
    /// Bytes of a mark.
    pub const BYTES: usize = BYTES;

    /// A mark of `seed`, in memory that is opened as `kind` says.
    ///
    /// # Errors
    /// The device has no room, or no such handles.
    pub fn new(context: &Arc<Context>, kind: HandleKind, seed: u64) -> Result<Self, CudaError> {
        let own = match kind {
            HandleKind::Legacy => Block::Plain(DeviceBlock::new(context, BYTES)?),
            kind => Block::Vmm(VmmBlock::new(context, BYTES, kind)?),
        };
        let (landing, stream) = (DeviceBlock::new(context, BYTES)?, CudaStream::new(context, 0)?);
        let mut mark = Self { own, landing, stream, pinned: PinnedBlock::new(context, BYTES)? };
        mark.pinned.as_mut_slice().iter_mut().enumerate().for_each(|(at, out)| *out = byte(seed, at));
        let (to, from) = (mark.base(), mark.pinned.base().cast());
        {
            let _entered = context.enter()?;
            // SAFETY: both are `BYTES` long, ours, and wait for the copy below.
            check("cuMemcpyHtoDAsync", unsafe {
                sys::cuMemcpyHtoDAsync_v2(to, from, BYTES, mark.stream.raw())
            })?;
        }
        mark.stream.settle()?;
        Ok(mark)
    }

    /// Its address.
    pub fn base(&self) -> u64 {
        match &self.own {
            Block::Plain(block) => block.base(),
            Block::Vmm(block) => block.base(),
        }
    }

    /// Pulls another process's mark of `seed`; whether its bytes came.
    ///
    /// # Errors
    /// A copy failed.
    ///
    /// # Safety
    /// `address` is that of a mark that is open here until this returns.
    pub unsafe fn try_out(&mut self, address: u64, seed: u64) -> Result<bool, CudaError> {
        // What an earlier try left would pass for what did not come.
        self.pinned.as_mut_slice().fill(0);
        let landing = self.landing.base();
        {
            let _entered = self.stream.context().enter()?;
            let from = self.pinned.base().cast();
            // SAFETY: both are `BYTES` long and ours; `settle` waits before either is used again.
            check("cuMemcpyHtoDAsync", unsafe {
                sys::cuMemcpyHtoDAsync_v2(landing, from, BYTES, self.stream.raw())
            })?;
        }
        // SAFETY: the caller keeps the source open; the landing is ours; both are `BYTES` long, in memory of different processes.
        unsafe { self.stream.copy(Rows::contiguous(address, BYTES), Rows::contiguous(landing, BYTES)) }?;
        {
            let _entered = self.stream.context().enter()?;
            let to = self.pinned.base().cast();
            // SAFETY: as above; the stream runs its copies in order.
            check("cuMemcpyDtoHAsync", unsafe {
                sys::cuMemcpyDtoHAsync_v2(to, landing, BYTES, self.stream.raw())
            })?;
        }
        self.stream.settle()?;
        Ok(self.pinned.as_slice().iter().enumerate().all(|(at, &found)| found == byte(seed, at)))
    }
}
