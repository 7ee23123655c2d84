//! What a transport may do to a rank at any time: waves that are reported late, and now and then one that fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::host::HostMemory;
use eplb_comm::{CommError, Communicator, Fence, Intercept, Intercepted, Progress, Ticket};
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
        Box::new(Intercepted::new(communicator, Waves { seed, waves: 0, open: BTreeMap::new() }))
    }
}

/// What is in store for a wave.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Late(Instant),
    Fails,
}

#[derive(Debug)]
struct Waves {
    seed: u64,
    waves: u64,
    open: BTreeMap<Ticket, Fate>,
}

fn failure(rank: RankId) -> CommError {
    CommError::Transfer { rank, peer: rank, cause: "the weather was bad".into() }
}

impl Intercept for Waves {
    fn submit(
        &mut self,
        inner: &mut dyn Communicator,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        let draw = mix(self.seed, self.waves);
        self.waves += 1;
        let fails = draw.is_multiple_of(FAILS);
        // Half of the failures come before a byte has moved, the other half amid the wave.
        if fails && draw >> 63 == 0 {
            return Err(failure(inner.rank()));
        }
        let ticket = inner.submit(transfers, after, deadline)?;
        let late = Duration::from_micros((draw >> 32) % LATE);
        self.open.insert(ticket, if fails { Fate::Fails } else { Fate::Late(Instant::now() + late) });
        Ok(ticket)
    }

    fn poll(&mut self, inner: &mut dyn Communicator, ticket: Ticket) -> Result<Progress, CommError> {
        match self.open.get(&ticket) {
            Some(Fate::Fails) => return Err(failure(inner.rank())),
            Some(Fate::Late(until)) if Instant::now() < *until => return Ok(Progress::Pending),
            _ => {}
        }
        let progress = inner.poll(ticket)?;
        if progress == Progress::Done {
            self.open.remove(&ticket);
        }
        Ok(progress)
    }
}
