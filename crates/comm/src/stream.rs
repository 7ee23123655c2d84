//! An ordered queue of work on a rank's memory.

use std::fmt::Debug;

use eplb_core::SlotCommit;

use crate::error::CommError;
use crate::fence::Fence;

/// The queue on which a rank's forward pass runs, as far as the engine needs it: a CUDA stream, or its host twin.
///
/// Ordering: operations of one stream run in the order enqueued. No method blocks.
pub trait Stream: Debug + Send {
    /// Enqueues the byte copies of a commit (`Fill::Staged`, `Fill::FromSlot`) in the order given, and returns the
    /// fence behind the last. Fills that only change the map enqueue nothing.
    ///
    /// # Errors
    /// A slot or staging offset that this rank does not have. A copy that fails later fails the fence.
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError>;

    /// A fence behind everything enqueued so far.
    ///
    /// # Errors
    /// The queue is gone.
    fn record(&mut self) -> Result<Fence, CommError>;

    /// Work enqueued from now on runs after `fence` is passed; the host does not wait.
    ///
    /// # Errors
    /// The queue is gone.
    fn wait(&mut self, fence: &Fence) -> Result<(), CommError>;
}

impl<S: Stream + ?Sized> Stream for Box<S> {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        (**self).commit(commits)
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        (**self).record()
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        (**self).wait(fence)
    }
}
