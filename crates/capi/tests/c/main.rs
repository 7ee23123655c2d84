//! What C makes of the interface.

mod compile;
mod programs;
mod prototypes;
mod sweep;
