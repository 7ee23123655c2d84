//! Errors while a communicator is made, and how NCCL's become a communicator's.

use eplb_comm::CommError;
use eplb_comm::store::{GroupError, StoreError};
use eplb_core::RankId;
use eplb_cuda::CudaError;
use nccl_rs::{NcclError, Version};

/// Why a communicator cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NcclCommError {
    /// NCCL is not there or failed.
    #[error(transparent)]
    Nccl(#[from] NcclError),
    /// CUDA failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The ranks did not find each other, or do not fit together.
    #[error("the ranks of the communicator did not come together: {0}")]
    Group(#[from] GroupError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Ranks run different versions of NCCL.
    #[error(
        "{rank} runs NCCL {theirs}, this rank NCCL {ours} ({path}): give all ranks one version, EPLB_NCCL_SO names the library to use"
    )]
    Versions {
        /// The other rank.
        rank: RankId,
        /// Its version.
        theirs: Version,
        /// Ours.
        ours: Version,
        /// Our library.
        path: String,
    },
    /// A thread of our own would launch beside the server's, where NCCL takes launches from one thread.
    #[error(
        "{rank}: NCCL_LAUNCH_ORDER_IMPLICIT is set, so NCCL takes launches on a device from one thread only; let the server launch waves at its \
         steps (Launch::Pump), or unset it"
    )]
    LaunchOrder {
        /// This rank.
        rank: RankId,
    },
    /// A communicator of the server's does not fit.
    #[error("the communicator lent to {rank} cannot carry experts: {reason}")]
    Lent {
        /// This rank.
        rank: RankId,
        /// Why.
        reason: String,
    },
    /// Another rank has another layout, or says what cannot be.
    #[error("{rank} does not fit: {reason}")]
    Peer {
        /// The other rank.
        rank: RankId,
        /// What is wrong.
        reason: String,
    },
    /// A stream or memory failed.
    #[error(transparent)]
    Comm(#[from] CommError),
}

impl NcclCommError {
    /// Whether the ranks did not come in time.
    pub fn is_timeout(&self) -> bool {
        match self {
            NcclCommError::Nccl(NcclError::Timeout { .. })
            | NcclCommError::Group(GroupError::Missing { .. }) => true,
            NcclCommError::Comm(CommError::Timeout { .. }) => true,
            NcclCommError::Store(error) => error.is_timeout(),
            _ => false,
        }
    }
}

/// An error of NCCL as one of a rank's communicator.
pub(crate) fn foreign(error: NcclError, rank: RankId) -> CommError {
    let (call, code) = match &error {
        NcclError::Call { call, code, .. } => ((*call).to_owned(), i64::from(*code)),
        NcclError::Missing { symbol, .. } => ((*symbol).to_owned(), -1),
        _ => ("nccl".to_owned(), -1),
    };
    CommError::Foreign { rank, call, code, detail: error.to_string() }
}

/// An error of the store as one of a rank's communicator.
pub(crate) fn store(error: StoreError, rank: RankId) -> CommError {
    CommError::Foreign { rank, call: "store".into(), code: -1, detail: error.to_string() }
}
