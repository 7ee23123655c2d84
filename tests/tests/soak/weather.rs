//! What a transport may do to a rank at any time: waves that are reported late, and now and then one that fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::host::HostMemory;
use eplb_comm::{Carried, CommError, Communicator, Fence, Progress, Ticket};
use eplb_core::{RankId, Transfer};
use eplb_engine::cluster::Hooks;

use crate::plan::mix;

/// One wave in so many fails on a rank.
const FAILS: u64 = 500;
/// Longest time that a wave is reported later than it is done, microseconds.
const LATE: u64 = 500;

/// Puts weather around every communicator of a rank.
#[derive(Debug)]
pub(crate) struct Weather {
    seed: u64,
    made: AtomicU64,
}

impl Weather {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, made: AtomicU64::new(0) }
    }
}

impl Hooks for Weather {
    fn communicator(
        &self,
        rank: RankId,
        _memory: &Arc<HostMemory>,
        communicator: Box<dyn Communicator>,
    ) -> Box<dyn Communicator> {
        let made = self.made.fetch_add(1, Ordering::Relaxed);
        let seed = mix(mix(self.seed, made), u64::from(rank.0));
        Box::new(Weathered { inner: communicator, seed, waves: 0, open: BTreeMap::new() })
    }
}

/// What is in store for a wave.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Late(Instant),
    Fails,
}

#[derive(Debug)]
struct Weathered {
    inner: Box<dyn Communicator>,
    seed: u64,
    waves: u64,
    open: BTreeMap<Ticket, Fate>,
}

impl Weathered {
    fn failure(&self) -> CommError {
        let rank = self.inner.rank();
        CommError::Transfer { rank, peer: rank, cause: "the weather was bad".into() }
    }
}

impl Communicator for Weathered {
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
        let draw = mix(self.seed, self.waves);
        self.waves += 1;
        let fails = draw.is_multiple_of(FAILS);
        // Half of the failures come before a byte has moved, the other half amid the wave.
        if fails && draw >> 63 == 0 {
            return Err(self.failure());
        }
        let ticket = self.inner.submit(transfers, after, deadline)?;
        let late = Duration::from_micros((draw >> 32) % LATE);
        self.open.insert(ticket, if fails { Fate::Fails } else { Fate::Late(Instant::now() + late) });
        Ok(ticket)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        match self.open.get(&ticket) {
            Some(Fate::Fails) => return Err(self.failure()),
            Some(Fate::Late(until)) if Instant::now() < *until => return Ok(Progress::Pending),
            _ => {}
        }
        let progress = self.inner.poll(ticket)?;
        if progress == Progress::Done {
            self.open.remove(&ticket);
        }
        Ok(progress)
    }

    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError> {
        self.inner.done(ticket)
    }

    fn abort(&mut self, cause: &str) -> Fence {
        self.inner.abort(cause)
    }

    fn carried(&self) -> Carried {
        self.inner.carried()
    }
}
