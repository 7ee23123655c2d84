//! Traces as C sees them.

use std::ffi::c_char;

use crate::call::{self, Failure};
use crate::status::Status;

/// A trace of loads on disk.
#[derive(Debug)]
pub struct Trace(pub(crate) eplb_trace::Trace);

fn failure(error: impl ToString) -> Failure {
    Failure::new(Status::Trace, error)
}

/// Opens a trace: `.npy`, `.npz` or `.csv`, of any of the systems that `eplb trace` reads.
///
/// # Safety
/// `path` is null or ends with a zero byte; `trace` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_trace_open(path: *const c_char, trace: *mut *mut Trace) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let path = unsafe { call::text(path, "path") }?;
        if trace.is_null() {
            return Err(Failure::argument("trace is null"));
        }
        let opened = eplb_trace::Trace::open(path).map_err(failure)?;
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(Box::new(Trace(opened))), trace, "trace") }
    })
}

/// Frees a trace. Null does nothing.
///
/// # Safety
/// `trace` is null or was made by `eplb_trace_open`, is not in use, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_trace_free(trace: *mut Trace) {
    // SAFETY: as the caller promises.
    unsafe { call::free(trace) }
}

/// Steps, layers and experts of a trace.
///
/// # Safety
/// `trace` is a live handle or null; `shape` is null or points to 3 values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_trace_shape(trace: *const Trace, shape: *mut usize) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let trace = &unsafe { call::handle(trace, "trace") }?.0;
        let sizes = [trace.steps(), trace.layers(), trace.experts()];
        // SAFETY: as the caller promises.
        unsafe { call::copy_out(sizes.into_iter(), shape, sizes.len(), "shape") }
    })
}

/// Loads of `steps` steps from `first` on, `[steps, layers, experts]`.
///
/// # Safety
/// `trace` is a live handle or null; `loads` is null or points to `len` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_trace_loads(
    trace: *const Trace,
    first: usize,
    steps: usize,
    loads: *mut f64,
    len: usize,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let trace = &unsafe { call::handle(trace, "trace") }?.0;
        let end = first.checked_add(steps).filter(|&end| end <= trace.steps() && steps > 0);
        let Some(end) = end else {
            let most = trace.steps();
            return Err(Failure::argument(format!(
                "steps {first} to {first} + {steps} of a trace of {most}"
            )));
        };
        let read = trace.loads(first..end).map_err(failure)?;
        // SAFETY: as the caller promises.
        unsafe { call::copy_out(read.window().iter().copied(), loads, len, "loads") }
    })
}
