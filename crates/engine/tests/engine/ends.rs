//! What an engine must not say too early: that it has ended, and that steps may run again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use eplb_comm::host::{HostFence, HostMemory, HostStream, StreamOptions};
use eplb_comm::{CommError, Communicator, Fence, Stream};
use eplb_core::{RankId, SlotCommit, Topology, metrics};
use eplb_engine::EngineError;
use eplb_engine::engine::{Engine, State};
use eplb_engine::process::{LocalTransport, MadeUp, Meeting, Transport};

use super::control::until;
use super::support::{EXPERTS, LAYERS, LONG, SLOTS, Threads, config, count, counts, fill, wrong};

/// What a test does to the commits of a stream.
#[derive(Debug, Default)]
struct Will {
    /// Commits run behind this.
    gate: Option<Arc<HostFence>>,
    /// Commits fail.
    fails: AtomicBool,
    /// Behind the last commit.
    last: Mutex<Option<Fence>>,
}

#[derive(Debug)]
struct Willed {
    inner: HostStream,
    will: Arc<Will>,
}

impl Stream for Willed {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        if self.will.fails.load(Ordering::SeqCst) {
            let end = HostFence::new();
            end.fail(CommError::Aborted { rank: self.inner.rank(), cause: "planted".into() });
            return Ok(end.fence());
        }
        if let Some(gate) = &self.will.gate {
            self.inner.wait(&gate.fence())?;
        }
        let done = self.inner.commit(commits)?;
        *self.will.last.lock().unwrap() = Some(done.clone());
        Ok(done)
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        self.inner.record()
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        self.inner.wait(fence)
    }
}

/// An engine whose stream does what `will` says.
fn start(threads: &Threads, rank: RankId, will: &Arc<Will>) -> (Engine, eplb_engine::engine::SetId) {
    let (mut builder, set) = threads.builder(rank, config());
    let will = will.clone();
    let make = move |memory: Arc<HostMemory>| -> Box<dyn Stream> {
        let inner = HostStream::new(memory, StreamOptions::default()).unwrap();
        Box::new(Willed { inner, will })
    };
    builder.stream_on(set, make).unwrap();
    builder.source(Arc::new(MadeUp));
    let engine = builder.start().unwrap();
    fill(&engine, set);
    (engine, set)
}

#[test]
fn a_shutdown_waits_for_copies_that_a_commit_has_enqueued() {
    let threads = Threads::new(2);
    let gate = HostFence::new();
    let will = Arc::new(Will { gate: Some(gate.clone()), ..Will::default() });
    let (filled, over) = (Barrier::new(2), AtomicBool::new(false));
    threads.run(|rank| {
        let mine = if rank.0 == 0 { will.clone() } else { Arc::default() };
        let (engine, set) = start(&threads, rank, &mine);
        filled.wait();
        count(&engine, set, 0, 1);
        engine.rebalance_now().unwrap();
        let committing = || will.last.lock().unwrap().is_some();
        let mut step = 0;
        until("a commit", || {
            // Steps are refused once the other rank has gone.
            drop(engine.step(step));
            step += 1;
            if rank.0 == 0 { committing() } else { over.load(Ordering::SeqCst) }
        });
        if rank.0 == 1 {
            drop(engine.shutdown(Duration::from_millis(100)));
            return;
        }
        let early = engine.shutdown(Duration::from_millis(400));
        assert!(matches!(early, Err(EngineError::Late { .. })), "{early:?} while copies are held back");
        assert_eq!(engine.state(), State::Stopped);
        gate.pass();
        engine.shutdown(LONG).unwrap();
        let last = will.last.lock().unwrap().take().unwrap();
        assert_eq!(last.poll(), Ok(true), "the copies have run");
        over.store(true, Ordering::SeqCst);
    });
}

/// Meetings that fail when they are told to.
#[derive(Debug)]
struct Unreliable {
    inner: Arc<LocalTransport>,
    fails: AtomicBool,
}

impl Transport for Unreliable {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(EngineError::Backend { backend: "local", detail: "planted".into() });
        }
        self.inner.connect(meeting)
    }
}

#[test]
fn a_reform_that_fails_half_way_lets_no_step_past() {
    let transport = Arc::new(Unreliable { inner: LocalTransport::new(1), fails: AtomicBool::new(false) });
    let threads = Threads { transport: transport.clone(), ..Threads::new(2) };
    let came: [AtomicUsize; 4] = Default::default();
    // No barrier, so that a rank that fails does not hold the other for ever.
    let meet = |turn: usize| {
        came[turn].fetch_add(1, Ordering::SeqCst);
        until("the other rank", || came[turn].load(Ordering::SeqCst) == 2);
    };
    let will = Arc::new(Will { fails: AtomicBool::new(true), ..Will::default() });
    threads.run(|rank| {
        let mine = if rank.0 == 0 { will.clone() } else { Arc::default() };
        let (engine, set) = start(&threads, rank, &mine);
        meet(0);
        count(&engine, set, 0, 1);
        engine.rebalance_now().unwrap();
        let mut step = 0;
        let mut refused = None;
        until("the end of the round", || {
            refused = engine.step(step).err();
            step += 1;
            refused.is_some() && matches!(engine.state(), State::Failed { .. })
        });
        assert!(matches!(refused, Some(EngineError::Broken { .. })), "{refused:?}");
        meet(1);
        transport.fails.store(true, Ordering::SeqCst);
        engine.reform(LONG).unwrap_err();
        let refused = engine.step(step).unwrap_err();
        // A rank that heard of the other's failure first has changed nothing, and keeps its bar.
        let barred = matches!(refused, EngineError::Unformed { .. } | EngineError::Broken { .. });
        assert!(barred, "{refused}");
        meet(2);
        will.fails.store(false, Ordering::SeqCst);
        transport.fails.store(false, Ordering::SeqCst);
        // The other may still be telling why the last attempt failed.
        until("a new epoch", || engine.reform(LONG).is_ok());
        engine.step(step + 1).unwrap();
        assert_eq!(wrong(&engine, set), 0);
        let maps = engine.maps(set);
        for (layer, expert) in (0..LAYERS).flat_map(|layer| (0..EXPERTS).map(move |expert| (layer, expert))) {
            let held = maps.phy2log.row(layer).iter().any(|&holds| holds == expert as i32);
            assert!(held, "layer {layer} has no expert {expert} any more: {:?}", maps.phy2log);
        }
        meet(3);
    });
}

#[test]
fn a_new_epoch_counts_and_asks_anew() {
    let threads = Threads::new(2);
    let (gone, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    threads.run(|rank| {
        // Plans alone, so that the placement stays what it is.
        let mut config = eplb_engine::EngineConfig { dry_run: true, ..config() };
        config.deadlines.insert("store.peer_timeout".into(), 4_000);
        let start = || {
            let (mut builder, set) = threads.builder(rank, config.clone());
            builder.source(Arc::new(MadeUp));
            (builder.start().unwrap(), set)
        };
        let (engine, set) = start();
        fill(&engine, set);
        let round = |engine: &Engine, rounds: u64| until("a round", || engine.rounds() > rounds);
        // A round that rank 0 asks for, which alone counts, and one that rank 1 asks for.
        if rank.0 == 0 {
            count(&engine, set, 0, 1);
            engine.rebalance_now().unwrap();
        }
        round(&engine, 0);
        if rank.0 == 1 {
            engine.rebalance_now().unwrap();
        }
        round(&engine, 1);
        if rank.0 == 1 {
            done.fetch_add(1, Ordering::SeqCst);
            until("the last round on the other rank", || done.load(Ordering::SeqCst) == 2);
            drop(engine);
            until("the failure on the other rank", || gone.load(Ordering::SeqCst));
            let (engine, _) = start();
            round(&engine, 0);
            done.fetch_add(1, Ordering::SeqCst);
            until("the end", || done.load(Ordering::SeqCst) == 4);
            return;
        }
        done.fetch_add(1, Ordering::SeqCst);
        until("the failure", || matches!(engine.state(), State::Failed { .. }));
        gone.store(true, Ordering::SeqCst);
        engine.reform(LONG).unwrap();
        let rounds = engine.rounds();
        count(&engine, set, 0, 2);
        engine.rebalance_now().unwrap();
        round(&engine, rounds);
        // Planned on what was counted in both epochs, each once.
        let loads = (counts(1) + counts(2)).mapv(|tokens| tokens as f64);
        let topology = Topology::uniform(2, SLOTS).unwrap();
        let expected = metrics::balancedness(loads.view(), &engine.placement(set).unwrap(), None, &topology)
            .unwrap()
            .mean;
        let report = engine.last_report(set).unwrap();
        assert!((report.before - expected).abs() < 1e-9, "{expected} of {report:?}");
        done.fetch_add(1, Ordering::SeqCst);
        until("the end", || done.load(Ordering::SeqCst) == 4);
    });
}
