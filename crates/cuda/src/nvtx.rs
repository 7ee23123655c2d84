//! Ranges that NVIDIA's profilers show (NVTX), where its library can be had.
//!
//! A process under a profiler has it loaded, or finds it on the library path; without it a range costs a look at a pointer.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use libloading::os::unix;

/// Names of the library, from CUDA 12 and before, and since.
const SONAMES: [&str; 3] = ["libnvToolsExt.so.1", "libnvtx3interop.so.1", "libnvtx3interop.so"];

/// The library's functions.
#[derive(Debug, Clone, Copy)]
struct Calls {
    push: unsafe extern "C" fn(*const c_char) -> c_int,
    pop: unsafe extern "C" fn() -> c_int,
    start: unsafe extern "C" fn(*const c_char) -> u64,
    end: unsafe extern "C" fn(u64),
}

fn open() -> Option<Calls> {
    for name in SONAMES {
        // SAFETY: NVIDIA's own library, whose initialisers may run anywhere; it stays open with the process.
        let opened = unsafe { unix::Library::open(Some(name), unix::RTLD_NOW | unix::RTLD_LOCAL) };
        let Ok(library) = opened else { continue };
        let library: &'static unix::Library = Box::leak(Box::new(library));
        // SAFETY: looked up by the names that NVTX documents with these types.
        let found = unsafe {
            Some(Calls {
                push: *library.get(b"nvtxRangePushA").ok()?,
                pop: *library.get(b"nvtxRangePop").ok()?,
                start: *library.get(b"nvtxRangeStartA").ok()?,
                end: *library.get(b"nvtxRangeEnd").ok()?,
            })
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Looks for the library, once: for start-up. Whether it was found.
pub fn find() -> bool {
    calls(true).is_some()
}

fn calls(look: bool) -> Option<&'static Calls> {
    static CALLS: OnceLock<Option<Calls>> = OnceLock::new();
    // Without `find` there are no ranges: nothing is opened on a forward path.
    if look { CALLS.get_or_init(open).as_ref() } else { CALLS.get()?.as_ref() }
}

/// A range on this thread, from now to its drop; ranges of a thread nest.
#[derive(Debug)]
#[must_use = "the range ends when it is dropped"]
pub struct Range {
    calls: Option<&'static Calls>,
    // Not Send: it ends on the thread on which it began.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Range {
    /// Begins.
    pub fn new(name: &'static CStr) -> Self {
        let calls = calls(false);
        if let Some(calls) = calls {
            // SAFETY: a function of the library; the name ends with a nul and is read during the call.
            unsafe { (calls.push)(name.as_ptr()) };
        }
        Self { calls, _thread: std::marker::PhantomData }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(calls) = self.calls {
            // SAFETY: a function of the library; ends what `new` began on this thread.
            unsafe { (calls.pop)() };
        }
    }
}

/// A range of the process, from now to its drop, on whatever threads.
#[derive(Debug)]
#[must_use = "the range ends when it is dropped"]
pub struct Phase(Option<(&'static Calls, u64)>);

impl Phase {
    /// Begins.
    pub fn new(name: &'static CStr) -> Self {
        // SAFETY: as for `Range::new`.
        Self(calls(false).map(|calls| (calls, unsafe { (calls.start)(name.as_ptr()) })))
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        if let Some((calls, id)) = self.0 {
            // SAFETY: a function of the library; ends what `new` began.
            unsafe { (calls.end)(id) };
        }
    }
}
