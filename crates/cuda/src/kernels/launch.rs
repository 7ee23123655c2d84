//! Launches. None of them waits or takes memory; all may be captured in a graph.

use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::sys;

use super::args::{DeviceChoices, DeviceCounts, DeviceList, DeviceMaps, IdType};
use super::image::{CHECKSUM, DISPATCH, ROWS, load};
use crate::call::check;
use crate::context::Context;
use crate::error::CudaError;
use crate::module::Kernel;
use crate::stream::CudaStream;

/// Above this, counts do not fit in a block's shared memory: `SHARED_EXPERTS` of the source.
const SHARED_EXPERTS: u32 = 8192;
/// Choices that a thread takes at once: `GROUP` of the source.
const GROUP: u64 = 4;
/// Threads of a block of the kernels that move and sum bytes: `THREADS` of the source.
const THREADS: u32 = 256;

/// The kernels, loaded into one context.
#[derive(Debug)]
pub struct Kernels {
    record: [Kernel; 2],
    dispatch: [Kernel; 2],
    copy_rows: Kernel,
    commit: Kernel,
    checksum: Kernel,
    multiprocessors: u32,
    origin: String,
}

impl Kernels {
    /// Loads all kernels: from `$EPLB_KERNELS`, `folder` or `kernels` beside the program, whichever has fatbins, else compiled by
    /// NVRTC. Takes time and device memory: for start-up only.
    ///
    /// # Errors
    /// There are neither fatbins for this device nor NVRTC.
    pub fn load(context: &Arc<Context>, folder: Option<&Path>) -> Result<Self, CudaError> {
        Self::take(context, folder, true)
    }

    /// As [`Kernels::load`], from fatbins alone: quick, and nothing is compiled.
    ///
    /// # Errors
    /// There are no fatbins for this device.
    pub fn load_built(context: &Arc<Context>, folder: Option<&Path>) -> Result<Self, CudaError> {
        Self::take(context, folder, false)
    }

    fn take(context: &Arc<Context>, folder: Option<&Path>, compiling: bool) -> Result<Self, CudaError> {
        // Looked for here, since no other part of this crate launches.
        // SAFETY: a context exists, so the library is loaded; the address is not used under this type.
        if unsafe { sys::culib().get::<unsafe extern "C" fn()>(b"cuLaunchKernel") }.is_err() {
            return Err(CudaError::Absent("libcuda.so.1 has no cuLaunchKernel".into()));
        }
        let (dispatch, origin) = load(context, DISPATCH, folder, compiling)?;
        let (rows, _) = load(context, ROWS, folder, compiling)?;
        let (checksum, _) = load(context, CHECKSUM, folder, compiling)?;
        let mut multiprocessors = 0;
        let which = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: writes one integer; the device is one that the driver named.
        check("cuDeviceGetAttribute", unsafe {
            sys::cuDeviceGetAttribute(&mut multiprocessors, which, context.device())
        })?;
        Ok(Self {
            record: [dispatch.kernel("eplb_record_i32")?, dispatch.kernel("eplb_record_i64")?],
            dispatch: [dispatch.kernel("eplb_dispatch_i32")?, dispatch.kernel("eplb_dispatch_i64")?],
            copy_rows: rows.kernel("eplb_copy_rows")?,
            commit: rows.kernel("eplb_commit")?,
            checksum: checksum.kernel("eplb_checksum_parts")?,
            multiprocessors: u32::try_from(multiprocessors).unwrap_or(1).max(1),
            origin,
        })
    }

    /// Where the machine code came from: a file, or `NVRTC`.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Counts choices: [`eplb_comm::kernels::record`](fn@eplb_comm::kernels::record).
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// Every address is of memory that the stream's device reaches, as large as the shape says, aligned to its type and alive
    /// until the launch (or the last replay of a graph that holds it) has run. Nobody writes what is read meanwhile, and only
    /// launches of this kernel and of [`Kernels::dispatch`] write `loads` and `faults`.
    pub unsafe fn record(
        &self,
        stream: &CudaStream,
        ids: IdType,
        choices: &DeviceChoices,
        counts: &DeviceCounts,
    ) -> Result<(), CudaError> {
        let shape = self.shape_of(choices, counts);
        // SAFETY: the arguments are those that the kernel declares; the rest is passed on to the caller.
        unsafe { start(&self.record[ids as usize], stream, shape, &mut [arg(choices), arg(counts)]) }
    }

    /// Writes slots and counts choices: [`eplb_comm::kernels::dispatch`](fn@eplb_comm::kernels::dispatch).
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// As for [`Kernels::record`], for the maps and the output too.
    pub unsafe fn dispatch(
        &self,
        stream: &CudaStream,
        ids: IdType,
        choices: &DeviceChoices,
        counts: &DeviceCounts,
        maps: &DeviceMaps,
    ) -> Result<(), CudaError> {
        let shape = self.shape_of(choices, counts);
        let mut args = [arg(choices), arg(counts), arg(maps)];
        // SAFETY: as in `record`.
        unsafe { start(&self.dispatch[ids as usize], stream, shape, &mut args) }
    }

    /// Carries out a list of copies: [`eplb_comm::kernels::copy_rows`]. An empty list launches nothing.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// The list holds entries of [`eplb_comm::kernels::RowCopy`] with device addresses, and it and all that it names stay alive
    /// and unchanged by others until the launch has run. No entry writes what another writes or reads.
    pub unsafe fn copy_rows(&self, stream: &CudaStream, list: DeviceList) -> Result<(), CudaError> {
        let Some(shape) = self.shape_for(list.units, 3) else { return Ok(()) };
        let mut args = [arg(&list.entries), arg(&list.count), arg(&list.units)];
        // SAFETY: as in `record`.
        unsafe { start(&self.copy_rows, stream, shape, &mut args) }
    }

    /// Copies rows and writes words of maps in one launch: [`eplb_comm::kernels::commit`](fn@eplb_comm::kernels::commit). `words` is
    /// the address of `word_count` entries of [`eplb_comm::kernels::WordWrite`]. With neither, nothing is launched.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// As for [`Kernels::copy_rows`], for the words too.
    pub unsafe fn commit(
        &self,
        stream: &CudaStream,
        rows: DeviceList,
        words: u64,
        word_count: u32,
    ) -> Result<(), CudaError> {
        let blocks = rows.units.max(u64::from(word_count.div_ceil(THREADS)));
        let Some(shape) = self.shape_for(blocks, 3) else { return Ok(()) };
        let mut args =
            [arg(&rows.entries), arg(&rows.count), arg(&rows.units), arg(&words), arg(&word_count)];
        // SAFETY: as in `record`.
        unsafe { start(&self.commit, stream, shape, &mut args) }
    }

    /// Adds the checksums of parts to `sums`, an address of 64-bit numbers that are 0 before:
    /// [`eplb_comm::kernels::checksum`](fn@eplb_comm::kernels::checksum). An empty list launches nothing.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// The list holds entries of [`eplb_comm::kernels::ChecksumPart`] with device addresses and numbers of sums that there are; it
    /// and all that it names stay alive and unchanged by others until the launch has run.
    pub unsafe fn checksum(&self, stream: &CudaStream, list: DeviceList, sums: u64) -> Result<(), CudaError> {
        let Some(shape) = self.shape_for(list.units, 2) else { return Ok(()) };
        let mut args = [arg(&list.entries), arg(&list.count), arg(&list.units), arg(&sums)];
        // SAFETY: as in `record`.
        unsafe { start(&self.checksum, stream, shape, &mut args) }
    }

    /// Small batches spread over many small blocks, to be done soon; large ones take blocks of 1024 threads, since every block
    /// adds each expert that it met to global memory once.
    fn shape_of(&self, choices: &DeviceChoices, counts: &DeviceCounts) -> Shape {
        let groups = (u64::from(choices.tokens) * u64::from(choices.k)).div_ceil(GROUP).max(1);
        let many = groups > 256 * u64::from(self.multiprocessors);
        let threads = if many { 1024 } else { 256 };
        let most = 2 * u64::from(self.multiprocessors);
        let blocks = groups.div_ceil(u64::from(threads)).min(most) as u32;
        let shared = if counts.experts <= SHARED_EXPERTS { 4 * counts.experts } else { 0 };
        Shape { blocks, threads, shared }
    }

    /// As many blocks as there are units, up to `most` per multiprocessor, which are all that fit; `None` = no work.
    fn shape_for(&self, units: u64, most: u32) -> Option<Shape> {
        let blocks = units.min(u64::from(most * self.multiprocessors)) as u32;
        (blocks > 0).then_some(Shape { blocks, threads: THREADS, shared: 0 })
    }
}

/// Grid, block and dynamic shared memory of a launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

fn arg<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

/// # Safety
/// `args` point to what the kernel declares; what those name is as the callers' contracts say.
pub(crate) unsafe fn start(
    kernel: &Kernel,
    stream: &CudaStream,
    shape: Shape,
    args: &mut [*mut c_void],
) -> Result<(), CudaError> {
    let _entered = stream.context().enter()?;
    let Shape { blocks, threads, shared } = shape;
    // SAFETY: the kernel's module lives while `kernel` does, and the arguments are copied during the call; the rest is
    // passed on to the caller.
    check("cuLaunchKernel", unsafe {
        sys::cuLaunchKernel(
            kernel.raw(),
            blocks,
            1,
            1,
            threads,
            1,
            1,
            shared,
            stream.raw(),
            args.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    })
}
