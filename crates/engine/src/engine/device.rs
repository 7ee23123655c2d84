//! Engines whose slots lie on a CUDA device: the server's streams, and maps at fixed addresses there.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use eplb_core::SlotCommit;
use eplb_cuda::kernels::Kernels;
use eplb_cuda::{
    CommitList, CommitLists, Context, CudaError, DeviceMemory, MOST_STREAMS, MapAddresses, MapBlock,
    MapEntries, MapShape, ServerStreams, Upload, check_streams,
};

use super::maps::Maps;
use super::{Engine, SetId};
use crate::error::EngineError;

/// The device that all slots of a rank lie on: [`Builder::device`](super::Builder::device).
#[derive(Debug, Clone)]
pub struct Device {
    pub(super) context: Arc<Context>,
    kernels: bool,
}

impl Device {
    /// A device by its number among those that this process sees, and its primary context, which PyTorch and NCCL use too.
    ///
    /// # Errors
    /// There is no driver, or no such device.
    pub fn new(ordinal: usize) -> Result<Self, EngineError> {
        Ok(Self { context: Context::primary(ordinal)?, kernels: true })
    }

    /// A context that the server keeps.
    ///
    /// # Errors
    /// It is none.
    ///
    /// # Safety
    /// `context` is a `CUcontext` that lives until the engine has been shut down and dropped.
    #[allow(unsafe_code)]
    pub unsafe fn borrow(context: *mut c_void) -> Result<Self, EngineError> {
        // SAFETY: passed on to the caller.
        let context = unsafe { Context::borrow(context) }?;
        Ok(Self { context, kernels: true })
    }

    /// Loads no kernels: commits copy, and tokens are counted by the server.
    pub fn without_kernels(self) -> Self {
        Self { kernels: false, ..self }
    }

    /// Loads the kernels, if they are wanted and can be had.
    pub(super) fn load(&self) -> Result<Arc<Kernels>, String> {
        if !self.kernels {
            return Err("the engine's device was made without kernels".into());
        }
        let loaded = Kernels::load(&self.context, None).map(Arc::new).map_err(|error| error.to_string());
        if let Err(why) = &loaded {
            tracing::warn!(
                why,
                "no kernels: commits are copies, and routed tokens are not counted on the device"
            );
        }
        loaded
    }
}

/// Where the device copies of a layer set's maps lie: contiguous, in the shapes of [`Maps`], at these addresses as long as the engine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMapsView {
    /// Device addresses: int32 `phy2log [L, P]`, `log2phy [L, E, C]`, `logcnt [L, E]`, float32 `share [L, P]`.
    pub addresses: MapAddresses,
    /// `L`, `E`, `P` and `C`.
    pub shape: MapShape,
}

/// What the forward path of a layer set has on a device, beside its slots.
#[derive(Debug)]
pub(super) struct DeviceSide {
    pub(super) streams: ServerStreams,
    maps: Arc<MapBlock>,
}

/// What a layer set has there for whoever prepares its steps.
#[derive(Debug, Clone)]
pub(super) struct DeviceAhead {
    pub(super) maps: Arc<MapBlock>,
    memory: Arc<DeviceMemory>,
    /// Where there are kernels.
    commits: Option<Arc<CommitLists>>,
}

impl DeviceAhead {
    /// Sends maps ahead. Without room they travel when they are needed.
    pub(super) fn upload(&self, maps: &Maps) -> Result<Option<Upload>, CudaError> {
        entries(maps).map_or(Ok(None), |entries| self.maps.upload(&entries))
    }

    /// Sends a commit ahead, behind the maps that may go with it.
    pub(super) fn lay_out(
        &self,
        commits: Vec<SlotCommit>,
        ready: &[Ready],
    ) -> Result<Option<CommitList>, CudaError> {
        let Some(lists) = &self.commits else { return Ok(None) };
        let uploads: Vec<&Upload> = ready.iter().filter_map(|ready| ready.upload.as_ref()).collect();
        lists.lay_out(&self.memory, commits, &uploads)
    }
}

/// Entries of maps; `None` if they do not lie as they are made.
fn entries(maps: &Maps) -> Option<MapEntries<'_>> {
    Some(MapEntries {
        phy2log: maps.phy2log.as_slice()?,
        share: maps.share.as_slice()?,
        logcnt: maps.logcnt.as_slice()?,
        log2phy: maps.log2phy.as_slice()?,
    })
}

fn contiguous(maps: &Maps) -> Result<MapEntries<'_>, CudaError> {
    entries(maps).ok_or_else(|| CudaError::Address("maps that are not contiguous".into()))
}

impl DeviceSide {
    /// Takes all that commits and changes of maps will need, and puts the first maps on the device.
    pub(super) fn new(
        memory: Arc<DeviceMemory>,
        kernels: Option<Arc<Kernels>>,
        first: &Maps,
    ) -> Result<(Self, DeviceAhead), CudaError> {
        let (layers, experts, columns) = first.log2phy.dim();
        let shape = MapShape { layers, experts, slots: first.phy2log.ncols(), columns };
        let maps = MapBlock::new(memory.context(), memory.rank(), shape, &contiguous(first)?)?;
        let lists = kernels.clone().map(|kernels| CommitLists::new(&memory, &maps, kernels));
        let ahead = DeviceAhead { maps: maps.clone(), memory: memory.clone(), commits: lists.transpose()? };
        let streams = ServerStreams::new(memory, kernels)?;
        Ok((Self { streams, maps }, ahead))
    }

    /// Puts maps in force on the device, behind all passes before and ahead of all that follow.
    pub(super) fn switch(&mut self, maps: &Maps, upload: Option<Upload>) -> Result<(), CudaError> {
        match upload {
            Some(upload) => self.streams.switch(&self.maps, upload),
            None => self.streams.write(&self.maps, &contiguous(maps)?),
        }
    }
}

/// Maps that steps will need soon, and their copies that travel to the device meanwhile.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) maps: Maps,
    pub(super) upload: Option<Upload>,
}

impl Ready {
    /// Sends them ahead, where there is a device.
    pub(super) fn new(maps: Maps, ahead: Option<&DeviceAhead>) -> Result<Self, CudaError> {
        let upload = ahead.map_or(Ok(None), |ahead| ahead.upload(&maps))?;
        Ok(Self { maps, upload })
    }

    /// Looks whether they have come, so that a step need not make its stream wait for them.
    pub(super) fn look(&self) -> Result<(), CudaError> {
        self.upload.as_ref().map_or(Ok(true), Upload::look).map(drop)
    }
}

/// The streams that the server gave last, for the thread that calls `step`; others only ever see whole words.
#[derive(Debug)]
pub(super) struct Given {
    /// [`NEVER`] before the first.
    count: AtomicUsize,
    handles: [AtomicU64; MOST_STREAMS],
}

/// No number of streams.
const NEVER: usize = usize::MAX;

impl Default for Given {
    fn default() -> Self {
        Self { count: AtomicUsize::new(NEVER), handles: Default::default() }
    }
}

impl Given {
    /// Whether none were ever given.
    pub(super) fn is_nothing(&self) -> bool {
        self.count.load(Ordering::Relaxed) == NEVER
    }

    #[inline]
    pub(super) fn is(&self, streams: &[u64]) -> bool {
        self.count.load(Ordering::Relaxed) == streams.len()
            && self.handles.iter().zip(streams).all(|(one, &other)| one.load(Ordering::Relaxed) == other)
    }

    pub(super) fn set(&self, streams: &[u64]) {
        for (handle, &stream) in self.handles.iter().zip(streams) {
            handle.store(stream, Ordering::Relaxed);
        }
        self.count.store(streams.len(), Ordering::Relaxed);
    }
}

impl Engine {
    /// As [`Engine::step`], on a device: with all CUDA streams (`CUstream` as a number) on which this pass reads slots or maps, at most 16. Later
    /// calls of [`Engine::step`] and [`Engine::tick`] mean the same ones. Commits and changes of maps run on the first stream, behind all that was
    /// enqueued on any of them, and before all that will be.
    ///
    /// While one of the streams is captured into a graph, nothing is committed and nothing changes: a pass that is captured does not run. A
    /// replay is a pass like any other, with a call before it.
    ///
    /// # Errors
    /// As [`Engine::step`]. 0 is refused: it stands for the default stream, whose explicit names are 1 and 2.
    ///
    /// # Safety
    /// Each is a stream of the device's context that lives until a later call without it has returned, or [`Engine::shutdown`] has
    /// returned `Ok`.
    #[inline]
    #[allow(unsafe_code)]
    pub unsafe fn step_on(&self, id: u64, streams: &[u64]) -> Result<(), EngineError> {
        if self.shared.given.is(streams) {
            return self.step(id);
        }
        // Before the id is taken: what is refused here has changed nothing.
        check_streams(streams)?;
        self.shared.check_device()?;
        self.shared.begin_step(id)?;
        // SAFETY: passed on to the caller.
        unsafe { self.shared.slow_step_on(id, streams) }
    }

    /// Where the device copies of a set's maps lie; `None` if it lies in host memory. What stands there are the maps of [`Engine::maps`], for
    /// what is enqueued on the streams of the pass after [`Engine::step_on`] has returned.
    pub fn device_maps(&self, set: SetId) -> Option<DeviceMapsView> {
        let block = &self.shared.sets.get(set.0)?.device.as_ref()?.maps;
        Some(DeviceMapsView { addresses: block.addresses(), shape: block.shape() })
    }
}
