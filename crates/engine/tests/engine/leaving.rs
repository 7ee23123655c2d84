//! A rank that is told to end, or to form a new epoch, while it waits for another that does not come: that one may be gone for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::store::{InterceptedStore, Store, StoreError, StoreIntercept, StoreOp};
use eplb_core::RankId;
use eplb_engine::EngineError;
use eplb_engine::engine::{Engine, EngineConfig, SetId, State};
use eplb_engine::process::MadeUp;

use super::control::until;
use super::support::{LONG, Threads, config, count, fill, wrong};

/// What a rank hears of the others.
#[derive(Debug, Default)]
struct Ears {
    /// It hears of no round, and so comes to nothing that the leading rank announces.
    deaf: AtomicBool,
    /// Waits for the entries of others in a collective, so far.
    waits: AtomicUsize,
    /// The fault to be noticed: such a wait does not look up until this is lowered again.
    stubborn: AtomicBool,
}

#[derive(Debug, Clone)]
struct Heard(Arc<Ears>);

impl StoreIntercept for Heard {
    fn wait(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        if keys.iter().any(|key| key.contains("/group/")) {
            self.0.waits.fetch_add(1, Ordering::SeqCst);
            while self.0.stubborn.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        inner.wait(keys, deadline)
    }

    fn wait_change(
        &self,
        inner: &dyn Store,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if key.ends_with("/engine/round") && self.0.deaf.load(Ordering::SeqCst) {
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
            let keys = vec![key.to_owned()];
            return Err(StoreError::Timeout { op: StoreOp::WaitChange, keys, waited: Duration::ZERO });
        }
        inner.wait_change(key, known, deadline)
    }
}

/// Deadlines that are no way out: what is left is what the rank is told.
fn patient() -> EngineConfig {
    let mut config = config();
    for name in ["store.collective", "store.join", "store.peer_timeout", "communicator"] {
        config.deadlines.insert(name.into(), 3_600_000);
    }
    config
}

/// What a rank does amid that: its engine, the ears of both, and how it waits until the other is done.
type Deed<'a> = &'a (dyn Fn(&Engine, &[Arc<Ears>; 2], &dyn Fn()) + Sync);

/// Has rank 0 wait for rank 1 to connect, which does not hear of it; then each does what is given.
fn amid_connecting(stubborn: bool, then: [Deed<'_>; 2]) {
    let threads = Threads::new(2);
    let ears: [Arc<Ears>; 2] = Default::default();
    let waits = AtomicBool::new(false);
    let done: [AtomicBool; 2] = Default::default();
    threads.run(|rank| {
        let at = rank.index();
        let store = Arc::new(InterceptedStore::new(threads.store.clone(), Heard(ears[at].clone())));
        let mine = Threads { ranks: 2, store, transport: threads.transport.clone() };
        let (mut builder, set) = mine.builder(rank, patient());
        builder.source(Arc::new(MadeUp));
        let engine = builder.start().unwrap();
        fill(&engine, set);
        if rank == RankId(0) {
            ears[1].deaf.store(true, Ordering::SeqCst);
            engine.quiesce(LONG).unwrap();
            let before = ears[0].waits.load(Ordering::SeqCst);
            ears[0].stubborn.store(stubborn, Ordering::SeqCst);
            engine.reopen(LONG).unwrap();
            until("the wait", || ears[0].waits.load(Ordering::SeqCst) > before);
            waits.store(true, Ordering::SeqCst);
        }
        until("the wait of rank 0", || waits.load(Ordering::SeqCst));
        then[at](&engine, &ears, &|| until("the other rank", || done[1 - at].load(Ordering::SeqCst)));
        done[at].store(true, Ordering::SeqCst);
        assert_eq!(wrong(&engine, set), 0);
    });
}

/// One round, which both ranks have ended when this returns.
fn one_round(engine: &Engine, ended: &AtomicUsize) {
    if engine.rank() == RankId(0) {
        count(engine, SetId(0), 0, 1);
        engine.rebalance_now().unwrap();
    }
    let (mut step, mut told) = (0, false);
    until("a round on both ranks", || {
        // The other may need this rank's steps.
        engine.step(step).unwrap();
        step += 1;
        if engine.rounds() > 0 && !told {
            told = true;
            ended.fetch_add(1, Ordering::SeqCst);
        }
        ended.load(Ordering::SeqCst) == 2
    });
}

#[test]
fn a_rank_that_ends_waits_for_nobody_to_connect_and_says_that_it_has_gone() {
    let ends = |engine: &Engine, _: &[Arc<Ears>; 2], _: &dyn Fn()| engine.shutdown(LONG).unwrap();
    let comes = |engine: &Engine, ears: &[Arc<Ears>; 2], other: &dyn Fn()| {
        other();
        // Silence would be noticed too, and later.
        ears[1].deaf.store(false, Ordering::SeqCst);
        until("the failure", || matches!(engine.state(), State::Failed { .. }));
        let State::Failed { cause } = engine.state() else { unreachable!() };
        assert!(cause.contains("rank 0"), "{cause}");
        engine.shutdown(LONG).unwrap();
    };
    amid_connecting(false, [&ends, &comes]);
}

#[test]
fn a_rank_that_forms_an_epoch_waits_for_nobody_to_connect_in_the_old_one() {
    let ended = AtomicUsize::new(0);
    let reforms = |engine: &Engine, ears: &[Arc<Ears>; 2], _: &dyn Fn()| {
        engine.reform(LONG).unwrap();
        ears[1].deaf.store(false, Ordering::SeqCst);
        one_round(engine, &ended);
    };
    amid_connecting(false, [&reforms, &reforms]);
}

#[test]
fn a_rank_that_has_ended_is_waited_for_by_nobody() {
    let threads = Threads::new(2);
    let (gone, ended) = (AtomicBool::new(false), AtomicUsize::new(0));
    threads.run(|rank| {
        // Rounds that need no step, and are not tried again.
        let (engine, _) = threads.engine(rank, EngineConfig { dry_run: true, ..patient() });
        // What rank 1 has shown of itself stays when it has gone: that it is ready to connect.
        one_round(&engine, &ended);
        if rank == RankId(1) {
            engine.shutdown(LONG).unwrap();
            gone.store(true, Ordering::SeqCst);
            return;
        }
        until("the end of rank 1", || gone.load(Ordering::SeqCst));
        engine.quiesce(LONG).unwrap();
        engine.reopen(LONG).unwrap();
        until("the failure", || matches!(engine.state(), State::Failed { .. }));
        let State::Failed { cause } = engine.state() else { unreachable!() };
        assert!(cause.contains("rank 1 gave up") && cause.contains("shut down"), "{cause}");
    });
}

#[test]
fn a_commit_that_waits_for_no_step_is_made_while_the_host_waits() {
    let threads = Threads::new(2);
    let switched = AtomicBool::new(false);
    let mut config = patient();
    // One expert, to a slot that was drained: nothing is overwritten that is in service, and each rank switches at a boundary of its own.
    (config.budget.moves, config.drain_floor) = (Some(1), 1.0);
    let maps = threads.run(|rank| {
        let (engine, set) = threads.engine(rank, config.clone());
        let start = engine.maps(set);
        let is_filled = || {
            let now = engine.maps(set);
            now.phy2log.iter().zip(&start.phy2log).any(|(now, old)| now != old && *now >= 0)
        };
        let is_drained = || engine.maps(set).phy2log.iter().any(|&expert| expert < 0);
        // The copies wait on each rank until steps before those of the drains are over. Rank 1 drains at a low one and is past all of
        // them then, so that rank 0 need not go on.
        if rank == RankId(0) {
            count(&engine, set, 0, 1);
            engine.rebalance_now().unwrap();
            let mut steps = 1_000_000..;
            until("drained slots", || {
                engine.step(steps.next().unwrap()).unwrap();
                is_drained()
            });
            until("the commit of rank 1", || switched.load(Ordering::SeqCst));
            assert!(!is_filled(), "this rank came to no boundary");
        } else {
            let (mut low, mut high) = (0.., 2_000_000..);
            until("a commit", || {
                let step = if is_drained() { high.next() } else { low.next() };
                engine.step(step.unwrap()).unwrap();
                assert!(!matches!(engine.state(), State::Armed { .. }), "a step was agreed on");
                is_filled()
            });
            switched.store(true, Ordering::SeqCst);
        }
        engine.quiesce(LONG).unwrap();
        assert!(is_filled() && wrong(&engine, set) == 0);
        let report = engine.last_report(set).unwrap();
        assert!(report.committed >= 1 && report.moves > 0, "{report:?}");
        engine.maps(set).phy2log.clone()
    });
    assert_eq!(maps[0], maps[1]);
}

#[test]
fn a_wait_that_cannot_be_left_is_noticed() {
    let ends = |engine: &Engine, ears: &[Arc<Ears>; 2], _: &dyn Fn()| {
        let late = engine.shutdown(Duration::from_millis(300));
        assert!(matches!(late, Err(EngineError::Late { call: "shutdown", .. })), "{late:?}");
        ears[0].stubborn.store(false, Ordering::SeqCst);
        engine.shutdown(LONG).unwrap();
    };
    let stays = |engine: &Engine, _: &[Arc<Ears>; 2], other: &dyn Fn()| {
        other();
        engine.shutdown(LONG).unwrap();
    };
    amid_connecting(true, [&ends, &stays]);
}
