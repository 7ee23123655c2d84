//! The planner as C sees it.

use eplb_plan::Request;

use crate::call::{self, Failure};
use crate::plan::Plan;
use crate::request::PlanRequest;
use crate::status::Status;
use crate::structs;

/// Plans, on threads of its own. Keep one: its memory is used again from plan to plan.
#[derive(Debug)]
pub struct Planner(eplb_plan::Planner);

/// Makes a planner with `threads` threads; 1 plans on the calling thread. Plans do not depend on it.
///
/// # Safety
/// `planner` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_planner_new(threads: usize, planner: *mut *mut Planner) -> Status {
    call::run(|| {
        if planner.is_null() {
            return Err(Failure::argument("planner is null"));
        }
        let made = eplb_plan::Planner::new(threads).map_err(|error| Failure::new(Status::Plan, error))?;
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(Box::new(Planner(made))), planner, "planner") }
    })
}

/// Frees a planner. Null does nothing.
///
/// # Safety
/// `planner` is null or was made by `eplb_planner_new`, is not in use, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_planner_free(planner: *mut Planner) {
    // SAFETY: as the caller promises.
    unsafe { call::free(planner) }
}

/// Makes a plan: places the experts, splits their tokens over the replicas, and scores the result.
///
/// # Safety
/// `planner` is a live handle or null; `request` points to a request whose pointers are null or as long as it says; `plan`
/// points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_planner_plan(
    planner: *const Planner,
    request: *const PlanRequest,
    plan: *mut *mut Plan,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let planner = unsafe { call::handle(planner, "planner") }?;
        // SAFETY: as the caller promises.
        let request = unsafe { structs::read(request, "request") }?;
        if plan.is_null() {
            return Err(Failure::argument("plan is null"));
        }
        // SAFETY: as the caller promises.
        let owned = unsafe { request.take() }?;
        let mut request = Request::new(&owned.loads, &owned.topology, &owned.options);
        if let Some(current) = &owned.current {
            request = request.with_current(current);
        }
        let made = planner.0.plan(&request).map_err(|error| Failure::new(Status::Plan, error))?;
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(Box::new(Plan(made))), plan, "plan") }
    })
}
