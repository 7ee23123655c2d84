//! What would have happened: replay of load traces under placement policies.
#![forbid(unsafe_code)]

pub mod replay;

pub use replay::{PolicyRun, Replay, ReplayError, Run};
