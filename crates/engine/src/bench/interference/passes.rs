//! Forward passes on every rank, and how long each took.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use eplb_core::RankId;
use eplb_cuda::CudaStream;
use eplb_cuda::forward::{Forward, Load, Ticks};

use crate::error::EngineError;

/// Replays that are enqueued ahead: the device never waits for the host, and a commit waits for little.
const AHEAD: usize = 2;

/// What the forward passes run beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Not counted.
    Nothing = 0,
    /// Alone, between exchanges.
    Before = 1,
    /// Beside exchanges.
    Beside = 2,
    /// Alone, between copies.
    After = 3,
    /// Beside plain copies.
    Copies = 4,
    /// Beside plain copies as slow as the exchanges were.
    Paced = 5,
    /// The passes end.
    Over = 6,
}

/// Microseconds of replays of one rank, by part.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples {
    /// Alone, between exchanges.
    pub(super) before: Vec<f64>,
    pub(super) beside: Vec<f64>,
    /// Alone, between copies.
    pub(super) after: Vec<f64>,
    pub(super) copies: Vec<f64>,
    pub(super) paced: Vec<f64>,
}

/// A forward pass on every rank, on a thread of its own.
pub(super) struct Passes {
    part: Arc<AtomicU8>,
    threads: Vec<JoinHandle<Result<Samples, EngineError>>>,
}

impl Passes {
    pub(super) fn start(
        streams: &[Arc<CudaStream>],
        load: Load,
        patience: Duration,
    ) -> Result<Self, EngineError> {
        let part = Arc::new(AtomicU8::new(Part::Nothing as u8));
        let mut passes = Self { part: part.clone(), threads: Vec::new() };
        for (rank, stream) in streams.iter().enumerate() {
            let rank = RankId::at(rank);
            let forward = Forward::capture(stream, load)?;
            let ticks = Ticks::new(stream, AHEAD)?;
            let part = part.clone();
            let thread = std::thread::Builder::new()
                .name(format!("forward-{}", rank.0))
                .spawn(move || replay(rank, forward, ticks, &part, patience))
                .map_err(|error| EngineError::RankLost { rank, detail: format!("no thread: {error}") })?;
            passes.threads.push(thread);
        }
        Ok(passes)
    }

    pub(super) fn set(&self, part: Part) {
        self.part.store(part as u8, Ordering::Release);
    }

    pub(super) fn finish(mut self) -> Result<Vec<Samples>, EngineError> {
        self.set(Part::Over);
        let mut samples = Vec::new();
        for (rank, thread) in self.threads.drain(..).enumerate() {
            let detail = "its forward pass panicked".into();
            let lost = |_| EngineError::RankLost { rank: RankId::at(rank), detail };
            samples.push(thread.join().map_err(lost)??);
        }
        Ok(samples)
    }
}

impl Drop for Passes {
    fn drop(&mut self) {
        self.set(Part::Over);
        for thread in self.threads.drain(..) {
            // A rank that panicked has been reported as lost.
            drop(thread.join());
        }
    }
}

/// Replays until it is over. A replay counts for a part if that was on when it was enqueued and when it had run.
fn replay(
    rank: RankId,
    mut forward: Forward,
    mut ticks: Ticks,
    part: &AtomicU8,
    patience: Duration,
) -> Result<Samples, EngineError> {
    let mut samples = Samples::default();
    let mut enqueued = VecDeque::new();
    let mut last = Instant::now();
    ticks.mark()?;
    loop {
        let now = part.load(Ordering::Acquire);
        if now == Part::Over as u8 {
            return Ok(samples);
        }
        while ticks.open() < AHEAD {
            forward.launch()?;
            ticks.mark()?;
            enqueued.push_back(now);
        }
        if let Some(microseconds) = ticks.take()? {
            last = Instant::now();
            let began = enqueued.pop_front();
            let series = [
                (Part::Before, &mut samples.before),
                (Part::Beside, &mut samples.beside),
                (Part::After, &mut samples.after),
                (Part::Copies, &mut samples.copies),
                (Part::Paced, &mut samples.paced),
            ];
            for (which, series) in series {
                if now == which as u8 && began == Some(now) {
                    series.push(microseconds);
                }
            }
        } else if last.elapsed() > patience {
            let what = "a forward pass beside an exchange".into();
            return Err(eplb_comm::CommError::Timeout { rank, what, waited: patience }.into());
        }
        std::thread::yield_now();
    }
}
