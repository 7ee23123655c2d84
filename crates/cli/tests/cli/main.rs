//! The built command, as a user calls it.

mod bench;
mod objective;
mod plan;
mod processes;
mod ranks;
mod rebalance;
mod replay;
mod support;
