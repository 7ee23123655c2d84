//! Numbers that only grow, and the last ones of everything else.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use super::report::{Report, RoundOutcome};
use super::shared::lock;
use super::state::State;

/// Stalls that are remembered for their distribution.
const REMEMBERED: usize = 4096;
/// Different causes of errors that are counted apart.
const CAUSES: usize = 16;

/// What one engine has counted.
#[derive(Debug)]
pub(super) struct Meters(Mutex<Numbers>);

impl Default for Meters {
    fn default() -> Self {
        // Room for all, so that no step allocates.
        Self(Mutex::new(Numbers { recent: Vec::with_capacity(REMEMBERED), ..Numbers::default() }))
    }
}

/// See the metrics that are made of them.
#[derive(Debug, Default, Clone)]
pub(super) struct Numbers {
    pub(super) spent: BTreeMap<&'static str, Duration>,
    pub(super) rounds: BTreeMap<&'static str, u64>,
    pub(super) reasons: BTreeMap<&'static str, u64>,
    pub(super) moves: u64,
    pub(super) local_copies: u64,
    pub(super) link_bytes: u64,
    /// Of the last round that moved, 10^9 bytes per second.
    pub(super) gbps: f64,
    pub(super) waves: u64,
    pub(super) plan_time: Duration,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) stalls: u64,
    pub(super) stall_time: Duration,
    pub(super) longest_stall: Duration,
    /// The last ones, nanoseconds.
    pub(super) recent: Vec<u64>,
    pub(super) held: Duration,
    /// Calls of steps that launch waves, all of them and the longest.
    pub(super) launches: Duration,
    pub(super) longest_launch: Duration,
    /// Measured balancedness, by layer set.
    pub(super) measured: BTreeMap<usize, f64>,
}

impl Meters {
    pub(super) fn read(&self) -> Numbers {
        lock(&self.0).clone()
    }

    pub(super) fn spend(&self, state: &State, time: Duration) {
        *lock(&self.0).spent.entry(state.name()).or_default() += time;
    }

    /// A step that went the slow way.
    pub(super) fn stall(&self, time: Duration) {
        let mut numbers = lock(&self.0);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let at = (numbers.stalls % REMEMBERED as u64) as usize;
        match numbers.recent.get_mut(at) {
            Some(oldest) => *oldest = nanos,
            None => numbers.recent.push(nanos),
        }
        numbers.stalls += 1;
        numbers.stall_time += time;
        numbers.longest_stall = numbers.longest_stall.max(time);
    }

    pub(super) fn held(&self, held: Duration) {
        lock(&self.0).held = held;
    }

    /// A step looked for waves to launch, and launched what was due.
    pub(super) fn launched(&self, time: Duration) {
        let mut numbers = lock(&self.0);
        numbers.launches += time;
        numbers.longest_launch = numbers.longest_launch.max(time);
    }

    pub(super) fn measured(&self, set: usize, balancedness: f64) {
        lock(&self.0).measured.insert(set, balancedness);
    }

    /// Counts an error under the first words of its cause, without the numbers in it.
    pub(super) fn error(&self, cause: &str) {
        let words: String = cause.chars().filter(|c| !c.is_ascii_digit()).take(60).collect();
        let mut numbers = lock(&self.0);
        let known = numbers.errors.len() < CAUSES || numbers.errors.contains_key(&words);
        *numbers.errors.entry(if known { words } else { "other".into() }).or_default() += 1;
    }

    pub(super) fn round(&self, report: &Report) {
        let mut numbers = lock(&self.0);
        *numbers.rounds.entry(report.outcome.name()).or_default() += 1;
        *numbers.reasons.entry(report.reason.name()).or_default() += 1;
        numbers.plan_time += report.plan_time;
        if report.outcome == RoundOutcome::Moved {
            numbers.moves += report.moves as u64;
            numbers.local_copies += report.local_copies as u64;
            numbers.link_bytes += report.link_bytes;
            numbers.gbps = report.link_bytes as f64 / report.time.as_secs_f64().max(1e-9) / 1e9;
        }
        numbers.waves += report.committed as u64;
        drop(numbers);
        if let RoundOutcome::Aborted { cause } = &report.outcome {
            self.error(cause);
        }
    }
}
