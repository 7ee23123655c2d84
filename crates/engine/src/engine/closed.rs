//! What a rank that has closed its communicator takes part in a round with, to say that it does not.

use std::sync::Arc;
use std::time::Instant;

use eplb_comm::{Carried, CommError, Communicator, Fence, Progress, Ticket};
use eplb_core::{RankId, Transfer};

/// The communicator of a rank that has closed its own: nothing goes through it.
#[derive(Debug)]
pub(super) struct Closed {
    rank: RankId,
}

impl Closed {
    /// Name of the backend.
    pub(super) const NAME: &'static str = "closed";

    /// That of a rank.
    pub(super) fn boxed(rank: RankId) -> Box<dyn Communicator> {
        Box::new(Self { rank })
    }

    fn error(&self) -> CommError {
        CommError::Aborted { rank: self.rank, cause: "this rank is quiesced".into() }
    }
}

impl Communicator for Closed {
    fn backend(&self) -> &'static str {
        Self::NAME
    }

    fn rank(&self) -> RankId {
        self.rank
    }

    fn world_size(&self) -> usize {
        1
    }

    fn submit(&mut self, _: &Arc<[Transfer]>, _: Fence, _: Instant) -> Result<Ticket, CommError> {
        Err(self.error())
    }

    fn poll(&mut self, _: Ticket) -> Result<Progress, CommError> {
        Err(self.error())
    }

    fn done(&mut self, _: Ticket) -> Result<Fence, CommError> {
        Err(self.error())
    }

    fn abort(&mut self, _: &str) -> Fence {
        Fence::passed()
    }

    fn carried(&self) -> Carried {
        Carried::default()
    }
}
