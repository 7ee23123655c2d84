//! Replay of a trace under a policy, as C sees it.

use std::num::NonZeroUsize;

use eplb_plan::{Planner as Plans, Policy};
use eplb_sim::{PolicyRun, Replay as Runner, ReplayError, Schedule};

use crate::call::{self, Failure};
use crate::request::PlanRequest;
use crate::status::Status;
use crate::structs::{self, Growing};
use crate::trace::Trace;

/// What a replay found.
#[derive(Debug)]
pub struct Replay(PolicyRun);

/// What a replay found, in numbers. Balancedness is of steps that no plan had seen: mean over layers, 0 to 1, even split. Set `struct_size` to the
/// size of this structure: an older program gets the fields that it knows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ReplaySummary {
    /// Size of this structure.
    pub struct_size: usize,
    /// First step that was scored.
    pub first_step: usize,
    /// Steps scored.
    pub steps: usize,
    /// Plans made, the first included.
    pub plans: usize,
    /// Mean balancedness.
    pub mean: f64,
    /// Balancedness that all but the worst hundredth of the steps reach.
    pub p01: f64,
    /// Moves of all plans but the first, which starts from nothing.
    pub moves: usize,
    /// Part of all slots that moved, mean over the steps scored.
    pub moves_fraction: f64,
    /// Part of the time of the mixture layers that ranks wait for the slowest, 0 to 1.
    pub waiting: f64,
    /// Seconds of link time of all moves.
    pub link_seconds: f64,
    /// Median time of a plan, milliseconds.
    pub plan_ms_median: f64,
}

// SAFETY: repr(C), `struct_size` is first; integers and floats take any bits.
unsafe impl Growing for ReplaySummary {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            first_step: 0,
            steps: 0,
            plans: 0,
            mean: f64::NAN,
            p01: f64::NAN,
            moves: 0,
            moves_fraction: 0.0,
            waiting: 0.0,
            link_seconds: 0.0,
            plan_ms_median: 0.0,
        }
    }
}

/// Replays a trace: a plan after every `interval` steps, made from the `window` steps before it, scored on the steps that follow. The
/// request tells ranks, slots, policy (null: `forecast`) and options; its loads, layers, experts and current placement are not read.
/// `link_gbps` is what a rank's link carries, 10^9 bytes per second.
///
/// # Safety
/// `trace` is a live handle or null; `request` is null or points to a request whose other pointers are null or as long as it says;
/// `replay` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_replay_run(
    trace: *const Trace,
    request: *const PlanRequest,
    window: usize,
    interval: usize,
    link_gbps: f64,
    threads: usize,
    replay: *mut *mut Replay,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let trace = &unsafe { call::handle(trace, "trace") }?.0;
        // SAFETY: as the caller promises.
        let request = unsafe { structs::read(request, "request") }?;
        if replay.is_null() {
            return Err(Failure::argument("replay is null"));
        }
        let (Some(window), Some(interval)) = (NonZeroUsize::new(window), NonZeroUsize::new(interval)) else {
            return Err(Failure::argument("window and interval are numbers of steps, at least 1"));
        };
        if !(link_gbps.is_finite() && link_gbps > 0.0) {
            return Err(Failure::argument(format!("link_gbps is {link_gbps}; give a number above 0")));
        }
        let policy = match request.policy.is_null() {
            true => Policy::Forecast,
            // SAFETY: as the caller promises.
            false => unsafe { request.policy() }?,
        };
        let plan = |error| Failure::new(Status::Plan, error);
        let runner = Runner {
            // SAFETY: as the caller promises.
            topology: unsafe { request.topology() }?,
            window,
            expert_bytes: request.expert_bytes.max(1),
            link_gbps,
        };
        // SAFETY: as the caller promises.
        let schedule = Schedule { options: unsafe { request.options(policy) }?, interval };
        let planner = Plans::new(threads).map_err(plan)?;
        let run =
            runner.run(trace, &[schedule], &planner, false, &mut || {}).map_err(|error| match error {
                ReplayError::Trace(error) => Failure::new(Status::Trace, error),
                ReplayError::TooShort { .. } => Failure::argument(error),
                other => Failure::new(Status::Plan, other),
            })?;
        let Some(run) = run.policies.into_iter().next() else {
            return Err(Failure::new(Status::Internal, "one policy was asked for, and none was run"));
        };
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(Box::new(Replay(run))), replay, "replay") }
    })
}

/// Tells what a replay found.
///
/// # Safety
/// `replay` is a live handle or null; `summary` is null or points to a structure whose `struct_size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_replay_summarize(replay: *const Replay, summary: *mut ReplaySummary) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let run = &unsafe { call::handle(replay, "replay") }?.0;
        let told = ReplaySummary {
            struct_size: size_of::<ReplaySummary>(),
            first_step: run.first_step,
            steps: run.balancedness.len(),
            plans: run.rebalances.len(),
            mean: run.mean(),
            p01: run.p01(),
            moves: run.moves(),
            moves_fraction: run.moves_fraction(),
            waiting: run.waiting,
            link_seconds: run.link_seconds,
            plan_ms_median: run.plan_ms_median(),
        };
        // SAFETY: as the caller promises.
        unsafe { structs::write(told, summary, "summary") }
    })
}

/// Balancedness of each step that was scored, `[steps]`.
///
/// # Safety
/// `replay` is a live handle or null; `values` is null or points to `len` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_replay_balancedness(
    replay: *const Replay,
    values: *mut f64,
    len: usize,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let run = &unsafe { call::handle(replay, "replay") }?.0;
        // SAFETY: as the caller promises.
        unsafe { call::copy_out(run.balancedness.iter().copied(), values, len, "values") }
    })
}

/// Moves of each step that was scored, `[steps]`: those of the plan that came into force with it; 0 where none did.
///
/// # Safety
/// `replay` is a live handle or null; `values` is null or points to `len` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_replay_moves(replay: *const Replay, values: *mut u64, len: usize) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let run = &unsafe { call::handle(replay, "replay") }?.0;
        let mut moves = vec![0; run.balancedness.len()];
        for rebalance in &run.rebalances {
            moves[rebalance.step - run.first_step] = rebalance.moves as u64;
        }
        // SAFETY: as the caller promises.
        unsafe { call::copy_out(moves.into_iter(), values, len, "values") }
    })
}

/// Frees a replay. Null does nothing.
///
/// # Safety
/// `replay` is null or a live handle that is not in use, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_replay_free(replay: *mut Replay) {
    // SAFETY: as the caller promises.
    unsafe { call::free(replay) }
}
