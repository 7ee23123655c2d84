//! Whole-system tests live in `tests/tests`; here is what those share that start ranks as processes. The README's Rust examples are
//! compiled and run from here.
#![forbid(unsafe_code)]

pub mod child;
pub mod ranks;

use std::process::ExitCode;

use eplb_engine::process::GlooTransport;

/// How tests end that need Gloo where there is none: as a failure, unless `EPLB_TESTS_WITHOUT_GLOO=1` leaves them out. `None`: it is there.
pub fn without_gloo(tests: &str) -> Option<ExitCode> {
    let error = GlooTransport::find_library().err()?;
    if std::env::var_os("EPLB_TESTS_WITHOUT_GLOO").is_some() {
        println!("{tests}: NOT RUN, {error}");
        return Some(ExitCode::SUCCESS);
    }
    println!("{tests}: FAILED, {error}; EPLB_TESTS_WITHOUT_GLOO=1 leaves these tests out");
    Some(ExitCode::FAILURE)
}

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
