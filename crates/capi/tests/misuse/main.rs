//! Every entry with null, wrong sizes, wrong values, and from two threads: an error with words, never a crash.

mod device;
mod engine;
mod log;
mod planning;
mod store;

use std::ffi::CStr;

use eplb::{Status, eplb_last_error};

/// What the last failed call said.
fn said() -> String {
    // SAFETY: the library's own text, valid until the next failure on this thread.
    unsafe { CStr::from_ptr(eplb_last_error()) }.to_str().unwrap().to_owned()
}

fn is(status: Status, expected: Status, words: &str) {
    assert_eq!(status, expected, "{}", said());
    assert!(said().contains(words), "{:?} does not say {words:?}", said());
}
