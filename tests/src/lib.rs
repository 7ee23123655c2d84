//! Whole-system tests live in `tests/tests`. The README's Rust examples are compiled and run from here.
#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
