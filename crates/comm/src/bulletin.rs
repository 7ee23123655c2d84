//! What ranks of one host say to each other without a network.

use std::fmt::Debug;

use eplb_core::RankId;

/// Short messages from each rank to all others, in memory that they share: a microsecond from one to the other. It says what ranks could say
/// through a store as well; nothing of it lasts, and nothing is decided by it.
///
/// Messages of one rank arrive in the order posted. What a rank wrote to memory before it posted one happens-before what another does after
/// it has read it. Neither call waits.
pub trait Bulletin: Debug + Send + Sync {
    /// Says something to all others.
    ///
    /// # Errors
    /// It is longer than a message can be.
    fn post(&self, message: &[u8]) -> Result<(), BulletinError>;

    /// What the others have said since the last call.
    ///
    /// # Errors
    /// One of them has said more meanwhile than is kept.
    fn read(&self) -> Result<Vec<(RankId, Vec<u8>)>, BulletinError>;
}

/// Why something cannot be said or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BulletinError {
    /// A message that is too long.
    #[error("a message of {bytes} bytes is longer than the {most} that ranks of one host say to each other")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The longest.
        most: usize,
    },
    /// Messages that were overwritten before they were read.
    #[error("messages of {from} were not read in time; is this rank overloaded?")]
    Missed {
        /// Whose.
        from: RankId,
    },
    /// What stands there is no message.
    #[error("what {from} has said is no message; do all ranks run the same version?")]
    Malformed {
        /// Whose.
        from: RankId,
    },
}
