//! Moving experts: from two placements to waves.
//!
//! [`ExchangePlan::new`] orders the slot changes between an old and a new placement into waves that can each be
//! transferred and committed at once, with a valid placement before, during and after every one.
//! [`Exchange`] runs them: a state machine per rank that says what to send, drain, move and commit, and when.
#![forbid(unsafe_code)]

mod assign;
mod build;
pub mod error;
pub mod plan;
pub mod protocol;

pub use error::ExchangeError;
pub use plan::{ExchangePlan, Limits, Part, Totals, Worst, default_staging_bytes};
pub use protocol::{Action, Cause, Deadlines, Exchange, Note, Outcome, Phase, Record, Touched, Verdict};
