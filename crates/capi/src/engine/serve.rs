//! The forward path.

use super::{Engine, failed, set_of};
use crate::call::{self, Failure};
use crate::status::Status;

/// Before each forward pass, by one thread at a time, with ids that rise strictly and are the same on all ranks. Any status but
/// `EPLB_STATUS_OK` means that the pass must not run.
///
/// # Safety
/// `engine` is a live handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_step(engine: *const Engine, id: u64) -> Status {
    // SAFETY: as the caller promises.
    call::run(|| unsafe { call::handle(engine, "engine") }?.0.step(id).map_err(failed))
}

/// Now and then while no pass is under way and none is due, by the thread that calls `eplb_engine_step`.
///
/// # Safety
/// `engine` is a live handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_tick(engine: *const Engine) -> Status {
    // SAFETY: as the caller promises.
    call::run(|| unsafe { call::handle(engine, "engine") }?.0.tick().map_err(failed))
}

/// Address of the first local slot of a tensor that the engine lends. Valid until the engine is freed.
///
/// # Safety
/// `engine` is a live handle or null; `data` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_lent(
    engine: *const Engine,
    set: u32,
    layer: usize,
    tensor: usize,
    data: *mut *mut std::ffi::c_void,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        let set = set_of(engine, set)?;
        let found = engine.lent(set, layer, tensor).ok_or_else(|| {
            Failure::argument(format!("there is no tensor {tensor} of layer {layer} in the engine's memory"))
        })?;
        // SAFETY: as the caller promises.
        unsafe { call::put(found.as_ptr().cast(), data, "data") }
    })
}
