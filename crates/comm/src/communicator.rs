//! The one trait that every transport implements.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::{RankId, Transfer};

use crate::bulletin::Bulletin;
use crate::error::CommError;
use crate::fence::Fence;
use crate::timeline::Timeline;

/// Names a submitted wave; numbers rise with every submission of a communicator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// How far a submitted wave is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Bytes are still under way.
    Pending,
    /// This rank's bytes are in and its reads of others are over.
    Done,
}

/// What a communicator carried since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// Bytes that came from other ranks.
    pub link_bytes: u64,
    /// Bytes copied inside the rank.
    pub local_bytes: u64,
    /// Transfers that were completed.
    pub transfers: u64,
}

/// Launches the waves of a communicator from a server's steps: [`Communicator::launcher`].
pub trait Launcher: Debug + Send + Sync {
    /// To be called before the server enqueues the work of step `id`, on the thread that does. Ids rise strictly and are the same
    /// on all ranks, which are at most one step apart; calls may be left out while nothing is submitted. Waves that are due are enqueued
    /// before the same step on every rank. Returns the time that it took.
    fn step(&self, id: u64) -> Duration;
}

/// Carries out the transfers of waves between the memories of ranks.
///
/// One object per rank, driven by one thread (the progress thread). `submit` enqueues and returns at once; nothing
/// blocks. The caller keeps the order of a wave: it submits only when every destination may be written and every
/// source holds its expert, and overwrites a source only after all readers have reported.
///
/// Ordering: what was written to a source before its owner's rank learned that the wave may start happens-before
/// the read of the transfer; the bytes of a transfer happen-before a [`Communicator::poll`] that returns
/// [`Progress::Done`], and before the fence of [`Communicator::done`] is passed.
pub trait Communicator: Debug + Send {
    /// Name of the backend: `"local"`, `"nccl"`, ..
    fn backend(&self) -> &'static str;

    /// This rank.
    fn rank(&self) -> RankId;

    /// Number of ranks that it reaches, itself included.
    fn world_size(&self) -> usize;

    /// Enqueues this rank's part of a wave's transfers, given whole and in canonical order on every rank, to run
    /// after `after`. Returns at once.
    ///
    /// # Errors
    /// A transfer that names a rank, slot or staging offset that does not exist (nothing is enqueued then), or a
    /// communicator that was aborted.
    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError>;

    /// Whether every place that a wave names exists, and none is in another's way, for one that hands parts of it to several backends.
    /// Those that cannot be such a part leave it to `submit`.
    ///
    /// # Errors
    /// As for [`Communicator::submit`].
    fn check(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        let _ = transfers;
        Ok(())
    }

    /// How far a wave is. Never blocks. A wave stays known until the first `submit` after a poll reported it done.
    ///
    /// # Errors
    /// A transfer failed, the deadline passed, the communicator was aborted, or the ticket is unknown. The error is
    /// final for the ticket; the caller is expected to `abort`.
    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError>;

    /// A fence behind the bytes of a wave, for a stream to wait on.
    ///
    /// # Errors
    /// The ticket is unknown.
    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError>;

    /// Stops: nothing further is started, open tickets fail with [`CommError::Aborted`]. The fence is passed when no
    /// copy that was started can touch memory any more. Later calls to `submit` fail.
    fn abort(&mut self, cause: &str) -> Fence;

    /// What was carried so far.
    fn carried(&self) -> Carried;

    /// The same by the names of the backends that carried it, where there are several.
    fn carried_by(&self) -> Vec<(&'static str, Carried)> {
        vec![(self.backend(), self.carried())]
    }

    /// Pinned host memory of its own, bytes: where experts pass between a device and the network.
    fn pinned_bytes(&self) -> usize {
        0
    }

    /// Where its ranks can say something to each other at once, if they share memory; else they have only the store.
    fn bulletin(&self) -> Option<Arc<dyn Bulletin>> {
        None
    }

    /// What launches its waves, if the server's steps must do so; else it launches them itself.
    fn launcher(&self) -> Option<Arc<dyn Launcher>> {
        None
    }

    /// Tells a recorder from now on what happens when. Backends that have nothing to tell ignore it.
    fn observe(&mut self, timeline: &Arc<Timeline>) {
        let _ = timeline;
    }
}

impl<C: Communicator + ?Sized> Communicator for Box<C> {
    fn backend(&self) -> &'static str {
        (**self).backend()
    }

    fn rank(&self) -> RankId {
        (**self).rank()
    }

    fn world_size(&self) -> usize {
        (**self).world_size()
    }

    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        (**self).submit(transfers, after, deadline)
    }

    fn check(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        (**self).check(transfers)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        (**self).poll(ticket)
    }

    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError> {
        (**self).done(ticket)
    }

    fn abort(&mut self, cause: &str) -> Fence {
        (**self).abort(cause)
    }

    fn carried(&self) -> Carried {
        (**self).carried()
    }

    fn carried_by(&self) -> Vec<(&'static str, Carried)> {
        (**self).carried_by()
    }

    fn pinned_bytes(&self) -> usize {
        (**self).pinned_bytes()
    }

    fn bulletin(&self) -> Option<Arc<dyn Bulletin>> {
        (**self).bulletin()
    }

    fn launcher(&self) -> Option<Arc<dyn Launcher>> {
        (**self).launcher()
    }

    fn observe(&mut self, timeline: &Arc<Timeline>) {
        (**self).observe(timeline);
    }
}
