//! Faults around a stream.

use eplb_core::SlotCommit;

use super::log::FaultLog;
use super::{Random, Strike};
use crate::error::CommError;
use crate::fence::Fence;
use crate::stream::Stream;

/// A planted fault of a stream, for the test of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFault {
    /// A commit copies nothing, and its fence passes as if it had.
    CommitSkipped,
    /// The fence of a commit is passed at once, whatever the stream does.
    CommitFenceEarly,
    /// A commit leaves out its last copy.
    LastCopySkipped,
    /// A `wait` is left out: a fence removed.
    WaitSkipped,
}

/// A stream with a planted fault. [`Strike::Wave`] counts its commits from 0, or its waits for
/// [`StreamFault::WaitSkipped`].
#[derive(Debug)]
pub struct FaultyStream<S> {
    inner: S,
    fault: StreamFault,
    strike: Strike,
    random: Random,
    log: FaultLog,
    calls: u64,
}

impl<S: Stream> FaultyStream<S> {
    /// Wraps a stream: `fault` strikes the commits (or waits, for [`StreamFault::WaitSkipped`]) that `strike` says.
    pub fn new(inner: S, fault: StreamFault, strike: Strike, seed: u64) -> Self {
        Self { inner, fault, strike, random: Random::new(seed), log: FaultLog::default(), calls: 0 }
    }

    /// What struck; the handle stays valid when the stream is moved away.
    pub fn log(&self) -> FaultLog {
        self.log.clone()
    }

    /// The stream inside.
    pub fn inner_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    fn hits(&mut self, what: &str) -> bool {
        let call = self.calls;
        self.calls += 1;
        let hit = self.strike.hits(call, &mut self.random);
        if hit {
            self.log.add(call, what);
        }
        hit
    }
}

impl<S: Stream> Stream for FaultyStream<S> {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        if self.fault == StreamFault::WaitSkipped || !self.hits("commit") {
            return self.inner.commit(commits);
        }
        match self.fault {
            StreamFault::CommitSkipped => self.inner.record(),
            StreamFault::CommitFenceEarly => self.inner.commit(commits).map(|_| Fence::passed()),
            StreamFault::LastCopySkipped => {
                let last = commits.iter().rposition(|commit| commit.fill.overwrites());
                let kept: Vec<_> =
                    commits.iter().enumerate().filter(|(at, _)| Some(*at) != last).map(|(_, c)| *c).collect();
                self.inner.commit(&kept)
            }
            StreamFault::WaitSkipped => self.inner.commit(commits),
        }
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        self.inner.record()
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        if self.fault == StreamFault::WaitSkipped && self.hits("wait") {
            return Ok(());
        }
        self.inner.wait(fence)
    }
}
