//! A cooperative kernel that takes every multiprocessor, for tests of what runs beside one.

use std::path::Path;
use std::sync::Arc;

use cudarc::driver::sys;
use eplb_comm::Fence;
use eplb_core::RankId;

use super::image::{CROWD, load};
use crate::call::check;
use crate::error::CudaError;
use crate::event::Events;
use crate::module::Kernel;
use crate::pool::{DeviceBlock, PinnedBlock};
use crate::stream::CudaStream;

/// Threads of a block: `THREADS` of the source.
const THREADS: u32 = 1024;

/// Functions of the driver that only this module calls; a missing one would end in a panic.
const NEEDED: [&str; 2] = ["cuLaunchCooperativeKernel", "cuOccupancyMaxActiveBlocksPerMultiprocessor"];

/// A kernel whose blocks fill a device and wait for each other, launched cooperatively: it begins only once every multiprocessor is free of
/// whatever else would take its place, as the low-latency kernels of expert-parallel servers do.
#[derive(Debug)]
pub struct Crowd {
    kernel: Kernel,
    stream: Arc<CudaStream>,
    arrived: DeviceBlock,
    events: Arc<Events>,
    blocks: u32,
}

impl Crowd {
    /// Loads the kernel for a stream; machine code is looked for as by [`Kernels::load`](super::Kernels::load). For start-up: takes memory and
    /// waits for the stream.
    ///
    /// # Errors
    /// There is neither machine code nor NVRTC, or the device cannot launch it.
    pub fn new(stream: &Arc<CudaStream>, folder: Option<&Path>) -> Result<Self, CudaError> {
        let context = stream.context();
        // SAFETY: a stream exists, so the library is loaded; the addresses are not used under this type.
        let lacks =
            |name: &&str| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err();
        if let Some(name) = NEEDED.iter().find(|name| lacks(name)) {
            return Err(CudaError::Absent(format!("libcuda.so.1 has no {name}")));
        }
        let (module, _) = load(context, CROWD, folder, true)?;
        let kernel = module.kernel("eplb_crowd_rounds")?;
        let (mut per_multiprocessor, mut multiprocessors) = (0, 0);
        {
            let _entered = context.enter()?;
            // SAFETY: the kernel lives; writes one number.
            check("cuOccupancyMaxActiveBlocksPerMultiprocessor", unsafe {
                sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    &mut per_multiprocessor,
                    kernel.raw(),
                    THREADS as i32,
                    0,
                )
            })?;
            let which = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
            // SAFETY: writes one integer; the device is one that the driver named.
            check("cuDeviceGetAttribute", unsafe {
                sys::cuDeviceGetAttribute(&mut multiprocessors, which, context.device())
            })?;
        }
        let blocks = u32::try_from(per_multiprocessor * multiprocessors).unwrap_or(0).max(1);
        let arrived = DeviceBlock::new(context, 8)?;
        let zero = PinnedBlock::new(context, 8)?;
        // SAFETY: both have 8 bytes, used by nobody else; the wait is for the copy to have run.
        unsafe { stream.to_device(zero.base(), arrived.base(), 8) }?;
        stream.settle()?;
        Ok(Self { kernel, stream: stream.clone(), arrived, events: Events::new(context, 2)?, blocks })
    }

    /// Blocks of a launch: all that the device runs at a time.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Enqueues a launch of so many rounds, each of so many clocks of work before the blocks wait for each other; a fence behind it.
    ///
    /// # Errors
    /// The driver refused.
    pub fn launch(&mut self, rounds: u32, clocks: u32) -> Result<Fence, CudaError> {
        let stream = &self.stream;
        let address = self.arrived.base();
        let mut arguments = [
            std::ptr::from_ref(&address).cast_mut().cast(),
            std::ptr::from_ref(&rounds).cast_mut().cast(),
            std::ptr::from_ref(&clocks).cast_mut().cast(),
        ];
        {
            let _entered = stream.context().enter()?;
            // SAFETY: the kernel's module lives while it does, and takes these three arguments, which are copied during the call; the
            // word that it counts in lives in `self`, whose Drop waits for the stream; launches of one stream follow each other.
            check("cuLaunchCooperativeKernel", unsafe {
                sys::cuLaunchCooperativeKernel(
                    self.kernel.raw(),
                    self.blocks,
                    1,
                    1,
                    THREADS,
                    1,
                    1,
                    0,
                    stream.raw(),
                    arguments.as_mut_ptr(),
                )
            })?;
        }
        Ok(self.events.record(stream, RankId(0))?.fence())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // A device that is lost says so at once.
        let _ = self.stream.settle();
    }
}
