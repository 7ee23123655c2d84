//! What carries out the pulls of a rank.

use std::fmt::Debug;

use eplb_comm::{CommError, Fence};
use eplb_core::Transfer;

/// Pulls into one rank's memory: by copy engines, or by a thread of the host's.
pub(crate) trait Pulls: Debug + Send + Sync {
    /// Enqueues the copies of a transfer to this rank, all of whose places were checked. Returns at once. From then on the copies
    /// depend on nobody.
    /// Returns the number of the queue that they are in, below 64.
    fn pull(&self, transfer: &Transfer) -> Result<usize, CommError>;

    /// The order in which the pulls of a wave are best enqueued, as far as their sources allow. They do not depend on each other.
    fn arrange(&self, pulls: Vec<Transfer>) -> Vec<Transfer> {
        pulls
    }

    /// Bytes of a transfer.
    fn bytes(&self, transfer: &Transfer) -> u64;

    /// Fences behind everything enqueued so far in the queues whose bits are set.
    fn fences(&self, queues: u64) -> Result<Vec<Fence>, CommError>;
}
