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
//! 6. A wave is decided only after every rank has confirmed the commit of the wave before, and its transfers start only then, but
//!    for those that the plan calls early ([`Part::Early`](crate::Part)). They read no slot that the wave before writes, and land
//!    in no slot that it reads or writes, nor in the half of staging that it uses. A rank hands them over behind its own transfers
//!    of the wave before; by then every rank has confirmed the commit before that one, whose staging they use again.
//! 7. What an early part drains stays out of service until its own wave is committed or aborted; 2 holds for it too.
//! 8. A wave given up because a rank was at its step before the others is told apart from a failure ([`Note::TooLate`]), and ranks that
//!    have heard that all others stopped weigh the same notes: all or none of them try again.
//! 9. All ranks hand over the parts of all waves in one order: `.., n late, n + 1 early, n + 1 late, ..`.

mod peers;
mod rank;
mod words;

pub use rank::Exchange;
pub use words::{Action, Cause, Deadlines, Note, Outcome, Phase, Record, Touched, Verdict};
