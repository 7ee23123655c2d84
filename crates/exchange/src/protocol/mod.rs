//! How ranks run a plan together: a state machine per rank, with no IO, no threads and no clock of its own.
//!
//! [`Exchange`] takes what happened (a step begins, a transfer is done, a note came) and gives [`Action`]s. What makes it
//! safe, wave by wave:
//!
//! 1. No drain before all ranks hold the same plan (hash).
//! 2. No byte lands in a drained slot before its owner has finished, on its device, every step that any rank may have run
//!    with a map that names the slot; the same for a slot that an earlier commit emptied.
//! 3. No commit before every rank is prepared: its bytes are in and its reads of others are over, so nothing reads a slot
//!    that the commit overwrites.
//! 4. A commit that overwrites slots in service happens before one agreed step `N` on all ranks. A rank acknowledges `N` only
//!    before it begins it, and at `N` it obeys the record; a rank that does not know the decision tries to abort, and
//!    the compare-and-set says who was first.
//! 5. A commit that fails on a device is told to all. From then on no rank that knows of it begins a step, and in the end no
//!    map names a slot that it was to write.
//! 6. No transfer of a wave starts before every rank has completed the commit of the wave before.

mod peers;
mod rank;
mod words;

pub use rank::Exchange;
pub use words::{Action, Cause, Deadlines, Note, Outcome, Phase, Record, Verdict};
