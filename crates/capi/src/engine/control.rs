//! What a host asks of an engine. Calls with a time limit block; any thread may make them.

use std::time::Duration;

use super::{Engine, failed};
use crate::call;
use crate::status::Status;

/// Runs a call on an engine.
///
/// # Safety
/// `engine` is a live handle or null.
unsafe fn on(
    engine: *const Engine,
    work: impl FnOnce(&eplb_engine::Engine) -> Result<(), eplb_engine::EngineError>,
) -> Status {
    // SAFETY: as the caller promises.
    call::run(|| work(&unsafe { call::handle(engine, "engine") }?.0).map_err(failed))
}

/// Asks for a round whatever the triggers say. `rounds` gets how many have ended so far, for `eplb_engine_wait_round`.
///
/// # Safety
/// `engine` is a live handle or null; `rounds` is null or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_rebalance_now(engine: *const Engine, rounds: *mut u64) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        if rounds.is_null() {
            return Err(call::Failure::argument("rounds is null"));
        }
        let ended = engine.rebalance_now().map_err(failed)?;
        // SAFETY: as the caller promises.
        unsafe { call::put(ended, rounds, "rounds") }
    })
}

/// Waits until more than `after` rounds have ended on this rank.
///
/// # Safety
/// `engine` is a live handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_wait_round(
    engine: *const Engine,
    after: u64,
    timeout_ms: u64,
) -> Status {
    // SAFETY: as the caller promises.
    unsafe { on(engine, |engine| engine.wait_round(after, Duration::from_millis(timeout_ms)).map(drop)) }
}

/// No new round begins until `eplb_engine_resume`; one that is under way goes on.
///
/// # Safety
/// `engine` is a live handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_pause(engine: *const Engine) -> Status {
    // SAFETY: as the caller promises.
    unsafe { on(engine, eplb_engine::Engine::pause) }
}

/// Rounds may begin again.
///
/// # Safety
/// `engine` is a live handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_resume(engine: *const Engine) -> Status {
    // SAFETY: as the caller promises.
    unsafe { on(engine, eplb_engine::Engine::resume) }
}

/// Finishes or cancels what is under way and closes all handles on other ranks, for sleep, reload and refit. All ranks call it, each
/// with no pass under way.
///
/// # Safety
/// `engine` is a live handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_quiesce(engine: *const Engine, timeout_ms: u64) -> Status {
    // SAFETY: as the caller promises.
    unsafe { on(engine, |engine| engine.quiesce(Duration::from_millis(timeout_ms))) }
}

/// Goes on after `eplb_engine_quiesce`.
///
/// # Safety
/// `engine` is a live handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_reopen(engine: *const Engine, timeout_ms: u64) -> Status {
    // SAFETY: as the caller promises.
    unsafe { on(engine, |engine| engine.reopen(Duration::from_millis(timeout_ms))) }
}

/// Forms the next epoch with the same ranks, after a failure. All ranks call it.
///
/// # Safety
/// `engine` is a live handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_reform(engine: *const Engine, timeout_ms: u64) -> Status {
    // SAFETY: as the caller promises.
    unsafe { on(engine, |engine| engine.reform(Duration::from_millis(timeout_ms))) }
}

/// Ends the engine from any state. After `EPLB_STATUS_OK` nothing of it touches registered memory any more.
///
/// # Safety
/// `engine` is a live handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_shutdown(engine: *const Engine, timeout_ms: u64) -> Status {
    // SAFETY: as the caller promises.
    unsafe { on(engine, |engine| engine.shutdown(Duration::from_millis(timeout_ms))) }
}

/// Shuts an engine down, if that was not done, and frees it. Null does nothing.
///
/// # Safety
/// `engine` is null or a live handle that is not in use, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_free(engine: *mut Engine) {
    // SAFETY: as the caller promises.
    unsafe { call::free(engine) }
}
