//! Where a test may put something between the parts of a rank.

use std::fmt::Debug;
use std::sync::Arc;

use eplb_comm::fault::FaultyStream;
use eplb_comm::host::{HostMemory, HostStream};
use eplb_comm::{CommError, Communicator, Fence, Stream};
use eplb_core::{Placement, RankId};

use crate::board::Board;

/// A forward pass, as a stream runs it.
pub type Work = Box<dyn FnOnce(&Arc<HostMemory>) -> Result<(), CommError> + Send>;

/// A stream that also runs forward passes.
pub trait ServingStream: Stream {
    /// Enqueues a forward pass.
    fn run(&mut self, work: Work) -> Fence;
}

impl ServingStream for HostStream {
    fn run(&mut self, work: Work) -> Fence {
        HostStream::run(self, work)
    }
}

impl ServingStream for FaultyStream<HostStream> {
    fn run(&mut self, work: Work) -> Fence {
        self.inner_mut().run(work)
    }
}

/// Called as the parts of a rank are put together. The defaults change nothing.
pub trait Hooks: Debug + Send + Sync {
    /// The communicator that a rank gets.
    fn communicator(
        &self,
        rank: RankId,
        memory: &Arc<HostMemory>,
        communicator: Box<dyn Communicator>,
    ) -> Box<dyn Communicator> {
        let _ = (rank, memory);
        communicator
    }

    /// The stream that a rank gets.
    fn stream(&self, rank: RankId, stream: HostStream) -> Box<dyn ServingStream> {
        let _ = rank;
        Box::new(stream)
    }

    /// The board that a rank gets for an exchange.
    fn board(&self, rank: RankId, board: Arc<dyn Board>) -> Arc<dyn Board> {
        let _ = rank;
        board
    }

    /// The placement that a rank believes was planned.
    fn placement(&self, rank: RankId, placement: Arc<Placement>) -> Arc<Placement> {
        let _ = rank;
        placement
    }
}

/// Changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {}
