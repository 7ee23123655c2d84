//! The collectives, and why one fails.

use std::fmt;
use std::time::Duration;

use eplb_core::RankId;

use crate::store::error::StoreError;
use crate::store::identity::Ranks;

/// Which collective a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collective {
    /// [`Group::barrier`](super::Group::barrier).
    Barrier,
    /// [`Group::broadcast`](super::Group::broadcast).
    Broadcast,
    /// [`Group::all_gather`](super::Group::all_gather).
    AllGather,
    /// [`Group::agree_hash`](super::Group::agree_hash).
    AgreeHash,
}

impl Collective {
    pub(super) fn of(byte: u8) -> Option<Self> {
        let all = [Self::Barrier, Self::Broadcast, Self::AllGather, Self::AgreeHash];
        all.into_iter().find(|collective| *collective as u8 == byte)
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Barrier => "barrier",
            Self::Broadcast => "broadcast",
            Self::AllGather => "all-gather",
            Self::AgreeHash => "hash agreement",
        })
    }
}

/// Why a collective failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// Some members did not enter the call by the deadline.
    #[error(
        "{collective} {label:?} ({sequence} of epoch {epoch}): {} did not come within {waited:?}; they are late, \
         stopped or dead",
        Ranks(ranks)
    )]
    Missing {
        /// The call.
        collective: Collective,
        /// Its label.
        label: String,
        /// The epoch.
        epoch: u64,
        /// Its number in the epoch.
        sequence: u64,
        /// Who is missing, ascending.
        ranks: Vec<RankId>,
        /// Time from the call to giving up.
        waited: Duration,
    },
    /// The members' hashes differ; the call is complete, and every member sees this error.
    #[error("ranks disagree on {label:?} in epoch {epoch}: {}; nothing was done with it", Values(values))]
    Disagree {
        /// What was compared.
        label: String,
        /// The epoch.
        epoch: u64,
        /// Each hash with the ranks that have it, by lowest rank.
        values: Vec<(u64, Vec<RankId>)>,
    },
    /// A member is at another call: the program does not run the same way on all ranks.
    #[error(
        "{rank} is in {found} at {sequence} of epoch {epoch}, where this rank is in {expected}; do all ranks run the \
         same version with the same options?"
    )]
    Mismatch {
        /// The other rank.
        rank: RankId,
        /// The call it is in.
        found: String,
        /// The call this rank is in.
        expected: String,
        /// The epoch.
        epoch: u64,
        /// Number of the call in the epoch.
        sequence: u64,
    },
    /// A collective of this group failed before; its members are no longer in step.
    #[error("the group of epoch {epoch} is broken ({cause}); form a new epoch")]
    Broken {
        /// The epoch.
        epoch: u64,
        /// The first failure.
        cause: String,
    },
    /// A member has told that it does not go on.
    #[error("{rank} gave up in epoch {epoch}: {reason}")]
    GaveUp {
        /// The member.
        rank: RankId,
        /// The epoch.
        epoch: u64,
        /// Why, in its words.
        reason: String,
    },
    /// All members came to a barrier that all or none pass, or may have, but one had left it before it saw that.
    #[error("barrier {label:?} of epoch {epoch} was called off by {rank}: {reason}")]
    CalledOff {
        /// The member.
        rank: RankId,
        /// The barrier's label.
        label: String,
        /// The epoch.
        epoch: u64,
        /// Why, in its words.
        reason: String,
    },
    /// The group was made with a rank that is not a member.
    #[error("{rank} is not a member of epoch {epoch} ({})", Ranks(members))]
    NotMember {
        /// The rank.
        rank: RankId,
        /// The epoch.
        epoch: u64,
        /// Its members.
        members: Vec<RankId>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl GroupError {
    /// Whether the call was left because this rank was told not to wait.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_interrupted())
    }
}

struct Values<'a>(&'a [(u64, Vec<RankId>)]);

impl fmt::Display for Values<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (hash, ranks)) in self.0.iter().enumerate() {
            write!(f, "{}{hash:#018x} on {}", if i > 0 { ", " } else { "" }, Ranks(ranks))?;
        }
        Ok(())
    }
}
