//! Who is still there: counters that ranks renew in the store, judged by the observer's clock.
//!
//! Sans-IO: the caller reads counters from the store and passes them in with the reading of its own monotonic clock,
//! a [`Duration`] since any moment it likes. Clocks of different ranks are never compared.
//!
//! Only time in which the observer itself was looking counts. An observer that was stopped for a minute finds a
//! minute of silence on every rank when it resumes; it must not declare all of them dead for that. So the time
//! between two looks counts for no more than [`LOOKS_MISSED`] renewals. An observer that looks less often than that
//! takes longer to see a death.

use std::time::Duration;

use eplb_core::RankId;

use super::deadlines::Deadlines;

/// Renewal intervals that the time between two looks counts for at most.
pub const LOOKS_MISSED: u32 = 5;

/// What an observer holds a rank for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Its counter moved less than the timeout ago.
    Alive {
        /// Observed time since it moved.
        silent: Duration,
    },
    /// Its counter has stood still for the timeout or longer.
    Dead {
        /// Observed time since it moved.
        silent: Duration,
    },
}

impl Life {
    /// Whether it is [`Life::Dead`].
    pub fn is_dead(self) -> bool {
        matches!(self, Self::Dead { .. })
    }
}

/// One counter under observation.
///
/// A counter that moves again after its rank was held for dead makes it alive again: liveness is an observation.
/// Whether a rank is a member is decided elsewhere, by closing the epoch.
#[derive(Debug, Clone)]
pub struct Pulse {
    timeout: Duration,
    longest_gap: Duration,
    last: Option<u64>,
    looked_at: Option<Duration>,
    silent: Duration,
}

impl Pulse {
    /// A counter that is renewed every `renew` and whose rank is dead when it stands still for `timeout`.
    pub fn new(timeout: Duration, renew: Duration) -> Self {
        Self {
            timeout,
            longest_gap: renew.saturating_mul(LOOKS_MISSED),
            last: None,
            looked_at: None,
            silent: Duration::ZERO,
        }
    }

    /// Takes in what the counter showed at `now` (`None`: it was not there). A clock that runs backwards counts as
    /// standing still.
    pub fn observe(&mut self, counter: Option<u64>, now: Duration) -> Life {
        let gap = self.looked_at.map_or(Duration::ZERO, |before| now.saturating_sub(before));
        self.looked_at = Some(now);
        if counter.is_some() && counter != self.last {
            self.last = counter;
            self.silent = Duration::ZERO;
        } else {
            self.silent = self.silent.saturating_add(gap.min(self.longest_gap));
        }
        self.life()
    }

    /// The verdict of the last look. Before the first, alive.
    pub fn life(&self) -> Life {
        let silent = self.silent;
        if silent >= self.timeout { Life::Dead { silent } } else { Life::Alive { silent } }
    }
}

/// The counters of all other members of an epoch under observation.
#[derive(Debug, Clone)]
pub struct Liveness {
    epoch: u64,
    me: RankId,
    pulses: Vec<(RankId, Pulse)>,
}

impl Liveness {
    /// Observes `members` (this rank among them or not) of an epoch as rank `me`.
    pub fn new(epoch: u64, me: RankId, members: &[RankId], deadlines: &Deadlines) -> Self {
        let mut others: Vec<RankId> = members.iter().copied().filter(|&rank| rank != me).collect();
        others.sort_unstable();
        others.dedup();
        let pulse = Pulse::new(deadlines.peer_timeout, deadlines.renew);
        Self { epoch, me, pulses: others.into_iter().map(|rank| (rank, pulse.clone())).collect() }
    }

    /// Ranks under observation and the keys of their counters, ranks ascending.
    pub fn keys(&self) -> impl Iterator<Item = (RankId, String)> + '_ {
        self.pulses.iter().map(|(rank, _)| (*rank, counter_key(self.epoch, *rank)))
    }

    /// Takes in the values read from the keys of [`Liveness::keys`], in that order. A value that is no counter
    /// counts as absent; missing trailing values as well.
    pub fn observe(&mut self, values: &[Option<Vec<u8>>], now: Duration) {
        for (i, (_, pulse)) in self.pulses.iter_mut().enumerate() {
            let counter = values.get(i).and_then(Option::as_deref).and_then(parse_counter);
            pulse.observe(counter, now);
        }
    }

    /// What a rank is held for; `None` for this rank and for one that is not observed.
    pub fn life(&self, rank: RankId) -> Option<Life> {
        let at = self.pulses.binary_search_by_key(&rank, |(rank, _)| *rank).ok()?;
        Some(self.pulses[at].1.life())
    }

    /// Ranks held for dead, ascending.
    pub fn dead(&self) -> Vec<RankId> {
        self.pulses.iter().filter(|(_, pulse)| pulse.life().is_dead()).map(|(rank, _)| *rank).collect()
    }

    /// The lowest rank not held for dead, this one included: the one that leads.
    pub fn lowest_live(&self) -> RankId {
        let others = self.pulses.iter().filter(|(_, pulse)| !pulse.life().is_dead()).map(|(rank, _)| *rank);
        others.fold(self.me, RankId::min)
    }
}

/// Says when this rank's own counter is due, and what to write.
#[derive(Debug, Clone)]
pub struct Renewal {
    interval: Duration,
    next: Option<Duration>,
    counter: u64,
}

impl Renewal {
    /// A counter renewed every `interval`.
    pub fn new(interval: Duration) -> Self {
        Self { interval, next: None, counter: 0 }
    }

    /// The value to write now, if one is due. A late call writes once and counts the interval from there.
    pub fn due(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next.is_some_and(|next| now < next) {
            return None;
        }
        self.next = Some(now.saturating_add(self.interval));
        self.counter += 1;
        Some(self.counter.to_string().into_bytes())
    }

    /// Time until the next one is due.
    pub fn wait(&self, now: Duration) -> Duration {
        self.next.map_or(Duration::ZERO, |next| next.saturating_sub(now))
    }
}

/// Key of a rank's counter in an epoch.
pub fn counter_key(epoch: u64, rank: RankId) -> String {
    format!("{epoch}/alive/{}", rank.0)
}

fn parse_counter(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}
