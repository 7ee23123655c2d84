//! Why ranks did not get into the next epoch.

use std::time::Duration;

use eplb_comm::store::StoreError;
use eplb_core::{CoreError, ExpertId, LayerId, RankId};

/// What went wrong between two epochs. Nothing has moved and nothing is lost when one of these is returned: a member may
/// call reform again.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// A change that contradicts the ranks there are.
    #[error("the change of members cannot be: {0}")]
    Change(String),
    /// The experts of the ranks that leave do not fit on those that stay.
    #[error(
        "{layer}: {experts} experts do not fit into the {slots} slots of the ranks that stay; let ranks join before others leave"
    )]
    NoRoom {
        /// The first layer that has too little room.
        layer: LayerId,
        /// Experts.
        experts: usize,
        /// Slots of the ranks that stay.
        slots: usize,
    },
    /// The epoch formed without a rank that was to join.
    #[error(
        "{rank} has not joined after {waited:?}: no epoch lists it (latest: {latest:?}); start it before the others \
         reform, or reform again"
    )]
    JoinTimeout {
        /// The rank that it was to be.
        rank: RankId,
        /// How long it waited.
        waited: Duration,
        /// Number of the latest epoch seen.
        latest: Option<u64>,
    },
    /// The members do not take a rank that was to join.
    #[error("{rank} cannot join: {reason}; start it with what the others have")]
    JoinRefused {
        /// The rank that it was to be.
        rank: RankId,
        /// What differs.
        reason: String,
    },
    /// Another process wants to join as the same rank.
    #[error("another process was started to join as {rank}; only the later one may")]
    Superseded {
        /// The rank.
        rank: RankId,
    },
    /// The others have gone on without this rank.
    #[error(
        "{rank} of epoch {old} does not belong to epoch {epoch}: it was held for dead or came too late; start it anew to join"
    )]
    Excluded {
        /// This rank, as it was numbered.
        rank: RankId,
        /// The epoch that it belonged to.
        old: u64,
        /// The epoch that it does not belong to.
        epoch: u64,
    },
    /// Members want different changes.
    #[error(
        "{rank} and {other} want to reform in different ways: give all members the same topology and mapping"
    )]
    Differs {
        /// This rank.
        rank: RankId,
        /// Another member.
        other: RankId,
    },
    /// No epoch formed in time.
    #[error("{rank}: no epoch formed in {waited:?}: waiting for {waiting_for:?}; do all members reform?")]
    NotFormed {
        /// This rank.
        rank: RankId,
        /// For how long.
        waited: Duration,
        /// Members of the old epoch that were waited for.
        waiting_for: Vec<RankId>,
    },
    /// An expert that nobody holds could not be fetched.
    #[error("{layer} {expert} is held by nobody and {rank} could not fetch it: {detail}")]
    NotFetched {
        /// The rank that was to fetch it.
        rank: RankId,
        /// Layer of the expert.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
        /// What its source said.
        detail: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Shapes that do not fit.
    #[error(transparent)]
    Core(#[from] CoreError),
}
