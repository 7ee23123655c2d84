//! Errors of communicators, streams and memory.

use std::time::Duration;

use eplb_core::{CoreError, ExpertId, RankId};

use crate::memory::Place;

/// Why a transfer, a fence or a memory access failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CommError {
    /// Work did not end before its deadline.
    #[error("{rank}: {what} not done after {waited:?}; raise the deadline if the link is only slow")]
    Timeout {
        /// The rank that waited.
        rank: RankId,
        /// What it waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// The communicator was aborted; make a new one to go on.
    #[error("{rank}: the communicator was aborted ({cause})")]
    Aborted {
        /// The rank.
        rank: RankId,
        /// Who aborted it and why.
        cause: String,
    },
    /// A slot was read while it was written, or written while it was in use: the order of a wave was broken.
    #[error(
        "{rank}: {place} cannot be {wanted}: {found}; the wave's order was broken and nothing was copied"
    )]
    Conflict {
        /// Owner of the memory.
        rank: RankId,
        /// The place.
        place: Place,
        /// The access that was refused: "read" or "written".
        wanted: &'static str,
        /// The access that was in the way.
        found: String,
    },
    /// A place does not hold the expert that was to be read from it.
    #[error(
        "{rank}: {place} holds {found}, not {expected}: it was overwritten or never written before it was read"
    )]
    WrongContent {
        /// Owner of the place.
        rank: RankId,
        /// The place.
        place: Place,
        /// What it holds, in words.
        found: String,
        /// What the reader expected.
        expected: ExpertId,
    },
    /// A place outside the memory that a rank registered.
    #[error("{rank} has no {place}: {reason}")]
    NoSuchPlace {
        /// The rank.
        rank: RankId,
        /// The place asked for.
        place: Place,
        /// What it has.
        reason: String,
    },
    /// A peer's part failed.
    #[error("{rank}: transfer from {peer} failed: {cause}")]
    Transfer {
        /// The rank that noticed.
        rank: RankId,
        /// The other side.
        peer: RankId,
        /// What happened.
        cause: String,
    },
    /// A ticket that this communicator did not issue, or has already closed.
    #[error("{rank}: ticket {ticket} is unknown: it was never issued here, or its wave is over")]
    UnknownTicket {
        /// The rank.
        rank: RankId,
        /// Number of the ticket.
        ticket: u64,
    },
    /// A copy or a piece of work on a stream panicked. Its thread goes on; what it wrote counts as unknown.
    #[error("{rank}: {what} panicked: {detail}")]
    Panicked {
        /// The rank whose work it was.
        rank: RankId,
        /// The work.
        what: String,
        /// The panic's message.
        detail: String,
    },
    /// The operating system refused a thread.
    #[error("no thread for {what}: {detail}; raise the limit on threads or ask for fewer copy threads")]
    NoThread {
        /// What the thread was for.
        what: String,
        /// The system's answer.
        detail: String,
    },
    /// Memory for slots or staging could not be allocated.
    #[error("{rank}: no memory for {what} ({bytes} bytes); lower the staging budget or the number of slots")]
    NoMemory {
        /// The rank.
        rank: RankId,
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        bytes: usize,
    },
    /// A call into an accelerator's library failed.
    #[error("{rank}: {call} failed with code {code}: {detail}")]
    Foreign {
        /// The rank that called.
        rank: RankId,
        /// The function, as its library names it.
        call: String,
        /// What it returned.
        code: i64,
        /// The library's own words, and what to do about it where that is known.
        detail: String,
    },
    /// Ranks or layouts that do not fit together.
    #[error(transparent)]
    Core(#[from] CoreError),
}
