//! What would have happened: replay of load traces under placement policies; and what could happen: a simulated cluster
//! that runs the exchange through delays, stops and deaths.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod replay;

pub use replay::{PolicyRun, Replay, ReplayError, Run, Schedule};
