//! Whose turn it is to read from a source: events in, choices out. No threads, no clock, no IO.
//!
//! Two ranks that read from one source at a time get half as much each, while another source idles; and since the later one then reaches its next
//! source later still, ranks that have fallen out of step stay so. So a rank reads in runs from one source, says in a word of its own from which, and
//! begins next with a source that nobody reads from. What the words say are hints: a rank that finds no free source for a while reads from one that
//! is taken, so that nobody depends on what another does.
//!
//! A timetable of the whole exchange, which every rank works out alike and in which each waits for the one before it, is as good among threads and
//! worse between processes, which see each other's words later (docs/benchmarks/exchange.md).

use std::cmp::Reverse;
use std::time::Duration;

/// How long a rank waits for a source that nobody reads from.
const PATIENCE: Duration = Duration::from_micros(100);

/// A run ends with the pull that makes it as long as this: a link carries it in 0.1 ms, ten times what handing a source on takes.
const RUN: u64 = 32 << 20;

/// Bytes that are worth no turns.
const WORTH: u64 = 8 << 20;

/// How long before a run is expected to end its source is said to be free: what the next reader takes to notice it and enqueue.
pub(crate) const LEAD: Duration = Duration::from_micros(20);

/// A pull that could be enqueued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Number of its wave.
    pub wave: u64,
    /// Its number in the wave.
    pub pull: usize,
    /// Where it reads.
    pub source: usize,
    /// What it carries.
    pub bytes: u64,
}

/// What is to be enqueued now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Where all of it is read; `None`: so little that it takes no turn.
    pub source: Option<usize>,
    /// The pulls, as (wave, number), in their order.
    pub pulls: Vec<(u64, usize)>,
    /// Whether others were known to read there.
    pub shares: bool,
}

/// One rank's turns.
#[derive(Debug)]
pub struct Turns {
    me: usize,
    ranks: usize,
    holds: Option<usize>,
    waits_since: Option<Duration>,
}

/// Pulls from one source that could be enqueued.
#[derive(Debug)]
struct Offer {
    source: usize,
    /// Of the first.
    wave: u64,
    bytes: u64,
}

impl Turns {
    /// Of rank `me` of `ranks`.
    pub fn new(me: usize, ranks: usize) -> Self {
        Self { me, ranks, holds: None, waits_since: None }
    }

    /// How far behind a reader a source is, going round: of two that reach for one source the nearer has it.
    fn behind(&self, reader: usize, source: usize) -> usize {
        (reader + self.ranks - source % self.ranks) % self.ranks
    }

    /// The source that this rank says it reads from.
    pub fn holds(&self) -> Option<usize> {
        self.holds
    }

    /// Little of the run is left, or nothing came of it.
    pub fn release(&mut self) {
        self.holds = None;
    }

    /// The next run from what could be enqueued, in its order; `None` while the one before is not near its end, or while no source is free. `reading`:
    /// what a rank says it reads from. `now`: on the caller's clock.
    pub fn choose(
        &mut self,
        could: &[Candidate],
        reading: impl Fn(usize) -> Option<usize>,
        now: Duration,
    ) -> Option<Run> {
        if self.holds.is_some() || could.is_empty() {
            return None;
        }
        if could.iter().map(|candidate| candidate.bytes).sum::<u64>() < WORTH {
            let pulls = could.iter().map(|candidate| (candidate.wave, candidate.pull)).collect();
            return Some(Run { source: None, pulls, shares: false });
        }
        let (source, shares) = self.source(&offers(could), reading, now)?;
        let (mut pulls, mut bytes) = (Vec::new(), 0);
        for candidate in could.iter().filter(|candidate| candidate.source == source) {
            pulls.push((candidate.wave, candidate.pull));
            bytes += candidate.bytes;
            if bytes >= RUN {
                break;
            }
        }
        (self.holds, self.waits_since) = (Some(source), None);
        Some(Run { source: Some(source), pulls, shares })
    }

    /// Where to read next, and whether others do, too.
    fn source(
        &mut self,
        offers: &[Offer],
        reading: impl Fn(usize) -> Option<usize>,
        now: Duration,
    ) -> Option<(usize, bool)> {
        let waited = now.saturating_sub(*self.waits_since.get_or_insert(now)) >= PATIENCE;
        let taken: Vec<Option<usize>> = (0..self.ranks).filter(|&r| r != self.me).map(reading).collect();
        let readers = |offer: &Offer| taken.iter().filter(|&&source| source == Some(offer.source)).count();
        // Earlier waves first, as others wait for them; then where most is left, which would be in the way at the end.
        let order = |offer: &&Offer| (offer.wave, Reverse(offer.bytes), self.behind(self.me, offer.source));
        if let Some(free) = offers.iter().filter(|offer| readers(offer) == 0).min_by_key(order) {
            return Some((free.source, false));
        }
        let least = offers.iter().filter(|_| waited).min_by_key(|offer| (readers(offer), order(offer)))?;
        Some((least.source, true))
    }

    /// Whether another rank reached for the same source at the same moment and has it, as said after this rank's word was written.
    pub fn gives_way(&self, run: &Run, reading: impl Fn(usize) -> Option<usize>) -> bool {
        let Some(source) = run.source.filter(|_| !run.shares) else { return false };
        let others = (0..self.ranks).filter(|&rank| rank != self.me && reading(rank) == Some(source));
        others.into_iter().any(|rank| self.behind(rank, source) < self.behind(self.me, source))
    }
}

/// What could be enqueued, by source.
fn offers(could: &[Candidate]) -> Vec<Offer> {
    let mut offers: Vec<Offer> = Vec::new();
    for &Candidate { wave, source, bytes, .. } in could {
        match offers.iter_mut().find(|offer| offer.source == source) {
            Some(offer) => {
                offer.bytes += bytes;
                offer.wave = offer.wave.min(wave);
            }
            None => offers.push(Offer { source, wave, bytes }),
        }
    }
    offers
}
