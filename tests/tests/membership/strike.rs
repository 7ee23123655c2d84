//! Strikes a rank at a moment of a reform: around its store, and around its communicator.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use eplb_comm::host::HostMemory;
use eplb_comm::store::identity::EPOCH_KEY;
use eplb_comm::store::{CasOutcome, EpochRecord, Store, StoreError};
use eplb_comm::{CommError, Communicator, Fence, Intercept, Intercepted, Ticket};
use eplb_core::{RankId, Transfer};
use eplb_engine::cluster::Hooks;

use crate::case::{Case, Kind};
use crate::rank::say;

/// Sends this process a signal.
fn signal(name: &str) {
    // The shell's parent is this process.
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} $PPID")]).status();
    assert!(sent.is_ok_and(|status| status.success()), "no signal was sent");
}

/// What strikes this process, once it is armed.
#[derive(Debug)]
pub(crate) struct Strike {
    case: Case,
    /// Whether it is this rank that it happens to.
    mine: bool,
    armed: AtomicBool,
}

impl Strike {
    pub(crate) fn new(case: Case, mine: bool) -> Arc<Self> {
        Arc::new(Self { case, mine, armed: AtomicBool::new(false) })
    }

    /// From now on.
    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    fn at(&self, kind: Kind) {
        if self.mine && self.case.kind == kind && self.armed.swap(false, Ordering::SeqCst) {
            // What was said before goes out.
            std::thread::sleep(std::time::Duration::from_millis(60));
            say("struck");
            signal(if kind.stops() { "STOP" } else { "KILL" });
        }
    }

    fn in_a_wave(&self) {
        if self.case.kind.in_a_wave() {
            self.at(self.case.kind);
        }
    }
}

/// A store that sees what a rank is about to do.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) strike: Arc<Strike>,
}

impl Store for Watched {
    fn set(&self, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        let done = self.inner.set(key, value, deadline);
        if key.contains("/reform/") {
            self.strike.at(Kind::KillPresent);
        }
        if key.contains("/group/") {
            self.strike.at(Kind::KillSettling);
        }
        done
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(key, deadline)
    }

    fn add(&self, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        self.inner.add(key, delta, deadline)
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        // Its second byte says that the epoch is closed.
        let closes = key.ends_with("/decision") && new.get(1) == Some(&1);
        if closes && self.strike.case.kind == Kind::PlantOpen && !self.strike.mine {
            return Ok(CasOutcome::Swapped);
        }
        let done = self.inner.compare_and_set(key, expected, new, deadline);
        if key == EPOCH_KEY && done == Ok(CasOutcome::Swapped) {
            let formed = EpochRecord::decode(new).is_ok_and(|record| record.formed);
            self.strike.at(if formed { Kind::KillFormed } else { Kind::KillProposed });
        }
        done
    }

    fn wait(&self, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        self.inner.wait(keys, deadline)
    }

    fn wait_change(
        &self,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.wait_change(key, known, deadline)
    }

    fn delete(&self, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        self.inner.delete(key, deadline)
    }

    fn get_many(&self, keys: &[&str], deadline: Instant) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.inner.get_many(keys, deadline)
    }

    fn max_value(&self) -> usize {
        self.inner.max_value()
    }

    fn max_key(&self) -> usize {
        self.inner.max_key()
    }
}

/// Puts the strike around the communicators of a rank.
#[derive(Debug)]
pub(crate) struct Around(pub(crate) Arc<Strike>);

impl Hooks for Around {
    fn communicator(
        &self,
        _rank: RankId,
        _memory: &Arc<HostMemory>,
        inner: Box<dyn Communicator>,
    ) -> Box<dyn Communicator> {
        Box::new(Intercepted::new(inner, Struck(self.0.clone())))
    }
}

#[derive(Debug)]
struct Struck(Arc<Strike>);

impl Intercept for Struck {
    fn submit(
        &mut self,
        inner: &mut dyn Communicator,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        let ticket = inner.submit(transfers, after, deadline);
        self.0.in_a_wave();
        ticket
    }
}
