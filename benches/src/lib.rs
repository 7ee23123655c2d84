//! What the measurements of eplb share: the yardstick that planners are timed against, and the shapes and loads that
//! they plan for.
#![forbid(unsafe_code)]

pub mod hill_climb;
pub mod sequences;
pub mod shapes;
pub mod yardstick;
