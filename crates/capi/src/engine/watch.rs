//! Looking at an engine.

use std::ffi::c_char;
use std::path::Path;

use super::{Engine, failed, set_of};
use crate::call;
use crate::status::Status;
use crate::structs::{self, Growing};

/// What the last round of a layer set did on this rank. Balancedness is 0 to 1, on the loads planned for. Set `struct_size` to the size of this
/// structure: an older program gets the fields that it knows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RoundReport {
    /// Size of this structure.
    pub struct_size: usize,
    /// Number of the round in its epoch, from 1; 0: there was none.
    pub round: u64,
    /// Balancedness of the placement before.
    pub before: f64,
    /// What the plan promised.
    pub predicted: f64,
    /// The best that any placement could reach.
    pub bound: f64,
    /// Of what is in force now.
    pub reached: f64,
    /// Experts that crossed links, over all ranks.
    pub moves: u64,
    /// Copies inside ranks.
    pub local_copies: u64,
    /// Bytes over links, over all ranks.
    pub link_bytes: u64,
    /// Waves planned.
    pub waves: u64,
    /// Waves committed.
    pub committed: u64,
    /// Seconds of planning on the leading rank.
    pub plan_seconds: f64,
    /// Seconds from the round's beginning on this rank to its end.
    pub seconds: f64,
    /// Longest time that a step of this rank took to launch waves of the round, in microseconds; 0 where steps do not.
    pub launch_us: f64,
}

// SAFETY: repr(C), `struct_size` is first; integers and floats take any bits.
unsafe impl Growing for RoundReport {
    const LEAST: usize = std::mem::offset_of!(RoundReport, launch_us);

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            round: 0,
            before: f64::NAN,
            predicted: f64::NAN,
            bound: f64::NAN,
            reached: f64::NAN,
            moves: 0,
            local_copies: 0,
            link_bytes: 0,
            waves: 0,
            committed: 0,
            plan_seconds: 0.0,
            seconds: 0.0,
            launch_us: 0.0,
        }
    }
}

/// Tells what the last round of a layer set did; how it ended, and why it began, is a text: `eplb_engine_round_outcome`.
///
/// # Safety
/// `engine` is a live handle or null; `report` is null or points to a structure whose `struct_size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_last_report(
    engine: *const Engine,
    set: u32,
    report: *mut RoundReport,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        let found = engine.last_report(set_of(engine, set)?);
        let told = found.map_or(RoundReport::defaults(), |found| RoundReport {
            struct_size: size_of::<RoundReport>(),
            round: found.round,
            before: found.before,
            predicted: found.predicted,
            bound: found.bound,
            reached: found.reached,
            moves: found.moves as u64,
            local_copies: found.local_copies as u64,
            link_bytes: found.link_bytes,
            waves: found.waves as u64,
            committed: found.committed as u64,
            plan_seconds: found.plan_time.as_secs_f64(),
            seconds: found.time.as_secs_f64(),
            launch_us: found.launch.as_secs_f64() * 1e6,
        });
        // SAFETY: as the caller promises.
        unsafe { structs::write(told, report, "report") }
    })
}

/// The engine's state in words, such as `idle`, `moving wave 3`, `failed: ..`; `text` and `len` as of `eplb_engine_metrics`.
///
/// # Safety
/// As `eplb_engine_metrics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_state(
    engine: *const Engine,
    text: *mut c_char,
    room: usize,
    len: *mut usize,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let state = unsafe { call::handle(engine, "engine") }?.0.state().to_string();
        // SAFETY: as the caller promises.
        unsafe { call::copy_text(&state, text, room, len) }
    })
}

/// How the last round of a layer set ended: `moved`, `nothing`, `dry_run`, `too_late` or `aborted: ` and why; empty if there was
/// none. `text` and `len` as of `eplb_engine_metrics`.
///
/// # Safety
/// As `eplb_engine_metrics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_round_outcome(
    engine: *const Engine,
    set: u32,
    text: *mut c_char,
    room: usize,
    len: *mut usize,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        let found = engine.last_report(set_of(engine, set)?);
        let outcome = found.map_or(String::new(), |report| report.outcome.to_string());
        // SAFETY: as the caller promises.
        unsafe { call::copy_text(&outcome, text, room, len) }
    })
}

/// Metrics in Prometheus' text format. The text and a zero behind it are copied to `text` if it has room for them; `len` gets the
/// length, without the zero, in any case. `per_layer` not 0: balancedness of each layer too.
///
/// # Safety
/// `engine` is a live handle or null; `text` is null with `room` 0, or points to `room` bytes; `len` is null or points to room for a
/// number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_metrics(
    engine: *const Engine,
    per_layer: u8,
    text: *mut c_char,
    room: usize,
    len: *mut usize,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let metrics = unsafe { call::handle(engine, "engine") }?.0.metrics(per_layer != 0);
        // SAFETY: as the caller promises.
        unsafe { call::copy_text(&metrics, text, room, len) }
    })
}

/// Writes plan and window of a layer set as an `.npz` file, which the configuration's `start_plan` and `load_window` name.
///
/// # Safety
/// `engine` is a live handle or null; `path` is null or a text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_save(engine: *const Engine, set: u32, path: *const c_char) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        // SAFETY: as the caller promises.
        let path = unsafe { call::text(path, "path") }?;
        engine.save(set_of(engine, set)?, Path::new(path)).map_err(failed)
    })
}
