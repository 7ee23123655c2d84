//! The host's functions that an engine calls: after commits, and for experts that no rank holds.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::host::{Content, HostMemory};
use eplb_comm::{Memory, Place};
use eplb_core::{ExpertId, LayerId, SlotId};
use eplb_cuda::{CudaStream, DeviceMemory, Events, Mirror, Rows};
use eplb_engine::EngineError;
use eplb_engine::engine::SetId;
use eplb_engine::process::Source;

use super::builder::{Builder, with};
use crate::call::{self, Failure};
use crate::status::Status;

/// Longest time that an expert takes from the host's memory to the device.
const UPLOAD: Duration = Duration::from_secs(60);

/// Called inside `eplb_engine_step` and `eplb_engine_tick` after a commit, for each layer, with the slots that it filled (numbers over all
/// ranks). It must not call the engine. On a device it may enqueue work on the first of the streams given. It is not called for slots that
/// `eplb_engine_reform` fills from the source: what is derived from those, the source or who called `eplb_engine_reform` puts there.
pub type AfterCommitFn =
    Option<unsafe extern "C" fn(state: *mut c_void, set: u32, layer: u32, slots: *const u32, count: usize)>;

/// Puts the bytes of an expert that no rank holds any more into a slot: for each row of each tensor of the layer one call, with the place
/// in host memory to fill (on a device it is copied from there). Returns 0, or something else if it cannot.
pub type SourceFn = Option<
    unsafe extern "C" fn(
        state: *mut c_void,
        layer: u32,
        expert: u32,
        tensor: u32,
        row: usize,
        bytes: *mut u8,
        len: usize,
    ) -> i32,
>;

/// State of a host's function, which may be called from any thread.
#[derive(Debug, Clone, Copy)]
struct HostState(*mut c_void);

// SAFETY: the host promises that its function may be called with it from any thread.
unsafe impl Send for HostState {}
// SAFETY: as above.
unsafe impl Sync for HostState {}

impl HostState {
    /// Closures take the whole of it, and so its `Send`.
    fn get(self) -> *mut c_void {
        self.0
    }
}

/// Sets the function that is called after commits.
///
/// # Safety
/// `builder` is a live handle or null; `hook` and its state are valid until the engine is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_builder_after_commit(
    builder: *const Builder,
    hook: AfterCommitFn,
    state: *mut c_void,
) -> Status {
    call::run(|| {
        let hook = hook.ok_or_else(|| Failure::argument("hook is null"))?;
        let own = HostState(state);
        let call_host = move |set: SetId, layer: LayerId, slots: &[SlotId]| {
            let slots: Vec<u32> = slots.iter().map(|slot| slot.0).collect();
            // SAFETY: the host's function, with what its documentation says.
            unsafe { hook(own.get(), set.0 as u32, layer.0, slots.as_ptr(), slots.len()) }
        };
        // SAFETY: as the caller promises.
        unsafe {
            with(builder, |state| {
                state.inner.after_commit(Box::new(call_host));
                Ok(())
            })
        }
    })
}

struct HostSource {
    function: unsafe extern "C" fn(*mut c_void, u32, u32, u32, usize, *mut u8, usize) -> i32,
    state: HostState,
}

impl std::fmt::Debug for HostSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostSource")
    }
}

impl HostSource {
    /// Has the host fill one row.
    fn row(
        &self,
        (layer, expert): (LayerId, ExpertId),
        tensor: usize,
        row: usize,
        bytes: &mut [u8],
    ) -> Result<(), EngineError> {
        let (base, len) = (bytes.as_mut_ptr(), bytes.len());
        // SAFETY: the host's function, with what its documentation says; the row is ours for writing.
        let code =
            unsafe { (self.function)(self.state.get(), layer.0, expert.0, tensor as u32, row, base, len) };
        match code {
            0 => Ok(()),
            _ => Err(EngineError::Options(format!(
                "{layer}, {expert}: the host's source returned {code} for row {row} of tensor {tensor}"
            ))),
        }
    }
}

impl Source for HostSource {
    fn fill(
        &self,
        memory: &Arc<HostMemory>,
        layer: LayerId,
        slot: SlotId,
        expert: ExpertId,
    ) -> Result<(), EngineError> {
        let mut place = memory.write(Place::slot(layer, slot))?;
        for tensor in 0..memory.layout().layer(layer).tensors().len() {
            for (row, bytes) in place.rows_mut(tensor).enumerate() {
                self.row((layer, expert), tensor, row, bytes)?;
            }
        }
        place.set_content(Content::Expert(expert));
        Ok(())
    }

    fn fill_device(
        &self,
        memory: &Arc<DeviceMemory>,
        layer: LayerId,
        slot: SlotId,
        expert: ExpertId,
    ) -> Result<(), EngineError> {
        let (context, rank) = (memory.context(), memory.rank());
        let stream = CudaStream::new(context, 0)?;
        let events = Events::new(context, 1)?;
        for tensor in 0..memory.layout().layer(layer).tensors().len() {
            let rows = memory.rows(Place::slot(layer, slot), tensor)?;
            let mut mirror = Mirror::new(context, rows.bytes())?;
            for (row, bytes) in mirror.host_mut().chunks_exact_mut(rows.row_bytes.max(1)).enumerate() {
                self.row((layer, expert), tensor, row, bytes)?;
            }
            mirror.push(&stream, 0..rows.bytes())?;
            let packed: Rows = rows.packed_at(mirror.device());
            // SAFETY: the slot is no map's, so nobody reads it; the mirror lives until the copy has run, which is waited for.
            unsafe { stream.copy(packed, rows) }?;
            let copied = events.record(&stream, rank)?.fence();
            copied.wait(rank, "an expert from the host's source", Instant::now() + UPLOAD)?;
        }
        Ok(())
    }
}

/// Sets where experts come from that no rank holds any more.
///
/// # Safety
/// `builder` is a live handle or null; `source` and its state are valid until the engine is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_builder_source(
    builder: *const Builder,
    source: SourceFn,
    state: *mut c_void,
) -> Status {
    call::run(|| {
        let function = source.ok_or_else(|| Failure::argument("source is null"))?;
        let made = Arc::new(HostSource { function, state: HostState(state) });
        // SAFETY: as the caller promises.
        unsafe {
            with(builder, |state| {
                state.inner.source(made);
                Ok(())
            })
        }
    })
}
