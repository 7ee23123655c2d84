//! The compute stream of a rank on a device.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys;
use eplb_comm::{CommError, Fence, Memory, Place, Stream};
use eplb_core::{Fill, SlotCommit};

use crate::batch::RowCopies;
use crate::call::check;
use crate::copy::Rows;
use crate::error::CudaError;
use crate::event::{CudaFence, Events};
use crate::kernels::Kernels;
use crate::memory::DeviceMemory;
use crate::stream::CudaStream;

/// The stream on which a rank's forward pass runs, with the memory that commits copy in.
#[derive(Debug)]
pub struct DeviceStream {
    memory: Arc<DeviceMemory>,
    stream: Arc<CudaStream>,
    events: Arc<Events>,
    batch: Option<RowCopies>,
}

/// Events made at start-up; an exchange has a few fences open at a time.
const EVENTS: usize = 64;

impl DeviceStream {
    /// Commits on `stream`: the server's own compute stream, or one of ours.
    ///
    /// # Errors
    /// The driver refused events.
    pub fn new(memory: Arc<DeviceMemory>, stream: Arc<CudaStream>) -> Result<Self, CudaError> {
        let events = Events::new(stream.context(), EVENTS)?;
        Ok(Self { memory, stream, events, batch: None })
    }

    /// Commits by one launch of the commit kernel, and not by a copy for each tensor. For start-up: takes memory.
    ///
    /// # Errors
    /// The device has no room.
    pub fn with_kernels(mut self, kernels: Arc<Kernels>) -> Result<Self, CudaError> {
        self.batch = Some(RowCopies::new(&self.stream, kernels)?);
        Ok(self)
    }

    /// Device memory that commits take beside slots and staging.
    pub fn pool_bytes(&self) -> usize {
        self.batch.as_ref().map_or(0, |_| RowCopies::DEVICE_BYTES)
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Commits on another stream from now on. The caller orders the two.
    pub(crate) fn set_stream(&mut self, stream: Arc<CudaStream>) {
        self.stream = stream;
    }

    fn fence(&self) -> Result<Fence, CommError> {
        let rank = self.memory.rank();
        let fence = self.events.record(&self.stream, rank).map_err(|error| error.at(rank))?;
        Ok(fence.fence())
    }
}

/// Where a commit's bytes come from; `None` if it only changes the map.
fn source(commit: &SlotCommit) -> Option<Place> {
    match commit.fill {
        Fill::InPlace(_) | Fill::Empty => None,
        Fill::Staged { offset, .. } => Some(Place::staged(commit.layer, offset)),
        Fill::FromSlot { slot, .. } => Some(Place::slot(commit.layer, slot)),
    }
}

/// What commits copy, and whether all of it may be copied at once: none reads what another writes.
///
/// # Errors
/// A place that does not exist.
pub(crate) fn copies(
    memory: &DeviceMemory,
    commits: &[SlotCommit],
) -> Result<(Vec<(Rows, Rows)>, bool), CommError> {
    let (mut copies, mut apart) = (Vec::new(), true);
    for commit in commits {
        let to = Place::slot(commit.layer, commit.slot);
        memory.extent().locate(memory.layout(), to)?;
        if let Some(from) = source(commit) {
            apart &= !commits.iter().any(|other| Place::slot(other.layer, other.slot) == from);
            for tensor in 0..memory.layout().layer(commit.layer).tensors().len() {
                copies.push((memory.rows(from, tensor)?, memory.rows(to, tensor)?));
            }
        }
    }
    Ok((copies, apart))
}

impl Stream for DeviceStream {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        let rank = self.memory.rank();
        // Checked before the first copy is enqueued: a commit is taken whole or not at all.
        let (copies, apart) = copies(&self.memory, commits)?;
        if let Some(batch) = self.batch.as_mut().filter(|_| apart && !copies.is_empty()) {
            // SAFETY: as below; a commit names each slot once, and reads none that it writes.
            let launched = unsafe { batch.enqueue(&self.stream, &self.events, rank, &copies) };
            if let Some(fence) = launched.map_err(|error| error.at(rank))? {
                return Ok(fence.fence());
            }
        }
        for (from, to) in copies {
            // SAFETY: both sides lie in this rank's memory, which lives, and have the shape of one tensor; two places of
            // one memory do not overlap, and a commit onto itself copies bytes over themselves. That nobody else uses the
            // slot is the order of the exchange.
            unsafe { self.stream.copy(from, to) }.map_err(|error| error.at(rank))?;
        }
        self.fence()
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        self.fence()
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        let rank = self.memory.rank();
        if fence.poll()? {
            return Ok(());
        }
        match fence.state().as_any().downcast_ref::<CudaFence>() {
            Some(cuda) => cuda.order(&self.stream).map_err(|error| error.at(rank)),
            None => hold(&self.stream, fence.clone()).map_err(|error| error.at(rank)),
        }
    }
}

/// Holds a stream back until a fence that no device knows is passed or failed, by a host function in the stream's order.
/// It occupies the driver's callback thread meanwhile, so the engine uses events; this is for fences of other kinds.
fn hold(stream: &CudaStream, fence: Fence) -> Result<(), CudaError> {
    unsafe extern "C" fn until_settled(fence: *mut c_void) {
        // SAFETY: made by `Box::into_raw` below and given to this call alone.
        let fence = unsafe { Box::from_raw(fence.cast::<Fence>()) };
        let mut pause = Duration::from_micros(5);
        while let Ok(false) = fence.poll() {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }
    let _entered = stream.context().enter()?;
    let fence = Box::into_raw(Box::new(fence));
    // SAFETY: the function takes the box and makes no CUDA call: fences that do are ordered by events instead.
    let code = unsafe { sys::cuLaunchHostFunc(stream.raw(), Some(until_settled), fence.cast()) };
    check("cuLaunchHostFunc", code).inspect_err(|_| {
        // SAFETY: the driver refused, so nobody else has the box.
        drop(unsafe { Box::from_raw(fence) });
    })
}
