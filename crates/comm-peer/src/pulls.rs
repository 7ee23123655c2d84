//! What carries out the pulls of a rank.

use std::fmt::Debug;

use eplb_comm::{CommError, Fence};
use eplb_core::Transfer;

/// What became of a pull.
#[derive(Debug)]
pub(crate) struct Pulled {
    /// The queue that it is in, below 64.
    pub(crate) queue: usize,
    /// Behind it, if that was asked for.
    pub(crate) behind: Option<Fence>,
}

/// Pulls into one rank's memory: by copy engines, or by a thread of the host's.
pub(crate) trait Pulls: Debug + Send + Sync {
    /// Called once by the thread that looks whether they have ended, before it does.
    fn begin(&self) {}

    /// Enqueues the copies of a transfer to this rank, all of whose places were checked. Returns at once. From then on the copies
    /// depend on nobody. `fenced`: a fence stands behind them.
    fn pull(&self, transfer: &Transfer, fenced: bool) -> Result<Pulled, CommError>;

    /// The order in which the pulls of a wave are best enqueued, as far as their sources allow. They do not depend on each other.
    fn arrange(&self, pulls: Vec<Transfer>) -> Vec<Transfer> {
        pulls
    }

    /// Bytes of a transfer.
    fn bytes(&self, transfer: &Transfer) -> u64;

    /// Fences behind everything enqueued so far in the queues whose bits are set.
    fn fences(&self, queues: u64) -> Result<Vec<Fence>, CommError>;
}
