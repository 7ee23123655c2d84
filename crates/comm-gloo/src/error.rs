//! Why there is no communicator.

use std::time::Duration;

use eplb_comm::CommError;
use eplb_comm::store::StoreError;
use eplb_core::RankId;
use gloo_sys::LoadError;

/// Why ranks could not be connected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GlooError {
    /// The library is not there.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The store failed.
    #[error("{rank}: connecting ranks: {source}")]
    Store {
        /// This rank.
        rank: RankId,
        /// What the store said.
        source: StoreError,
    },
    /// Ranks do not fit together; connecting again does not help.
    #[error("{rank} does not fit {other}: {reason}")]
    Mismatch {
        /// This rank.
        rank: RankId,
        /// The other.
        other: RankId,
        /// What differs, and what to set.
        reason: String,
    },
    /// Options that cannot be.
    #[error("{rank}: {what} cannot be {found}: {reason}")]
    Options {
        /// This rank.
        rank: RankId,
        /// The option.
        what: &'static str,
        /// Its value.
        found: String,
        /// What it must be.
        reason: String,
    },
    /// No attempt connected all ranks before the deadline.
    #[error(
        "{rank}: not connected with all {world_size} ranks after {waited:?} (generation {generation}: {cause}); are all ranks \
         running, and can they reach each other by the address or interface that each one chose?"
    )]
    NotConnected {
        /// This rank.
        rank: RankId,
        /// Number of ranks wanted.
        world_size: usize,
        /// Time since the first attempt.
        waited: Duration,
        /// The last attempt.
        generation: u64,
        /// What was in the way of the last attempt.
        cause: String,
    },
    /// Plain sends and receives, which nothing is built on, failed.
    #[error("{rank}: plain sends and receives beside the backend: {detail}")]
    Plain {
        /// This rank.
        rank: RankId,
        /// What Gloo said.
        detail: String,
    },
    /// Memory or threads are missing.
    #[error(transparent)]
    Comm(#[from] CommError),
}
