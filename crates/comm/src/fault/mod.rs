//! Faults for tests: a seeded wrapper around any communicator or stream.
//!
//! Two kinds. *Weather* ([`Faults::delay`], [`Faults::reorder`], [`Faults::fail`], [`Faults::stall`]) is what a transport
//! may do to a user at any time and keeps the contract of [`crate::Communicator`]: whoever drives it must end in the right
//! bytes or in a named error. *Planted faults* ([`Planted`]) break the contract, silently: they exist so that a check can
//! prove that it catches them, and have no other use. A [`FaultLog`] tells what struck, so that a test whose fault never
//! came can be told from one that passed.

mod communicator;
mod decision;
mod gates;
mod log;
mod stream;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::host::HostMemory;
use crate::random::Random;

pub use communicator::{FaultyCommunicator, Injector};
pub use log::FaultLog;
pub use stream::{FaultyStream, StreamFault};

/// Which waves (or commits) of a communicator (or stream) a fault strikes; they are counted from 0 in order of
/// submission.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Strike {
    /// None.
    #[default]
    Never,
    /// All.
    Always,
    /// This one.
    Wave(u64),
    /// Each with this probability, `0..=1`, by the seed.
    Chance(f64),
}

impl Strike {
    fn hits(self, wave: u64, random: &mut Random) -> bool {
        match self {
            Strike::Never => false,
            Strike::Always => true,
            Strike::Wave(chosen) => chosen == wave,
            Strike::Chance(chance) => random.fraction() < chance,
        }
    }
}

/// What goes wrong around a communicator. The default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Decides everything that is left to chance. Ranks with equal seeds reorder alike, which a transport that pairs sends
    /// and receives needs.
    pub seed: u64,
    /// Waves are reported done this much later than they are.
    pub delay: Option<Range<Duration>>,
    /// A wave is cut into parts that run in random order, and waves are reported done in any order.
    pub reorder: bool,
    /// Waves of which a random part is carried and then a [`crate::CommError::Transfer`] is reported.
    pub fail: Strike,
    /// Waves of which a random part is carried and no end is reported: they run into their deadline.
    pub stall: Strike,
    /// Planted faults.
    pub planted: Vec<(Strike, Planted)>,
}

/// A planted fault, for the test of a check. Each breaks one sentence of the contract without a word.
///
/// `nth` counts the transfers of a wave that end at this rank, modulo their number.
#[derive(Debug, Clone)]
pub enum Planted {
    /// One transfer is left out, and the wave is reported done.
    DropTransfer {
        /// Which.
        nth: usize,
    },
    /// One transfer also lands in another slot of the rank.
    Stray {
        /// Which.
        nth: usize,
        /// The other slot, numbered over all ranks.
        slot: usize,
    },
    /// One tensor of one transfer is not copied, and the place is named as if it were.
    SkipTensor {
        /// Which transfer.
        nth: usize,
        /// Which tensor.
        tensor: usize,
        /// Memory of the rank.
        memory: Arc<HostMemory>,
    },
    /// The thread that copies one transfer panics.
    Panic {
        /// Which transfer.
        nth: usize,
        /// Memory of the rank.
        memory: Arc<HostMemory>,
    },
    /// `after` is ignored: a fence removed on the way in.
    AfterIgnored,
    /// The wave is reported done at once, and its bytes start this much later: a fence removed on the way out.
    DoneEarly {
        /// How much later the bytes start.
        late: Duration,
    },
    /// `submit` waits for the wave before it returns.
    SubmitBlocks,
    /// The deadline is ignored.
    DeadlineIgnored,
    /// A wave that is refused has its first transfer carried all the same.
    PartlyEnqueued,
    /// `poll` of a ticket that does not exist says done.
    TicketsForgiven,
    /// `abort` says that all is quiet and stops nothing. Strikes whatever the wave is.
    AbortIgnored,
    /// `carried` tells a byte too many for each wave struck.
    Miscounted,
    /// Dropping the communicator blocks this long. Strikes whatever the wave is.
    DropBlocks {
        /// How long.
        hold: Duration,
    },
}
