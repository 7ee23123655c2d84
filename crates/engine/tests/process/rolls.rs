//! A wave is decided and no rank hears of it: all carry it out in the next epoch, and one that fails half-way there relies on nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eplb_comm::host::HostStream;
use eplb_comm::{CommError, Fence, Stream};
use eplb_core::{Placement, RankId, SlotCommit};
use eplb_engine::EngineError;
use eplb_engine::board::{Board, BoardIntercept, InterceptedBoard};
use eplb_engine::cluster::{Hooks, ServingStream, Work};
use eplb_engine::process::membership::Stayed;
use eplb_engine::process::{Job, Member, Reform, Reformed, Session, Stage};
use eplb_exchange::{ExchangePlan, Record, Verdict};

use super::reforms::{assert_whole, replan, short};
use super::support::{EXPERTS, LAYERS, Threads, in_process, job, loads, on_threads, random, topology};

const RANKS: usize = 2;

/// What becomes of one rank.
#[derive(Debug, Default)]
struct Fate {
    /// It cannot read that a wave is committed at a step.
    deaf: AtomicBool,
    /// The next commit copies one slot, and fails.
    fails: AtomicBool,
}

#[derive(Debug)]
struct Fated(Arc<Fate>);

impl Hooks for Fated {
    fn board(&self, _rank: RankId, inner: Arc<dyn Board>) -> Arc<dyn Board> {
        Arc::new(InterceptedBoard::new(inner, Deaf { fate: self.0.clone(), heard: Mutex::default() }))
    }

    fn stream(&self, rank: RankId, inner: HostStream) -> Box<dyn ServingStream> {
        Box::new(Fails { rank, inner, fate: self.0.clone() })
    }
}

#[derive(Debug)]
struct Deaf {
    fate: Arc<Fate>,
    /// The last record that was heard, and whether one was missed: from then on nothing changes.
    heard: Mutex<(Option<Record>, bool)>,
}

impl BoardIntercept for Deaf {
    fn record(&self, inner: &dyn Board) -> Record {
        let said = inner.record();
        let mut heard = self.heard.lock().unwrap();
        let (last, missed) = &mut *heard;
        *missed |= self.fate.deaf.load(Ordering::SeqCst)
            && *last != Some(said)
            && matches!(said.verdict, Verdict::Commit { step: Some(_) });
        if *missed { last.unwrap_or(Record::OPEN) } else { *last.insert(said) }
    }

    fn decide(&self, inner: &dyn Board, from: Record, to: Record, until: Option<Instant>) -> Option<Record> {
        if !self.fate.deaf.load(Ordering::SeqCst) {
            return inner.decide(from, to, until);
        }
        match (to.verdict, until) {
            // It gets there before anybody asks.
            (Verdict::Commit { step: Some(_) }, None) => {
                let at_last = Instant::now() + Duration::from_secs(60);
                inner.decide(from, to, Some(at_last)).unwrap();
                None
            }
            (_, None) => inner.decide(from, to, None),
            (_, Some(_)) => None,
        }
    }
}

#[derive(Debug)]
struct Fails {
    rank: RankId,
    inner: HostStream,
    fate: Arc<Fate>,
}

impl Stream for Fails {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        if !self.fate.fails.swap(false, Ordering::SeqCst) {
            return self.inner.commit(commits);
        }
        let one = commits.iter().find(|commit| commit.fill.overwrites()).into_iter().copied();
        let copied = self.inner.commit(&one.collect::<Vec<_>>())?;
        copied.wait(self.rank, "one copy", Instant::now() + Duration::from_secs(60))?;
        Err(CommError::Aborted { rank: self.rank, cause: "planted amid a commit".into() })
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        self.inner.record()
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        self.inner.wait(fence)
    }
}

impl ServingStream for Fails {
    fn run(&mut self, work: Work) -> Fence {
        self.inner.run(work)
    }
}

/// A placement on the way to which slots in service are overwritten.
fn overwriting(job: &Job, before: &Placement) -> Placement {
    let (topology, loads) = (&job.topology, loads());
    let found = (10..).map(|seed| random(seed, topology)).find(|new| {
        let limits = &job.settings.limits;
        let plan = ExchangePlan::new(before, new, topology, &job.layout, Some(loads.view()), limits).unwrap();
        plan.waves().iter().any(|wave| wave.needs_agreed_step())
    });
    found.unwrap()
}

fn stayed(reformed: Result<Reformed, EngineError>) -> Stayed {
    match reformed.unwrap() {
        Reformed::Stayed(stayed) => *stayed,
        Reformed::Left { .. } => panic!("nobody leaves"),
    }
}

/// Ranks of which none hears of a decision, and that reform; those that are to fail when they roll forward try again.
fn reformed(fail: bool) -> Vec<Stayed> {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    on_threads(RANKS, |rank| {
        let fate = Arc::new(Fate::default());
        let mut job = job(RANKS, &transport);
        job.settings.hooks = Arc::new(Fated(fate.clone()));
        let new = overwriting(&job, &job.start);
        let session = Session::join(store.clone(), rank, RANKS, &short()).unwrap();
        let mut member = Member::start(session, job).unwrap();
        fate.deaf.store(true, Ordering::SeqCst);
        let error = member.rebalance(&new, &loads()).unwrap_err();
        let EngineError::AtStage { stage: Stage::Moving, error, .. } = error else { panic!("{error}") };
        assert!(matches!(*error, EngineError::Unknown { .. }), "{error}");
        fate.deaf.store(false, Ordering::SeqCst);
        fate.fails.store(fail, Ordering::SeqCst);
        let same = Reform::survivors(&topology(RANKS), &[]);
        if fail {
            let error = member.reform(&same, &mut replan).unwrap_err().to_string();
            assert!(error.contains("planted amid a commit"), "{error}");
        }
        let stayed = stayed(member.reform(&same, &mut replan));
        assert_whole(&member);
        stayed
    })
}

#[test]
fn a_wave_that_was_decided_unheard_is_rolled_forward_by_all() {
    for stayed in reformed(false) {
        assert!(stayed.rolled_forward && stayed.fetched.is_empty(), "{stayed:?}");
    }
}

#[test]
fn slots_of_a_commit_that_failed_when_rolling_forward_are_fetched_anew() {
    for stayed in reformed(true) {
        assert!(!stayed.rolled_forward);
        assert_eq!(stayed.fetched.len(), LAYERS * EXPERTS, "nobody knows what it holds");
    }
}
