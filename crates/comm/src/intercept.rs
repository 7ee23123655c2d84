//! Something that happens around the calls of a communicator.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use eplb_core::{RankId, Transfer};

use crate::bulletin::Bulletin;
use crate::communicator::{Carried, Communicator, Launcher, Progress, Ticket};
use crate::error::CommError;
use crate::fence::Fence;
use crate::timeline::Timeline;

/// What happens around the calls that carry waves. A method that is not written passes the call on.
pub trait Intercept: Debug + Send {
    /// In place of [`Communicator::submit`].
    ///
    /// # Errors
    /// As [`Communicator::submit`].
    fn submit(
        &mut self,
        inner: &mut dyn Communicator,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        let ticket = inner.submit(transfers, after, deadline);
        self.submitted(transfers);
        ticket
    }

    /// After a wave was handed on, taken or refused.
    fn submitted(&mut self, transfers: &[Transfer]) {
        let _ = transfers;
    }

    /// In place of [`Communicator::poll`].
    ///
    /// # Errors
    /// As [`Communicator::poll`].
    fn poll(&mut self, inner: &mut dyn Communicator, ticket: Ticket) -> Result<Progress, CommError> {
        inner.poll(ticket)
    }

    /// In place of [`Communicator::done`].
    ///
    /// # Errors
    /// As [`Communicator::done`].
    fn done(&mut self, inner: &mut dyn Communicator, ticket: Ticket) -> Result<Fence, CommError> {
        inner.done(ticket)
    }

    /// In place of [`Communicator::abort`].
    fn abort(&mut self, inner: &mut dyn Communicator, cause: &str) -> Fence {
        inner.abort(cause)
    }

    /// In place of [`Communicator::carried`].
    fn carried(&self, inner: &dyn Communicator) -> Carried {
        inner.carried()
    }
}

/// A communicator around whose calls something happens.
#[derive(Debug)]
pub struct Intercepted<I> {
    inner: Box<dyn Communicator>,
    by: I,
}

impl<I: Intercept> Intercepted<I> {
    /// Puts `by` around a communicator.
    pub fn new(inner: Box<dyn Communicator>, by: I) -> Self {
        Self { inner, by }
    }

    /// What happens around the calls.
    pub fn by(&self) -> &I {
        &self.by
    }
}

impl<I: Intercept> Communicator for Intercepted<I> {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn rank(&self) -> RankId {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        self.by.submit(&mut self.inner, transfers, after, deadline)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        self.by.poll(&mut self.inner, ticket)
    }

    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError> {
        self.by.done(&mut self.inner, ticket)
    }

    fn abort(&mut self, cause: &str) -> Fence {
        self.by.abort(&mut self.inner, cause)
    }

    fn carried(&self) -> Carried {
        self.by.carried(&self.inner)
    }

    fn check(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        self.inner.check(transfers)
    }

    fn bulletin(&self) -> Option<Arc<dyn Bulletin>> {
        self.inner.bulletin()
    }

    fn launcher(&self) -> Option<Arc<dyn Launcher>> {
        self.inner.launcher()
    }

    fn pinned_bytes(&self) -> usize {
        self.inner.pinned_bytes()
    }

    fn observe(&mut self, timeline: &Arc<Timeline>) {
        self.inner.observe(timeline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostMemory;
    use crate::local::LocalGroup;
    use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, SlotId, TensorLayout};

    #[derive(Debug)]
    struct Refuses;

    impl Intercept for Refuses {
        fn submit(
            &mut self,
            inner: &mut dyn Communicator,
            _: &Arc<[Transfer]>,
            _: Fence,
            _: Instant,
        ) -> Result<Ticket, CommError> {
            Err(CommError::Aborted { rank: inner.rank(), cause: "refused".into() })
        }
    }

    #[derive(Debug)]
    struct Nothing;

    impl Intercept for Nothing {}

    #[test]
    fn what_is_not_written_is_passed_on() {
        let layout = ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 8)]]).unwrap();
        let alone = || {
            let memory = HostMemory::new(RankId(0), Arc::new(layout.clone()), 0..1, 0).unwrap();
            Box::new(LocalGroup::new(vec![memory], 1).unwrap().remove(0))
        };
        let nothing: Arc<[Transfer]> = Arc::new([]);
        let mut through = Intercepted::new(alone(), Nothing);
        assert_eq!((through.backend(), through.rank(), through.world_size()), ("local", RankId(0), 1));
        let ticket = through.submit(&nothing, Fence::passed(), Instant::now()).unwrap();
        assert_eq!(through.poll(ticket), Ok(Progress::Done));
        assert_eq!(through.carried(), Carried::default());
        assert_eq!(through.abort("over").poll(), Ok(true));
        assert!(through.submit(&nothing, Fence::passed(), Instant::now()).is_err(), "it was aborted inside");
        let nowhere = Transfer {
            layer: LayerId(0),
            expert: ExpertId(0),
            source: RankId(0),
            source_slot: SlotId(0),
            dest: RankId(0),
            dest_slot: SlotId(7),
            landing: Landing::InPlace,
        };
        let refused = through.check(&[nowhere]);
        assert!(matches!(refused, Err(CommError::NoSuchPlace { .. })), "{refused:?}");
        let mut refused = Intercepted::new(alone(), Refuses);
        assert!(refused.submit(&nothing, Fence::passed(), Instant::now()).is_err());
        assert!(refused.poll(Ticket(0)).is_err(), "nothing was submitted");
    }
}
