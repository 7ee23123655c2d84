//! A finished plan as C sees it.

use crate::call::{self, Failure};
use crate::status::Status;
use crate::structs::{self, Growing};

/// A plan.
#[derive(Debug)]
pub struct Plan(pub(crate) eplb_plan::Plan);

/// Frees a plan. Null does nothing.
///
/// # Safety
/// `plan` is null or was made by `eplb_planner_plan`, is not in use, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_free(plan: *mut Plan) {
    // SAFETY: as the caller promises.
    unsafe { call::free(plan) }
}

/// What a plan is worth. Balancedness is per layer the mean over ranks of rank load / the largest, 0 to 1, then the mean
/// over layers with any load. NaN: there is no current placement.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PlanSummary {
    /// Size of this structure; set it to `sizeof(struct eplb_plan_summary)`.
    pub struct_size: usize,
    /// MoE layers.
    pub layers: usize,
    /// Slots per layer.
    pub slots: usize,
    /// Logical experts per layer.
    pub experts: usize,
    /// Most replicas of one expert: least number of columns of `log2phy`.
    pub max_replicas: usize,
    /// Slots whose expert was not on their rank before; 0 without a current placement.
    pub moves: usize,
    /// Copies inside ranks; 0 without a current placement.
    pub local_copies: usize,
    /// Slots whose expert another slot of the rank holds too.
    pub duplicates: usize,
    /// Empty slots on live ranks.
    pub shortages: usize,
    /// Experts without a slot.
    pub left_out: usize,
    /// Experts that only dead ranks held.
    pub lost: usize,
    /// Balancedness of the current placement, even split.
    pub balancedness_before: f64,
    /// Balancedness of the plan, even split.
    pub balancedness: f64,
    /// The same of the worst layer.
    pub balancedness_min: f64,
    /// Balancedness of the plan with its `share`.
    pub balancedness_share: f64,
    /// Mean over the steps of the window of each step's balancedness, even split.
    pub balancedness_steps: f64,
    /// No placement with any split can be better balanced than this.
    pub bound: f64,
    /// Balance of the times that ranks are predicted to take, under the request's cost model and dispatch, 0 to 1.
    pub predicted_balance: f64,
    /// Part of all tokens that is predicted to cross nodes beyond what whole groups would, 0 to 1.
    pub predicted_crossing: f64,
    /// Whether the wanted balancedness was reached: 1 or 0, or -1: none was asked for.
    pub target_reached: i32,
}

// SAFETY: repr(C), `struct_size` is first; integers and floats take any bits.
unsafe impl Growing for PlanSummary {
    const LEAST: usize = std::mem::offset_of!(PlanSummary, predicted_balance);

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            layers: 0,
            slots: 0,
            experts: 0,
            max_replicas: 0,
            moves: 0,
            local_copies: 0,
            duplicates: 0,
            shortages: 0,
            left_out: 0,
            lost: 0,
            balancedness_before: f64::NAN,
            balancedness: 0.0,
            balancedness_min: 0.0,
            balancedness_share: 0.0,
            balancedness_steps: 0.0,
            bound: 0.0,
            predicted_balance: 0.0,
            predicted_crossing: 0.0,
            target_reached: -1,
        }
    }
}

/// Tells what a plan is worth. `summary->struct_size` must be set.
///
/// # Safety
/// `plan` is a live handle or null; `summary` is null or points to `summary->struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_summarize(plan: *const Plan, summary: *mut PlanSummary) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let plan = &unsafe { call::handle(plan, "plan") }?.0;
        let value = PlanSummary {
            struct_size: size_of::<PlanSummary>(),
            layers: plan.placement.layers(),
            slots: plan.placement.slots(),
            experts: plan.placement.experts(),
            max_replicas: plan.placement.max_replicas(),
            moves: plan.changes.as_ref().map_or(0, |changes| changes.moves),
            local_copies: plan.changes.as_ref().map_or(0, |changes| changes.local_copies),
            duplicates: plan.duplicates,
            shortages: plan.shortages,
            left_out: plan.left_out.len(),
            lost: plan.lost.len(),
            balancedness_before: plan.before.as_ref().map_or(f64::NAN, |balance| balance.mean),
            balancedness: plan.after.mean,
            balancedness_min: plan.after.min,
            balancedness_share: plan.after_share.mean,
            balancedness_steps: plan.balancedness_steps,
            bound: plan.bound.mean,
            predicted_balance: plan.predicted.balance.mean,
            predicted_crossing: plan.predicted.mean_crossing(),
            target_reached: plan.target_reached.map_or(-1, i32::from),
        };
        // SAFETY: as the caller promises.
        unsafe { structs::write(value, summary, "summary") }
    })
}

/// Which expert is in which slot, `[layers, slots]`, -1 = empty. `len` is the number of values that `phy2log` has room for.
///
/// # Safety
/// `plan` is a live handle or null; `phy2log` is null or points to `len` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_phy2log(plan: *const Plan, phy2log: *mut i32, len: usize) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let plan = &unsafe { call::handle(plan, "plan") }?.0;
        let values = plan.placement.phy2log();
        // SAFETY: as the caller promises.
        unsafe { call::copy_out(values.iter().copied(), phy2log, len, "phy2log") }
    })
}

/// The slots of each expert, `[layers, experts, columns]`, ascending, -1 = no more.
///
/// # Safety
/// `plan` is a live handle or null; `log2phy` is null or points to `len` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_log2phy(
    plan: *const Plan,
    columns: usize,
    log2phy: *mut i32,
    len: usize,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let placement = &unsafe { call::handle(plan, "plan") }?.0.placement;
        let most = placement.max_replicas();
        if columns < most || columns > placement.slots().max(1) {
            let slots = placement.slots();
            return Err(Failure::argument(format!(
                "columns is {columns}; {most} (most replicas) to {slots} are possible"
            )));
        }
        // SAFETY: as the caller promises.
        unsafe { call::copy_out(placement.log2phy(columns).iter().copied(), log2phy, len, "log2phy") }
    })
}

/// The number of slots of each expert, `[layers, experts]`.
///
/// # Safety
/// `plan` is a live handle or null; `logcnt` is null or points to `len` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_logcnt(plan: *const Plan, logcnt: *mut u32, len: usize) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let plan = &unsafe { call::handle(plan, "plan") }?.0;
        // SAFETY: as the caller promises.
        unsafe { call::copy_out(plan.placement.logcnt().iter().copied(), logcnt, len, "logcnt") }
    })
}

/// The part of its expert's tokens that each slot gets, `[layers, slots]`.
///
/// # Safety
/// `plan` is a live handle or null; `share` is null or points to `len` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_share(plan: *const Plan, share: *mut f64, len: usize) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let plan = &unsafe { call::handle(plan, "plan") }?.0;
        // SAFETY: as the caller promises.
        unsafe { call::copy_out(plan.share.view().iter().copied(), share, len, "share") }
    })
}
