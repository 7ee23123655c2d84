//! A cluster that is simulated: the state machines of all ranks, run through orders of events that a real one meets once in
//! a year.
//!
//! Every rank runs the same [`eplb_exchange::Exchange`] as a real one. What surrounds it is made up: a clock that jumps
//! from event to event, a device that finishes steps and commits in order but in its own time, a transport whose
//! copies take a while and can be caught half done, a board whose notes arrive late, and one [`Fault`] per run. All
//! choices follow from the seed of a [`Scenario`], so that a run that went wrong can be had again.
//!
//! What must hold, in every run (see [`Violation`]):
//!
//! 1. While a step runs on a rank, every slot of it that *any* rank's map of that step names holds that expert's bytes,
//!    from the time on when both ranks have begun the step to its end.
//! 2. In every map with which a step runs, every expert has a slot.
//! 3. Nothing is written while it is read.
//! 4. In the end, ranks agree on the number of waves committed and on the map; slots of ranks that did not answer may
//!    be left empty by some. Every slot that a map names holds that expert's bytes.
//! 5. Every rank that lives reaches an end, and whoever gives up says why.
//! 6. When a commit fails on a device, every rank says so, no map names a slot that it was to write, and no step runs on a rank
//!    that knows of it.
//!
//! Time and randomness are simulated, so there is nothing that a busy machine could disturb.

mod board;
mod check;
mod device;
mod host;
mod memory;
mod plant;
mod scenario;
mod transport;
mod world;

pub use check::Violation;
pub use plant::Plant;
pub use scenario::{Fault, FaultKind, Scenario, Transport};
pub use world::{Failure, Tally, run};
