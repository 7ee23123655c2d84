//! Engines whose slots lie on a CUDA device: which device, on which streams passes run, and where the maps lie there.

use eplb_engine::engine::{Device, DeviceMapsView};

use super::builder::{Builder, with};
use super::{Engine, failed, set_of};
use crate::call::{self, Failure};
use crate::status::Status;
use crate::structs::{self, Growing};

/// All slots of this rank lie on the CUDA device whose number is `device`, in its primary context, which PyTorch and NCCL use too. To be said
/// before the first layer is registered or lent; addresses of tensors are then of that device, and so are those that
/// `eplb_engine_lent` tells. Kernels of commits and counting are loaded from the folder that `EPLB_KERNELS` names, or compiled where
/// NVRTC is; without them commits are copies, and `eplb_engine_record_topk` says that it cannot count.
///
/// # Safety
/// `builder` is a live handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_builder_device(builder: *const Builder, device: u32) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        unsafe {
            with(builder, |state| {
                let device = Device::new(device as usize).map_err(failed)?;
                state.inner.device(device).map_err(failed)
            })
        }
    })
}

/// As `eplb_engine_step`, on a device: with all `count` streams (`CUstream`, as numbers) on which this pass reads slots or maps, at most 16.
/// Later calls of `eplb_engine_step` and `eplb_engine_tick` mean the same ones. Commits and changes of maps run on the first, behind
/// all that was enqueued on any of them, and before all that will be. The default stream is 1 (or 2, one per thread), not 0.
///
/// While a stream is captured into a graph nothing is committed and no map changes: a pass that is captured does not run. A replay is a
/// pass like any other, with a call before it.
///
/// # Safety
/// `engine` is a live handle or null; `streams` is null or points to `count` streams of the engine's device, each of which lives until a
/// later call without it has returned, or `eplb_engine_shutdown` has returned `EPLB_STATUS_OK`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_step_on(
    engine: *const Engine,
    id: u64,
    streams: *const u64,
    count: usize,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        // SAFETY: as the caller promises.
        let streams = unsafe { call::array(streams, count, "streams") }?;
        // SAFETY: as the caller promises.
        unsafe { engine.step_on(id, streams) }.map_err(failed)
    })
}

/// Where the device copies of a layer set's maps lie: contiguous, at these addresses and in these shapes as long as the engine lives, so
/// that captured graphs may name them. Set `struct_size` to the size of this structure.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DeviceMaps {
    /// Size of this structure.
    pub struct_size: usize,
    /// MoE layers.
    pub layers: usize,
    /// Slots per layer, over all ranks.
    pub slots: usize,
    /// Logical experts per layer.
    pub experts: usize,
    /// Columns of `log2phy`.
    pub columns: usize,
    /// Address of expert in each slot, -1 = empty or drained; int32 `[layers, slots]`.
    pub phy2log: u64,
    /// Address of slots of each expert, ascending, -1 = no more; int32 `[layers, experts, columns]`.
    pub log2phy: u64,
    /// Address of number of slots of each expert; int32 `[layers, experts]`.
    pub logcnt: u64,
    /// Address of part of its expert's tokens that a slot gets; float32 `[layers, slots]`.
    pub share: u64,
}

// SAFETY: repr(C), `struct_size` is first, integers alone.
unsafe impl Growing for DeviceMaps {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            layers: 0,
            slots: 0,
            experts: 0,
            columns: 0,
            phy2log: 0,
            log2phy: 0,
            logcnt: 0,
            share: 0,
        }
    }
}

/// Tells where the maps of a layer set lie on the engine's device. What stands there are the maps of `eplb_engine_maps`, for all that is
/// enqueued on the streams of a pass after `eplb_engine_step_on` has returned.
///
/// # Safety
/// `engine` is a live handle or null; `maps` is null or points to a structure whose `struct_size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_device_maps(
    engine: *const Engine,
    set: u32,
    maps: *mut DeviceMaps,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        let set = set_of(engine, set)?;
        let on_host =
            || Failure::new(Status::State, "the engine's slots lie in host memory: take eplb_engine_maps");
        let DeviceMapsView { addresses, shape } = engine.device_maps(set).ok_or_else(on_host)?;
        let told = DeviceMaps {
            struct_size: size_of::<DeviceMaps>(),
            layers: shape.layers,
            slots: shape.slots,
            experts: shape.experts,
            columns: shape.columns,
            phy2log: addresses.phy2log,
            log2phy: addresses.log2phy,
            logcnt: addresses.logcnt,
            share: addresses.share,
        };
        // SAFETY: as the caller promises.
        unsafe { structs::write(told, maps, "maps") }
    })
}
