//! Strikes a rank at a moment of a reform: around its store, and around its communicator.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use eplb_comm::host::{HostMemory, HostStream};
use eplb_comm::store::identity::EPOCH_KEY;
use eplb_comm::store::{CasOutcome, EpochRecord, Store, StoreError, StoreIntercept, StoreOp};
use eplb_comm::{CommError, Communicator, Fence, Intercept, Intercepted, Stream};
use eplb_core::{RankId, SlotCommit, Transfer};
use eplb_engine::cluster::{Hooks, ServingStream, Work};
use eplb_tests::child::{kill, say, stop};

use crate::case::{Case, DEAF, Kind};

/// What strikes this process, once it is armed.
#[derive(Debug)]
pub(crate) struct Strike {
    case: Case,
    /// Whether it is this rank that it happens to.
    mine: bool,
    armed: AtomicBool,
    /// What this rank reads of the decision, if it cannot read the truth.
    deaf: Mutex<Option<Hearing>>,
}

/// What a rank reads of the decision that cannot read that a wave is committed at a step.
#[derive(Debug, Default)]
struct Hearing {
    /// What it read last, also before it was deaf.
    last: Option<Vec<u8>>,
    /// Whether it has missed something: from then on nothing changes for it.
    missed: bool,
}

impl Hearing {
    fn hear(&mut self, said: Option<Vec<u8>>) -> Option<Vec<u8>> {
        self.missed |= said != self.last && said.as_deref().is_some_and(is_for_a_step);
        if !self.missed {
            self.last = said;
        }
        self.last.clone()
    }
}

/// Whether a decision commits a wave at an agreed step: format, whether it is closed, eight bytes of version, the verdict.
fn is_for_a_step(decision: &[u8]) -> bool {
    decision.get(10) == Some(&1)
}

impl Strike {
    pub(crate) fn new(case: Case, rank: usize) -> Arc<Self> {
        let deaf = Mutex::new((case.kind.rolls() && rank == DEAF).then(Hearing::default));
        Arc::new(Self { case, mine: rank == case.target, armed: AtomicBool::new(false), deaf })
    }

    /// Whether this rank has missed a decision, as it was to.
    pub(crate) fn has_missed(&self) -> bool {
        self.deaf.lock().unwrap().as_ref().is_some_and(|hearing| hearing.missed)
    }

    /// From now on this rank reads what there is.
    pub(crate) fn cure(&self) {
        if !self.mine {
            self.armed.store(false, Ordering::SeqCst);
        }
    }

    /// What this rank reads where a decision was read.
    fn hear(&self, said: Option<Vec<u8>>) -> Option<Vec<u8>> {
        match self.deaf.lock().unwrap().as_mut() {
            Some(hearing) if self.armed.load(Ordering::SeqCst) => hearing.hear(said),
            Some(hearing) => {
                hearing.last.clone_from(&said);
                said
            }
            None => said,
        }
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
            if kind.stops() { stop() } else { kill() }
        }
    }

    fn in_a_wave(&self) {
        if self.case.kind.in_a_wave() && !self.case.kind.when_decided() {
            self.at(self.case.kind);
        }
    }
}

/// Sees what a rank is about to do in its store.
#[derive(Debug)]
pub(crate) struct Watched(pub(crate) Arc<Strike>);

impl StoreIntercept for Watched {
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        let done = inner.set(key, value, deadline);
        if key.contains("/reform/") {
            self.0.at(Kind::KillPresent);
        }
        if key.contains("/group/") {
            self.0.at(Kind::KillSettling);
        }
        done
    }

    fn get(&self, inner: &dyn Store, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        let read = inner.get(key, deadline)?;
        Ok(if key.ends_with("/decision") { self.0.hear(read) } else { read })
    }

    fn compare_and_set(
        &self,
        inner: &dyn Store,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        // Its second byte says that the epoch is closed.
        let closes = key.ends_with("/decision") && new.get(1) == Some(&1);
        if closes && self.0.case.kind == Kind::PlantOpen && !self.0.mine {
            return Ok(CasOutcome::Swapped);
        }
        let done = inner.compare_and_set(key, expected, new, deadline);
        if key.ends_with("/decision") {
            if done == Ok(CasOutcome::Swapped) && is_for_a_step(new) && self.0.case.kind.when_decided() {
                self.0.at(self.0.case.kind);
            }
            if let Ok(CasOutcome::Current(read)) = &done
                && self.0.hear(read.clone()) != *read
            {
                return Err(StoreError::Timeout {
                    op: StoreOp::CompareAndSet,
                    keys: vec![key.to_owned()],
                    waited: std::time::Duration::ZERO,
                });
            }
        }
        if key == EPOCH_KEY && done == Ok(CasOutcome::Swapped) {
            let formed = EpochRecord::decode(new).is_ok_and(|record| record.formed);
            self.0.at(if formed { Kind::KillFormed } else { Kind::KillProposed });
        }
        done
    }

    fn get_many(
        &self,
        inner: &dyn Store,
        keys: &[&str],
        deadline: Instant,
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let mut read = inner.get_many(keys, deadline)?;
        for (_, value) in keys.iter().zip(&mut read).filter(|(key, _)| key.ends_with("/decision")) {
            *value = self.0.hear(value.take());
        }
        Ok(read)
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

    fn stream(&self, _rank: RankId, inner: HostStream) -> Box<dyn ServingStream> {
        match self.0.case.kind {
            Kind::PlantUncopied => Box::new(Forgetful { inner, strike: self.0.clone() }),
            _ => Box::new(inner),
        }
    }
}

/// Copies nothing for commits once its rank has missed a decision.
#[derive(Debug)]
struct Forgetful {
    inner: HostStream,
    strike: Arc<Strike>,
}

impl Stream for Forgetful {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        if self.strike.has_missed() { self.inner.record() } else { self.inner.commit(commits) }
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        self.inner.record()
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        self.inner.wait(fence)
    }
}

impl ServingStream for Forgetful {
    fn run(&mut self, work: Work) -> Fence {
        self.inner.run(work)
    }
}

#[derive(Debug)]
struct Struck(Arc<Strike>);

impl Intercept for Struck {
    fn submitted(&mut self, _transfers: &[Transfer]) {
        self.0.in_a_wave();
    }
}
