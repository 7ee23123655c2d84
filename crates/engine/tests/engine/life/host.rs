//! The host of one rank: it carries out its part of a script and judges what the engine answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::Memory;
use eplb_core::{ExpertId, LayerId, RankId, SlotId};
use eplb_engine::EngineError;
use eplb_engine::engine::{Counts, Engine, Pass, SetId, State};
use fastrand::Rng;
use ndarray::Array2;

use super::Case;
use super::script::Act;
use super::trouble::Planted;

/// What all ranks of a case know of each other.
#[derive(Debug, Default)]
pub(super) struct Doings {
    /// Reforms that hosts have asked for, and ends: the most that one of them has got to. What is under way on the others may fail from then on.
    disturbed: AtomicUsize,
    /// What there was of everything, so that a test can say that there was enough.
    pub(super) rounds: AtomicU64,
    pub(super) struck: AtomicU64,
    pub(super) refused: AtomicU64,
    /// The last step of any rank.
    latest: AtomicU64,
}

impl Doings {
    fn disturb(&self, epoch: usize) {
        self.disturbed.fetch_max(epoch + 1, Ordering::SeqCst);
    }

    fn is_disturbed(&self, epoch: usize) -> bool {
        self.disturbed.load(Ordering::SeqCst) > epoch
    }
}

/// See the [module](self).
pub(super) struct Host<'a> {
    case: &'a Case,
    rank: RankId,
    engine: Option<(Arc<Engine>, SetId)>,
    draw: Rng,
    /// The last step, whatever engine ran it.
    step: u64,
    /// Reforms of the script that this rank is through.
    epoch: usize,
    /// A step was refused, and none may run before the next epoch.
    barred: bool,
    /// Sleep after a step.
    pace: Duration,
}

/// What a host finds that must not be, in words.
pub(super) type Finding = String;

/// The placement that a rank ends with; `None` where it does not know what the others have committed.
pub(super) type Left = Option<Array2<i32>>;

impl<'a> Host<'a> {
    pub(super) fn new(case: &'a Case, rank: RankId) -> Self {
        let mut draw = Rng::with_seed(case.script.seed.wrapping_mul(31).wrapping_add(u64::from(rank.0)));
        let pace = Duration::from_micros(draw.u64(..300));
        Self { case, rank, engine: None, draw, step: 0, epoch: 0, barred: false, pace }
    }

    /// Everything from the start to the end.
    pub(super) fn live(&mut self) -> Result<Left, Finding> {
        self.start()?;
        for (at, &act) in self.case.script.acts[self.rank.index()].iter().enumerate() {
            let begun = Instant::now();
            let done = self.perform(act);
            done.map_err(|why| {
                let (rank, took) = (self.rank, begun.elapsed());
                format!("{rank}, act {at} {act:?} after {took:?}: {why}{}", self.engine_says())
            })?;
        }
        let Some((engine, set)) = &self.engine else { return Ok(None) };
        // What is in force and not published yet.
        let ticked = engine.tick();
        self.check_bytes()?;
        Ok((!self.barred && ticked.is_ok()).then(|| engine.maps(*set).phy2log.clone()))
    }

    /// Where the engine is, and what it has counted as errors.
    fn engine_says(&self) -> String {
        let Some((engine, set)) = &self.engine else { return String::new() };
        std::thread::sleep(Duration::from_millis(300));
        let last = engine.last_report(*set).map(|report| report.outcome);
        let metrics = engine.metrics(false);
        let errors = metrics.lines().filter(|line| line.starts_with("eplb_errors_total"));
        format!(
            "; it is {}; the last round {last:?}; {}",
            engine.state(),
            errors.collect::<Vec<_>>().join("; ")
        )
    }

    fn perform(&mut self, act: Act) -> Result<(), Finding> {
        match act {
            Act::Start => self.start(),
            Act::Serve(steps) => (0..steps).try_for_each(|_| self.serve()),
            Act::ServeRound => self.serve_round(),
            Act::Demand => self.ask("rebalance_now", |engine, _| engine.rebalance_now().map(drop)),
            Act::Pause => self.ask("pause", |engine, _| engine.pause()),
            Act::Resume => self.ask("resume", |engine, _| engine.resume()),
            Act::Quiesce => {
                self.ask("quiesce", Engine::quiesce)?;
                self.check_bytes()
            }
            Act::Reopen => self.ask("reopen", Engine::reopen),
            Act::Reform => self.reform(),
            Act::ReformBriefly => {
                self.case.doings.disturb(self.epoch);
                // All may have come all the same.
                let moment = Duration::from_millis(self.draw.u64(..30));
                drop(self.engine()?.0.reform(moment));
                self.barred = true;
                Ok(())
            }
            Act::Shutdown => self.shutdown(),
        }
    }

    fn engine(&self) -> Result<&(Arc<Engine>, SetId), Finding> {
        self.engine.as_ref().ok_or_else(|| "there is no engine".to_owned())
    }

    fn start(&mut self) -> Result<(), Finding> {
        let builder = self.case.builder(self.rank);
        let (builder, set) = builder.map_err(|error| format!("the builder: {error}"))?;
        let engine = Arc::new(builder.start().map_err(|error| format!("the start: {error}"))?);
        self.case.aside.show(self.rank.index(), &engine);
        self.engine = Some((engine, set));
        if self.case.planted() == Planted::WrongBytes {
            let (engine, set) = self.engine()?;
            let slot = engine.memory(*set).slots().start;
            let other = ExpertId(((slot + 1) % self.case.script.experts) as u32);
            engine
                .memory(*set)
                .fill(LayerId(0), SlotId::at(slot), other)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// One step, its pass, and what was counted in it.
    fn serve(&mut self) -> Result<(), Finding> {
        std::thread::sleep(self.pace);
        // Ranks serve the same passes, so that none is far behind.
        self.step = (self.step + 1).max(self.case.doings.latest.load(Ordering::Relaxed).saturating_sub(16));
        self.case.doings.latest.fetch_max(self.step, Ordering::Relaxed);
        let step = self.step;
        let (engine, set) = self.engine()?;
        if self.barred {
            return engine.tick().map_err(|error| format!("a tick: {error}"));
        }
        match engine.step(step) {
            Ok(()) => {}
            Err(EngineError::Undecided { .. } | EngineError::Unformed { .. }) if self.is_disturbed() => {
                self.case.doings.refused.fetch_add(1, Ordering::Relaxed);
                self.barred = true;
                return Ok(());
            }
            Err(error) => return Err(format!("step {step}: {error}")),
        }
        let (turn, script) = (step as usize / 8, &self.case.script);
        let counts = Array2::from_shape_fn((script.layers, script.experts), |(layer, expert)| {
            let hot = (turn * 5 + layer) % script.experts;
            if expert == hot { 300u64 } else { 10 + ((expert * 7 + turn * 3) % 11) as u64 }
        });
        let pass = Pass { step, ..Pass::default() };
        engine
            .record(*set, &pass, Counts::Experts(counts.view()))
            .map_err(|error| format!("a record: {error}"))?;
        if step.is_multiple_of(4) { self.check_bytes() } else { Ok(()) }
    }

    fn serve_round(&mut self) -> Result<(), Finding> {
        let before = self.engine()?.0.rounds();
        let begun = Instant::now();
        loop {
            let engine = &self.engine()?.0;
            if engine.rounds() > before {
                return Ok(());
            }
            if self.is_disturbed() || self.barred {
                return Ok(());
            }
            if let State::Failed { cause } = engine.state() {
                return Err(format!("it failed, and nobody has left: {cause}"));
            }
            if begun.elapsed() > self.case.limit {
                return Err("no round came".into());
            }
            self.serve()?;
        }
    }

    /// Whether another rank has gone on to what this rank may fail by.
    fn is_disturbed(&self) -> bool {
        self.case.doings.is_disturbed(self.epoch)
    }

    /// A call that nobody but a rank that has gone on may spoil.
    fn ask(
        &self,
        call: &str,
        ask: impl Fn(&Engine, Duration) -> Result<(), EngineError>,
    ) -> Result<(), Finding> {
        match ask(&self.engine()?.0, self.case.limit) {
            Ok(()) => Ok(()),
            Err(EngineError::State { .. }) if self.is_disturbed() => Ok(()),
            Err(error) => Err(format!("{call}: {error}")),
        }
    }

    fn reform(&mut self) -> Result<(), Finding> {
        self.case.doings.disturb(self.epoch);
        let engine = &self.engine()?.0;
        engine.reform(self.case.limit).map_err(|error| format!("a reform: {error}"))?;
        self.epoch += 1;
        self.barred = false;
        Ok(())
    }

    fn shutdown(&mut self) -> Result<(), Finding> {
        self.case.doings.disturb(self.epoch);
        let (engine, limit) = (&self.engine()?.0, self.case.limit);
        if engine.state().is_exchanging() {
            self.case.doings.struck.fetch_add(1, Ordering::Relaxed);
        }
        let begun = Instant::now();
        engine.shutdown(2 * limit).map_err(|error| error.to_string())?;
        // Half of the time is for an orderly end, which waits for nobody who has gone.
        if begun.elapsed() > limit {
            return Err(format!("it ended, but not in order, within {limit:?}"));
        }
        self.case.doings.rounds.fetch_add(engine.rounds(), Ordering::Relaxed);
        if engine.state() != State::Stopped {
            return Err("it is not stopped".into());
        }
        let ticked = engine.tick();
        self.barred |= ticked.is_err();
        self.check_bytes()?;
        // A rank that is started anew comes with the others' next epoch.
        self.epoch += 1;
        Ok(())
    }

    /// Whether each slot that the maps in force name holds its expert.
    fn check_bytes(&self) -> Result<(), Finding> {
        let (engine, set) = self.engine()?;
        let (memory, maps) = (engine.memory(*set), engine.maps(*set));
        for layer in 0..maps.phy2log.nrows() {
            for slot in memory.slots() {
                let Ok(expert) = u32::try_from(maps.phy2log[(layer, slot)]) else { continue };
                let (layer, slot, expert) = (LayerId::at(layer), SlotId::at(slot), ExpertId(expert));
                match memory.count_wrong(layer, slot, expert) {
                    Ok(0) => {}
                    Ok(wrong) => return Err(format!("{wrong} bytes of {layer} {slot} are not {expert}'s")),
                    Err(error) => return Err(format!("{layer} {slot}: {error}")),
                }
            }
        }
        Ok(())
    }
}
