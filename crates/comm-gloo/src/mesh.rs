//! Connecting all ranks: one generation after another, until one comes up whole.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::{CasOutcome, PrefixStore, Store, StoreError};
use eplb_core::RankId;
use gloo_sys::{Context, Gloo, Rendezvous};

use crate::alarm::{Alarm, Fault};
use crate::error::GlooError;
use crate::facts::{self, Facts};
use crate::hello;
use crate::options::{Options, Planted};
use crate::sentry::Sentry;

/// Key under the prefix: the lowest generation that may still be alive.
const GENERATION: &str = "generation";

/// Shortest and longest pause between two looks at what other ranks have written.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(25));

/// All connections of one generation.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) sentry: Sentry,
    pub(crate) context: Context,
    pub(crate) generation: u64,
    pub(crate) facts: Vec<Facts>,
    pub(crate) alarm: Alarm,
}

/// Why an attempt came to nothing.
enum Setback {
    /// Another generation may succeed.
    Again(Fault),
    /// It cannot.
    Never(GlooError),
}

/// What every attempt needs.
pub(crate) struct Caller<'a> {
    pub(crate) gloo: Gloo,
    pub(crate) rank: RankId,
    pub(crate) world_size: usize,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) options: &'a Options,
    /// Own facts; the nonce is drawn anew for each attempt.
    pub(crate) facts: Facts,
}

impl Caller<'_> {
    fn store_error(&self, source: StoreError) -> GlooError {
        GlooError::Store { rank: self.rank, source }
    }

    /// Tries generations until one connects all ranks or the deadline passes.
    pub(crate) fn connect(&self, deadline: Instant) -> Result<Mesh, GlooError> {
        let begin = Instant::now();
        let mut last = None;
        match self.try_generations(deadline, &mut last) {
            // What the last attempt failed of says more than that its time ran out.
            Err(GlooError::Store { source, .. }) if source.is_timeout() && last.is_some() => {}
            Err(error) => return Err(error),
            Ok(Some(mesh)) => return Ok(mesh),
            Ok(None) => {}
        }
        let (generation, cause) = last.map_or((0, String::new()), |(generation, fault): (u64, Fault)| {
            (generation, fault.error(self.rank).to_string())
        });
        let (rank, world_size, waited) = (self.rank, self.world_size, begin.elapsed());
        Err(GlooError::NotConnected { rank, world_size, waited, generation, cause })
    }

    /// `None`: the deadline passed; `last` is the last attempt and what was in its way.
    fn try_generations(
        &self,
        deadline: Instant,
        last: &mut Option<(u64, Fault)>,
    ) -> Result<Option<Mesh>, GlooError> {
        let corner = PrefixStore::new(self.store.clone(), &self.options.prefix);
        let corner: Arc<dyn Store> = Arc::new(corner.map_err(|error| self.store_error(error))?);
        let mut generation = first(&*corner, deadline).map_err(|error| self.store_error(error))?;
        loop {
            let own = PrefixStore::new(corner.clone(), &generation.to_string());
            let own: Arc<dyn Store> = Arc::new(own.map_err(|error| self.store_error(error))?);
            let alarm = Alarm::new(own.clone(), self.rank, self.world_size);
            let fault = match self.attempt(generation, &own, &alarm, deadline) {
                Ok(mesh) => return Ok(Some(mesh)),
                Err(Setback::Again(fault)) => fault,
                Err(Setback::Never(error)) => {
                    let fault = Fault::own(self.rank, error.to_string());
                    // Others notice by their deadlines if the store is gone too.
                    let _ = alarm.record(&fault, Instant::now() + self.options.report);
                    return Err(error);
                }
            };
            // Whoever is still in this attempt sees the record and leaves it too.
            let recorded = alarm.record(&fault, Instant::now() + self.options.report);
            let (fault, _) = recorded.map_err(|error| self.store_error(error))?;
            *last = Some((generation, fault));
            // What is left is no time for another.
            if Instant::now() + 2 * PAUSES.1 >= deadline {
                return Ok(None);
            }
            self.leave(&own).map_err(|error| self.store_error(error))?;
            generation += 1;
            advance(&*corner, generation, deadline).map_err(|error| self.store_error(error))?;
        }
    }

    fn attempt(
        &self,
        generation: u64,
        store: &Arc<dyn Store>,
        alarm: &Alarm,
        deadline: Instant,
    ) -> Result<Mesh, Setback> {
        let never = |error| Setback::Never(self.store_error(error));
        let again = |cause: String| Setback::Again(Fault::own(self.rank, cause));
        if let Some(fault) = alarm.look(deadline).map_err(never)? {
            return Err(Setback::Again(fault));
        }
        let mut watch = Watch { store: &**store, alarm, deadline };
        let facts = Facts { nonce: nonce(), ..self.facts.clone() };
        let published = store.compare_and_set(&fact_key(self.rank.index()), None, &facts.encode(), deadline);
        if let CasOutcome::Current(_) = published.map_err(never)? {
            // An earlier start of this rank took part: the group of that start is over.
            return Err(again(format!("{} was started again", self.rank)));
        }
        let all = match self.gather(&mut watch) {
            Ok(all) => all,
            Err(stop) => {
                // A rank that compared the facts of all may have left with what it found before this one saw them.
                if matches!(stop, Stop::Fault(_)) {
                    self.compare_at_last(&**store, deadline)?;
                }
                return Err(stop.setback(self));
            }
        };
        facts::check(self.rank, &all).map_err(Setback::Never)?;
        // All are there. One that has died meanwhile costs no more than an attempt.
        let deadline = deadline.min(Instant::now() + self.options.attempt);
        watch.deadline = deadline;
        let timeout = deadline.saturating_duration_since(Instant::now());
        let secret = facts::secret(generation, &all);
        let mut rendezvous = Corner { watch: &mut watch, stop: None };
        let connected = self.gloo.connect(
            self.rank.index(),
            self.world_size,
            &self.options.device,
            &mut rendezvous,
            timeout,
            (!self.options.has(Planted::Unguarded)).then_some(&secret),
        );
        if let Some(stop) = rendezvous.stop.take() {
            return Err(stop.setback(self));
        }
        let context =
            connected.map_err(|error| again(format!("{} on {}: {error}", self.rank, self.options.device)))?;
        // With time left to say what failed before the others give up.
        let patience = self.options.attempt / 2;
        hello::exchange(&context, generation, &all, &watch, patience).map_err(|(peer, cause)| {
            Setback::Again(Fault { origin: self.rank, blamed: peer, abort: false, cause })
        })?;
        let sentry =
            Sentry::post(&context, generation).map_err(|error| again(format!("{}: {error}", self.rank)))?;
        // A rank that failed so far has said so; one that is up will hear of later failures by its bell.
        store.set(&up_key(self.rank.index()), b"", deadline).map_err(never)?;
        let up: Vec<String> = (0..self.world_size).map(up_key).collect();
        watch.wait(&up).map_err(|stop| stop.setback(self))?;
        Ok(Mesh { sentry, context, generation, facts: all, alarm: alarm.clone() })
    }

    /// The facts of all ranks.
    fn gather(&self, watch: &mut Watch<'_>) -> Result<Vec<Facts>, Stop> {
        let keys: Vec<String> = (0..self.world_size).map(fact_key).collect();
        Self::decode(watch.wait(&keys)?)
    }

    /// Whether ranks that have told their facts, all of them, do not fit: no other generation would.
    fn compare_at_last(&self, store: &dyn Store, deadline: Instant) -> Result<(), Setback> {
        let mut found = Vec::with_capacity(self.world_size);
        for rank in 0..self.world_size {
            let Ok(Some(bytes)) = store.get(&fact_key(rank), deadline) else { return Ok(()) };
            found.push(bytes);
        }
        let all = Self::decode(found).map_err(|stop| stop.setback(self))?;
        facts::check(self.rank, &all).map_err(Setback::Never)
    }

    fn decode(found: Vec<Vec<u8>>) -> Result<Vec<Facts>, Stop> {
        let decode = |(rank, bytes): (usize, Vec<u8>)| {
            Facts::decode(&bytes).ok_or_else(|| {
                Stop::Mismatch(
                    RankId::at(rank),
                    "it runs another version: start all ranks with the same".into(),
                )
            })
        };
        found.into_iter().enumerate().map(decode).collect()
    }

    /// Removes what this rank put in a generation that came to nothing; its record stays.
    fn leave(&self, store: &Arc<dyn Store>) -> Result<(), StoreError> {
        let deadline = Instant::now() + self.options.report;
        for key in [fact_key(self.rank.index()), up_key(self.rank.index())] {
            store.delete(&key, deadline)?;
        }
        Ok(())
    }
}

fn fact_key(rank: usize) -> String {
    format!("rank/{rank}")
}

fn up_key(rank: usize) -> String {
    format!("up/{rank}")
}

fn nonce() -> u64 {
    // Without the system's randomness the time must do: a nonce only has to differ from that of an earlier start.
    getrandom::u64().unwrap_or_else(|_| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |since| since.as_nanos() as u64)
    })
}

/// The lowest generation that may be alive.
fn first(store: &dyn Store, deadline: Instant) -> Result<u64, StoreError> {
    Ok(parse(store.get(GENERATION, deadline)?.as_deref()))
}

fn parse(value: Option<&[u8]>) -> u64 {
    value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0)
}

/// Raises the lowest generation that may be alive.
fn advance(store: &dyn Store, generation: u64, deadline: Instant) -> Result<(), StoreError> {
    loop {
        let current = store.get(GENERATION, deadline)?;
        if parse(current.as_deref()) >= generation {
            return Ok(());
        }
        let new = generation.to_string();
        let swap = store.compare_and_set(GENERATION, current.as_deref(), new.as_bytes(), deadline)?;
        if swap == CasOutcome::Swapped {
            return Ok(());
        }
    }
}

/// Why a wait for others ended without them.
enum Stop {
    /// There is a record of a failure.
    Fault(Fault),
    /// Keys that nobody wrote in time.
    Late(Vec<String>),
    Store(StoreError),
    Mismatch(RankId, String),
}

impl Stop {
    fn setback(self, caller: &Caller<'_>) -> Setback {
        let rank = caller.rank;
        match self {
            Stop::Fault(fault) => Setback::Again(fault),
            Stop::Late(keys) => {
                Setback::Again(Fault::own(rank, format!("still missing: {}", keys.join(", "))))
            }
            Stop::Store(source) if source.is_timeout() => {
                Setback::Again(Fault::own(rank, source.to_string()))
            }
            Stop::Store(source) => Setback::Never(GlooError::Store { rank, source }),
            Stop::Mismatch(other, reason) => Setback::Never(GlooError::Mismatch { rank, other, reason }),
        }
    }
}

/// Waits for what others write, and for records of failures at the same time.
pub(crate) struct Watch<'a> {
    store: &'a dyn Store,
    alarm: &'a Alarm,
    deadline: Instant,
}

impl Watch<'_> {
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether this generation has failed.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.alarm.look(self.deadline).ok().flatten()
    }

    fn wait(&mut self, keys: &[String]) -> Result<Vec<Vec<u8>>, Stop> {
        let names: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut pause = PAUSES.0;
        loop {
            let found = self.store.get_many(&names, self.deadline).map_err(Stop::Store)?;
            if found.iter().all(Option::is_some) {
                return Ok(found.into_iter().flatten().collect());
            }
            if let Some(fault) = self.alarm.look(self.deadline).map_err(Stop::Store)? {
                return Err(Stop::Fault(fault));
            }
            if Instant::now() + pause >= self.deadline {
                let missing = names.iter().zip(&found).filter(|(_, found)| found.is_none());
                return Err(Stop::Late(missing.map(|(name, _)| (*name).to_owned()).collect()));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

/// Gloo's view of the store while it connects.
struct Corner<'a, 'b> {
    watch: &'a mut Watch<'b>,
    stop: Option<Stop>,
}

fn mesh_key(key: &str) -> String {
    format!("mesh/{key}")
}

impl Rendezvous for Corner<'_, '_> {
    fn set(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        self.watch.store.set(&mesh_key(key), value, self.watch.deadline).map_err(|error| {
            let text = error.to_string();
            self.stop = Some(Stop::Store(error));
            text
        })
    }

    fn get(&mut self, key: &str) -> Result<Vec<u8>, String> {
        match self.watch.wait(&[mesh_key(key)]) {
            // One key was asked for.
            Ok(mut found) => Ok(found.pop().unwrap_or_default()),
            Err(stop) => {
                self.stop = Some(stop);
                Err(format!("{key} was not to be had"))
            }
        }
    }
}
