//! Why ranks cannot reach each other's memory.

use eplb_comm::CommError;
use eplb_comm::host::SegmentError;
use eplb_comm::store::StoreError;
use eplb_core::RankId;

/// Why there is no communicator between the processes of a group.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// A rank's memory cannot be opened by other processes.
    #[error("the memory of {rank} cannot be opened by other processes: {reason}")]
    NotShareable {
        /// The rank.
        rank: RankId,
        /// Why.
        reason: String,
    },
    /// A rank could not open another's memory.
    #[error("{rank} cannot open the memory of {owner}: {reason}")]
    NotOpened {
        /// Who tried.
        rank: RankId,
        /// Whose memory it is.
        owner: RankId,
        /// Why.
        reason: String,
    },
    /// Another rank found that there can be no communicator.
    #[error("{reason}")]
    Elsewhere {
        /// The rank.
        rank: RankId,
        /// Its words.
        reason: String,
    },
    /// Ranks of different hosts.
    #[error("{rank} is on host {theirs}, {this} on {ours}: memory is shared inside a host alone")]
    OtherHost {
        /// The other rank.
        rank: RankId,
        /// Its host.
        theirs: String,
        /// This rank.
        this: RankId,
        /// Its host.
        ours: String,
    },
    /// Ranks whose tensors differ, or that were started with other options.
    #[error("{rank} has {what} {theirs}, {this} has {ours}: start all ranks alike")]
    Differs {
        /// The other rank.
        rank: RankId,
        /// What differs.
        what: &'static str,
        /// What it has.
        theirs: String,
        /// This rank.
        this: RankId,
        /// What this rank has.
        ours: String,
    },
    /// A message that is none of this protocol.
    #[error("{rank}: {what} cannot be read: something else writes there, or another version of this program")]
    Unreadable {
        /// Who wrote it.
        rank: RankId,
        /// What it was.
        what: &'static str,
    },
    /// The system refused a socket or a page.
    #[error("{rank}: {what} was refused: {detail}")]
    Refused {
        /// The rank.
        rank: RankId,
        /// What was asked for.
        what: String,
        /// The system's answer.
        detail: String,
    },
    /// The store failed, or a rank did not come.
    #[error("{rank}: {source}")]
    Store {
        /// The rank.
        rank: RankId,
        /// What happened.
        source: StoreError,
    },
    /// Memory, threads or layouts.
    #[error(transparent)]
    Comm(#[from] CommError),
}

impl PeerError {
    /// The rank that it is about, or that noticed it.
    pub(super) fn rank(&self) -> RankId {
        match self {
            Self::NotShareable { rank, .. }
            | Self::NotOpened { rank, .. }
            | Self::Elsewhere { rank, .. }
            | Self::OtherHost { rank, .. }
            | Self::Differs { rank, .. }
            | Self::Unreadable { rank, .. }
            | Self::Refused { rank, .. }
            | Self::Store { rank, .. } => *rank,
            Self::Comm(_) => RankId(0),
        }
    }

    /// That this rank cannot open another's memory.
    pub(super) fn not_opened(rank: RankId, owner: RankId, reason: impl ToString) -> Self {
        Self::NotOpened { rank, owner, reason: reason.to_string() }
    }

    /// That a page of this rank was refused.
    pub(super) fn page(rank: RankId, error: &SegmentError) -> Self {
        Self::Refused { rank, what: "the page of its word".into(), detail: error.to_string() }
    }
}
