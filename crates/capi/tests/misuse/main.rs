//! Every entry with null, wrong sizes, wrong values, and from two threads: an error with words, never a crash.

mod device;
mod engine;
mod log;
mod planning;
mod store;
mod threads;

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

/// Whoever adds a function adds what becomes of its misuse.
#[test]
fn every_function_of_the_header_is_misused_here() {
    let header = include_str!("../../include/eplb.h");
    let tests = [
        include_str!("device.rs"),
        include_str!("engine.rs"),
        include_str!("log.rs"),
        include_str!("planning.rs"),
        include_str!("store.rs"),
        include_str!("threads.rs"),
    ];
    // These take nothing and cannot fail.
    let harmless = ["eplb_abi_version", "eplb_version", "eplb_last_error"];
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let declared: Vec<&str> = header
        .match_indices('(')
        .filter_map(|(at, _)| header[..at].rsplit(|c| !is_name(c)).next())
        .filter(|name| name.starts_with("eplb_") && !harmless.contains(name))
        .collect();
    assert!(declared.len() > 60, "{declared:?}");
    for name in declared {
        let call = format!("{name}(");
        assert!(tests.iter().any(|text| text.contains(&call)), "{name} is not in these tests");
    }
}
