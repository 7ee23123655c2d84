//! A second thread of the hosts: what may be asked for from any thread at any time, while the first steps, reforms or ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use eplb_engine::EngineError;
use eplb_engine::engine::{Engine, SetId, State};
use fastrand::Rng;

use super::host::Finding;

/// The engines of a case, for the second thread.
#[derive(Debug)]
pub(super) struct Aside {
    engines: Vec<Mutex<Weak<Engine>>>,
    over: AtomicBool,
}

impl Aside {
    pub(super) fn new(ranks: usize) -> Self {
        Self { engines: (0..ranks).map(|_| Mutex::default()).collect(), over: AtomicBool::new(false) }
    }

    /// A rank has started.
    pub(super) fn show(&self, rank: usize, engine: &Arc<Engine>) {
        *self.engines[rank].lock().unwrap() = Arc::downgrade(engine);
    }

    /// All hosts are through.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Asks this and that until all hosts are through.
    pub(super) fn run(&self, seed: u64) -> Result<(), Finding> {
        let mut draw = Rng::with_seed(seed);
        while !self.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_micros(draw.u64(..1_500)));
            let engine = self.engines[draw.usize(..self.engines.len())].lock().unwrap().upgrade();
            if let Some(engine) = engine {
                let call = draw.u32(..5);
                ask(&engine, call)
                    .map_err(|error| format!("aside, call {call} on {}: {error}", engine.rank()))?;
            }
        }
        Ok(())
    }
}

fn ask(engine: &Engine, call: u32) -> Result<(), EngineError> {
    let set = SetId(0);
    let asked = match call {
        // Both, so that rounds go on.
        0 => engine.pause().and_then(|()| engine.resume()),
        1 => engine.rebalance_now().map(drop),
        2 => engine.wait_round(engine.rounds(), Duration::from_micros(200)).map(drop),
        3 => engine.placement(set).and_then(|_| engine.counted(set)).map(drop),
        _ => {
            let text = engine.metrics(true);
            assert!(!text.is_empty() && engine.last_report(set).is_none_or(|report| report.round > 0));
            Ok(())
        }
    };
    let ends =
        [State::Stopped, State::Quiesced, State::Failed { cause: String::new() }].map(|state| state.name());
    match asked {
        Err(EngineError::Late { .. }) if call == 2 => Ok(()),
        // It has ended, failed or closed meanwhile; the first thread says whether it might.
        Err(EngineError::State { state, .. }) if ends.iter().any(|end| state.starts_with(end)) => Ok(()),
        other => other,
    }
}
