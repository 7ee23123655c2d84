//! A fault of eplb itself: the engine's own thread panics. The host hears of it by name, and waits for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use eplb_comm::intercept::{Intercept, Intercepted};
use eplb_comm::store::{InProcessStore, InterceptedStore, Store, StoreError, StoreIntercept, StoreOp};
use eplb_comm::{CommError, Communicator, Progress, Ticket};
use eplb_core::RankId;
use eplb_engine::EngineError;
use eplb_engine::engine::{Engine, State};
use eplb_engine::process::{LocalTransport, Meeting, Transport};

use super::control::until;
use super::support::{LONG, Threads, config, count};

/// Panics in the thread that polls, which is the engine's own.
#[derive(Debug)]
struct Polled;

impl Intercept for Polled {
    fn poll(&mut self, _: &mut dyn Communicator, _: Ticket) -> Result<Progress, CommError> {
        panic!("planted in a poll");
    }
}

#[derive(Debug)]
struct PanicsOnRank0(Arc<LocalTransport>);

impl Transport for PanicsOnRank0 {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        let rank = meeting.rank;
        let made = self.0.connect(meeting)?;
        Ok(if rank == RankId(0) { Box::new(Intercepted::new(made, Polled)) } else { made })
    }
}

/// What the host of a rank whose thread panics finds.
fn assert_told(engine: &Engine, words: &str) {
    until("the panic", || matches!(engine.state(), State::Failed { .. }));
    let told = engine.state().to_string();
    assert!(told.contains("the progress thread panicked") && told.contains(words), "{told}");
    assert!(engine.rebalance_now().unwrap_err().to_string().contains(words));
    // Each with a minute, which none of them takes: that would be another error.
    for call in [Engine::quiesce, Engine::reform] {
        let error = call(engine, LONG).unwrap_err();
        assert!(matches!(error, EngineError::State { .. }) && error.to_string().contains(words), "{error}");
    }
    assert!(engine.wait_round(100, LONG).unwrap_err().to_string().contains(words));
    assert!(engine.metrics(false).contains("cause=\"the progress thread panicked"));
    for _ in 0..2 {
        let error = engine.shutdown(LONG).unwrap_err();
        assert!(
            matches!(error, EngineError::Panicked { .. }) && error.to_string().contains(words),
            "{error}"
        );
        assert_eq!(engine.state(), State::Stopped);
    }
}

#[test]
fn a_panic_amid_an_exchange_is_named_and_nothing_waits_for_its_thread() {
    let transport = Arc::new(PanicsOnRank0(LocalTransport::new(1)));
    let threads = Threads { transport, ..Threads::new(2) };
    let told = AtomicBool::new(false);
    threads.run(|rank| {
        let (engine, set) = threads.engine(rank, config());
        count(&engine, set, 0, 1);
        engine.rebalance_now().unwrap();
        let mut step = 0;
        until("the end of the rounds", || {
            // Refused from the step on that the other rank may switch maps at.
            drop(engine.step(step));
            step += 1;
            std::thread::sleep(std::time::Duration::from_micros(200));
            match rank.0 {
                0 => matches!(engine.state(), State::Failed { .. }),
                _ => told.load(Ordering::SeqCst),
            }
        });
        if rank.0 == 0 {
            assert_told(&engine, "planted in a poll");
            // Passes go on by the maps in force, or are refused; none waits.
            drop(engine.step(step));
            told.store(true, Ordering::SeqCst);
        } else {
            engine.shutdown(LONG).unwrap();
        }
    });
}

/// Panics where rank 1 waits for a round, when it is told to.
#[derive(Debug, Clone)]
struct Waiting(Arc<AtomicBool>);

impl StoreIntercept for Waiting {
    fn before(&self, operation: StoreOp, keys: &[&str]) -> Result<(), StoreError> {
        let waits = operation == StoreOp::WaitChange && keys.iter().any(|key| key.ends_with("/engine/round"));
        assert!(!waits || !self.0.load(Ordering::SeqCst), "planted in a wait");
        Ok(())
    }
}

#[test]
fn a_panic_while_nothing_moves_reaches_the_other_ranks_too() {
    let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
    let panics = Arc::new(AtomicBool::new(false));
    let threads = Threads { store: store.clone(), ..Threads::new(2) };
    let faulty = Arc::new(InterceptedStore::new(store, Waiting(panics.clone())));
    let faulty = Threads { store: faulty, transport: threads.transport.clone(), ..Threads::new(2) };
    threads.run(|rank| {
        let (engine, _) = if rank.0 == 1 { &faulty } else { &threads }.engine(rank, config());
        if rank.0 == 1 {
            panics.store(true, Ordering::SeqCst);
            assert_told(&engine, "planted in a wait");
            return;
        }
        until("the failure of the other", || matches!(engine.state(), State::Failed { .. }));
        let cause = engine.state().to_string();
        assert!(cause.contains(&RankId(1).to_string()) && cause.contains("planted in a wait"), "{cause}");
        engine.shutdown(LONG).unwrap();
    });
}
