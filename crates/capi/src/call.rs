//! What surrounds every entry: panics are caught, errors become a status and a message.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::status::Status;

/// A status other than `Ok`, and why.
#[derive(Debug)]
pub(crate) struct Failure {
    status: Status,
    message: String,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl ToString) -> Self {
        Self { status, message: message.to_string() }
    }

    pub(crate) fn argument(message: impl ToString) -> Self {
        Self::new(Status::InvalidArgument, message)
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::new(CString::default());
}

/// Why the last call of this thread failed; empty if none did. Valid until the thread's next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn eplb_last_error() -> *const c_char {
    LAST_ERROR.with_borrow(|message| message.as_ptr())
}

/// Runs the body of an entry.
pub(crate) fn run(body: impl FnOnce() -> Result<(), Failure>) -> Status {
    // A body that panics has written nothing through its caller's pointers: results are written last.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Failure::new(Status::Internal, format!("a fault in eplb itself, please report it: {text}"))
        }
    };
    let message = CString::new(failure.message.replace('\0', " ")).unwrap_or_default();
    LAST_ERROR.with_borrow_mut(|last| *last = message);
    failure.status
}

/// Frees a handle; null does nothing. Whatever its drop does, a panic does not get out.
///
/// # Safety
/// `handle` is null or was made by `Box::into_raw`, is not in use, and is not used afterwards.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    run(|| {
        if !handle.is_null() {
            // SAFETY: as the caller promises.
            drop(unsafe { Box::from_raw(handle) });
        }
        Ok(())
    });
}

/// A handle that must not be null.
///
/// # Safety
/// `handle` is null or was made by this library and has not been freed; it is not freed while the reference lives.
pub(crate) unsafe fn handle<'a, T>(handle: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: as the caller promises.
    unsafe { handle.as_ref() }.ok_or_else(|| Failure::argument(format!("{name} is null")))
}

/// An array that a caller passes in.
///
/// # Safety
/// `data` is null or points to `len` values that nobody writes while the slice lives.
pub(crate) unsafe fn array<'a, T>(data: *const T, len: usize, name: &str) -> Result<&'a [T], Failure> {
    if data.is_null() {
        return Err(Failure::argument(format!("{name} is null; it must point to {len} values")));
    }
    if !data.is_aligned() || len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::argument(format!("{name} is not aligned, or {len} values are too many")));
    }
    // SAFETY: not null, aligned, not too long; the rest as the caller promises.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// Copies a result into an array of the caller's, which must have its length.
///
/// # Safety
/// `out` is null or points to `len` values that nobody else reads or writes during the call.
pub(crate) unsafe fn copy_out<T: Copy>(
    values: impl ExactSizeIterator<Item = T>,
    out: *mut T,
    len: usize,
    name: &str,
) -> Result<(), Failure> {
    if out.is_null() || !out.is_aligned() {
        return Err(Failure::argument(format!("{name} is null or not aligned")));
    }
    if len != values.len() {
        return Err(Failure::argument(format!(
            "{name} has room for {len} values; {} are needed",
            values.len()
        )));
    }
    for (at, value) in values.enumerate() {
        // SAFETY: `at < len`, so this lies in the caller's array.
        unsafe { out.add(at).write(value) };
    }
    Ok(())
}

/// Writes a result through a pointer of the caller's.
///
/// # Safety
/// `out` is null or points to room for a value that nobody else reads or writes during the call.
pub(crate) unsafe fn put<T>(value: T, out: *mut T, name: &str) -> Result<(), Failure> {
    if out.is_null() || !out.is_aligned() {
        return Err(Failure::argument(format!("{name} is null or not aligned")));
    }
    // SAFETY: not null and aligned; the rest as the caller promises.
    unsafe { out.write(value) };
    Ok(())
}

/// A text that a caller passes in.
///
/// # Safety
/// `text` is null or ends with a zero byte, and nobody writes it while the reference lives.
pub(crate) unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::argument(format!("{name} is null")));
    }
    // SAFETY: not null; the rest as the caller promises.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|error| Failure::argument(format!("{name} is not UTF-8: {error}")))
}

/// A text that may be left out.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn optional_text<'a>(text: *const c_char, name: &str) -> Result<Option<&'a str>, Failure> {
    match text.is_null() {
        true => Ok(None),
        // SAFETY: as the caller promises.
        false => unsafe { self::text(text, name) }.map(Some),
    }
}

/// Copies a text and a zero behind it to `text`, which has room for `room` bytes; `len` gets its length without the zero. If it does not
/// fit, nothing is copied.
///
/// # Safety
/// `text` is null with `room` 0, or points to `room` bytes; `len` is null or points to room for a number.
pub(crate) unsafe fn copy_text(
    found: &str,
    text: *mut c_char,
    room: usize,
    len: *mut usize,
) -> Result<(), Failure> {
    // SAFETY: as the caller promises.
    unsafe { put(found.len(), len, "len") }?;
    if found.len() >= room {
        return Ok(());
    }
    let bytes = found.bytes().map(|byte| byte as c_char).chain([0]).collect::<Vec<_>>();
    let count = bytes.len();
    // SAFETY: as the caller promises: `room` bytes, of which `count` are written.
    unsafe { copy_out(bytes.into_iter(), text, count, "text") }
}
