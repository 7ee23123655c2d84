//! What an exchange costs the forward pass beside it, and the forward pass the exchange.
//!
//! Each rank replays a captured matrix product on its compute stream without pause, on which the commits of the exchange run too. Its
//! time is measured on the device from one replay to the next, alone, beside exchanges without pause, and alone again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use eplb_core::{Fill, ModelLayout, Placement, RankId, Topology};
use eplb_cuda::CudaStream;
use eplb_cuda::forward::{self, Forward, Load, Ticks};
use eplb_exchange::ExchangePlan;

use super::links::{self, Which};
use super::threads::Threads;
use super::{ExchangeBench, Setup, Team, ports, ranks};
use crate::error::EngineError;

/// Replays that are enqueued ahead: the device never waits for the host, and a commit waits for little.
const AHEAD: usize = 2;

/// Most exchanges of one part; they are planned before it begins.
const MOST_EXCHANGES: usize = 400;

/// What was measured, over all ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct InterferenceReport {
    /// Median time of a replay with nothing beside it, on the rank where it is longest, microseconds.
    pub alone_us: f64,
    /// The same after the exchanges: how far the device itself drifted.
    pub alone_again_us: f64,
    /// Median beside exchanges, on the rank where it is longest; commits fall into few replays and do not show here.
    pub beside_us: f64,
    /// Largest over ranks of the median beside over the mean of the medians before and after.
    pub slowdown: f64,
    /// The same with means in place of medians: commits included.
    pub slowdown_with_commits: f64,
    /// Time that commits took from the forward pass, per wave, on the rank where it was most, microseconds: what the mean is above the
    /// median, times replays, over waves.
    pub stall_us_per_wave: f64,
    /// Replays measured beside exchanges, on the rank with fewest.
    pub replays: usize,
    /// Exchanges beside.
    pub exchanges: usize,
    /// Their waves.
    pub waves: usize,
    /// Bytes over links into the rank that gets most, per second, in 10^9 bytes, while the product ran.
    pub gbps: f64,
    /// The same of exchanges with no product beside.
    pub gbps_alone: f64,
    /// Bytes that the exchanges read and wrote on the device where they were most, per second, in 10^9 bytes: sent, received and
    /// committed.
    pub memory_gbps: f64,
    /// Bytes that a copy inside the device reads and writes per second, in 10^9, on the device where they are fewest, with nothing beside.
    pub copy_gbps: f64,
    /// What an exchange may cost a product that is bound by memory: 1 and 1.2 times the share that [`InterferenceReport::memory_gbps`] is of
    /// [`InterferenceReport::copy_gbps`].
    pub allowed: f64,
    /// The same product beside plain copies of the last exchange's bytes, with no protocol and no commits; `None` where ranks cannot copy
    /// plainly.
    pub copies: Option<BesideCopies>,
    /// Whether every byte was right at the end of the exchanges.
    pub verified: bool,
}

/// A forward pass beside copies of the copy engines, with nothing of ours around them: what an exchange cannot be cheaper than.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BesideCopies {
    /// As [`InterferenceReport::slowdown`].
    pub slowdown: f64,
    /// As [`InterferenceReport::gbps`].
    pub gbps: f64,
    /// As [`InterferenceReport::memory_gbps`].
    pub memory_gbps: f64,
}

/// What a byte may cost a product, as a multiple of its share of the memory's bandwidth.
const ALLOWED: f64 = 1.2;

impl ExchangeBench {
    /// Measures exchanges beside a forward pass, for about `time` in each part. The number of iterations is not used.
    ///
    /// # Errors
    /// As [`ExchangeBench::run`]; ranks are on host memory; there is no cuBLAS.
    pub fn beside_forward(&self, load: Load, time: Duration) -> Result<InterferenceReport, EngineError> {
        let setup = self.setup()?;
        let ranks = ranks::make(self, &setup.topology, &setup.layout, setup.limits.staging_bytes)?;
        let streams: Option<Vec<_>> = ranks.parts.iter().map(|parts| parts.compute.clone()).collect();
        let Some(streams) = streams else {
            return Err(EngineError::Options(
                "a forward pass beside an exchange wants ranks on devices".into(),
            ));
        };
        let mut threads = Threads::start(ranks.parts, &setup, self)?;
        threads.fill()?;
        let mut exchanges = Exchanges { bench: self, setup: &setup, now: setup.start.clone(), round: 0 };
        // Two to warm up; the second says how many fill a part.
        exchanges.run(&mut threads, 1)?;
        let one = exchanges.run(&mut threads, 1)?.seconds;
        let count = ((time.as_secs_f64() / one.max(1e-6)) as usize).clamp(2, MOST_EXCHANGES);
        let quiet = exchanges.run(&mut threads, count)?;
        let mut copy_gbps = f64::INFINITY;
        for stream in &streams {
            copy_gbps = copy_gbps.min(forward::copy_gbps(stream, load.copy_bytes())?);
        }
        let passes = Passes::start(&streams, load, self.patience)?;
        // The device comes to its clocks and temperature.
        std::thread::sleep(time / 2);
        passes.set(Part::Before);
        std::thread::sleep(time);
        passes.set(Part::Nothing);
        let planned = exchanges.plan(count)?;
        passes.set(Part::Beside);
        let moved = exchanges.carry_out(&mut threads, &planned)?;
        passes.set(Part::Nothing);
        std::thread::sleep(time / 4);
        passes.set(Part::After);
        std::thread::sleep(time);
        // Plain copies overwrite slots.
        let wrong = threads.check()?;
        passes.set(Part::Copies);
        let copied = exchanges.copy(&mut threads, planned.last(), time)?;
        passes.set(Part::Nothing);
        std::thread::sleep(time / 4);
        let samples = passes.finish()?;
        let rates = Rates { quiet: &quiet, moved: &moved, copied: copied.as_ref(), copy_gbps };
        Ok(report(&samples, &rates, wrong))
    }
}

/// Exchanges, one after the other.
struct Exchanges<'a> {
    bench: &'a ExchangeBench,
    setup: &'a Setup,
    now: Placement,
    round: usize,
}

/// What a number of exchanges did.
struct Moved {
    exchanges: usize,
    waves: usize,
    seconds: f64,
    /// Over links into the rank that gets most.
    bytes: u64,
    /// Read and written on the device where that is most.
    memory_bytes: u64,
}

impl Moved {
    fn gbps(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e9
    }

    fn memory_gbps(&self) -> f64 {
        self.memory_bytes as f64 / self.seconds / 1e9
    }
}

impl Exchanges<'_> {
    fn plan(&mut self, count: usize) -> Result<Vec<Arc<ExchangePlan>>, EngineError> {
        let mut plans = Vec::new();
        for _ in 0..count {
            let plan = Arc::new(self.bench.plan(self.setup, &self.now, self.round)?);
            self.now = plan.target().clone();
            self.round += 1;
            plans.push(plan);
        }
        Ok(plans)
    }

    fn run(&mut self, threads: &mut Threads, count: usize) -> Result<Moved, EngineError> {
        let plans = self.plan(count)?;
        self.carry_out(threads, &plans)
    }

    /// Copies what a plan carries over links again and again, for so long, with no protocol around it. `None` where ranks cannot.
    fn copy(
        &self,
        threads: &mut Threads,
        plan: Option<&Arc<ExchangePlan>>,
        time: Duration,
    ) -> Result<Option<Moved>, EngineError> {
        let Setup { topology, layout, .. } = self.setup;
        let Some(plan) = plan else { return Ok(None) };
        let transfers = Which::Planned.transfers(plan, topology);
        let (bytes, memory_bytes) = copied_bytes(plan, topology, layout);
        let mut moved = Moved { exchanges: 0, waves: 0, seconds: 0.0, bytes: 0, memory_bytes: 0 };
        let start = Instant::now();
        while start.elapsed() < time {
            let task =
                links::Task::new(&transfers, links::Means::Copies, 1, Instant::now() + threads.patience / 2);
            if threads.copy(&task)?.is_none() {
                return Ok(None);
            }
            moved.exchanges += 1;
            moved.bytes += bytes;
            moved.memory_bytes += memory_bytes;
        }
        moved.seconds = start.elapsed().as_secs_f64();
        Ok(Some(moved))
    }

    /// Carries out plans without a pause between them.
    fn carry_out(&self, threads: &mut Threads, plans: &[Arc<ExchangePlan>]) -> Result<Moved, EngineError> {
        let Setup { topology, layout, .. } = self.setup;
        let start = Instant::now();
        for plan in plans {
            threads.exchange(plan, topology)?;
        }
        let mut moved = Moved {
            exchanges: plans.len(),
            waves: 0,
            seconds: start.elapsed().as_secs_f64(),
            bytes: 0,
            memory_bytes: 0,
        };
        for plan in plans {
            moved.waves += plan.waves().len();
            moved.bytes += ports(plan, layout, topology.ranks()).most_received();
            moved.memory_bytes += memory_bytes(plan, topology, layout);
        }
        Ok(moved)
    }
}

/// Bytes of plain copies that go into the rank that gets most, and that they read and write on the device where that is most.
fn copied_bytes(plan: &ExchangePlan, topology: &Topology, layout: &ModelLayout) -> (u64, u64) {
    let mut touched = vec![0u64; topology.ranks()];
    for transfer in plan.waves().iter().flat_map(|wave| &wave.transfers).filter(|t| !t.is_local()) {
        for rank in [transfer.source, transfer.dest] {
            touched[rank.index()] += layout.layer(transfer.layer).expert_bytes() as u64;
        }
    }
    (ports(plan, layout, topology.ranks()).most_received(), touched.into_iter().max().unwrap_or(0))
}

/// Bytes that a plan reads and writes on the device where that is most: what is sent, what lands, and what a commit copies.
fn memory_bytes(plan: &ExchangePlan, topology: &Topology, layout: &ModelLayout) -> u64 {
    let mut touched = vec![0u64; topology.ranks()];
    for wave in plan.waves() {
        for transfer in &wave.transfers {
            let bytes = layout.layer(transfer.layer).expert_bytes() as u64;
            touched[transfer.source.index()] += bytes;
            touched[transfer.dest.index()] += bytes;
        }
        for commit in &wave.commits {
            if matches!(commit.fill, Fill::Staged { .. } | Fill::FromSlot { .. }) {
                touched[topology.rank_of(commit.slot).index()] +=
                    2 * layout.layer(commit.layer).expert_bytes() as u64;
            }
        }
    }
    touched.into_iter().max().unwrap_or(0)
}

/// What the forward passes run beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Not counted.
    Nothing = 0,
    Before = 1,
    Beside = 2,
    After = 3,
    /// Beside plain copies.
    Copies = 4,
    /// The passes end.
    Over = 5,
}

/// Microseconds of replays of one rank, by part.
#[derive(Debug, Clone, Default)]
struct Samples {
    before: Vec<f64>,
    beside: Vec<f64>,
    after: Vec<f64>,
    copies: Vec<f64>,
}

/// A forward pass on every rank, on a thread of its own.
struct Passes {
    part: Arc<AtomicU8>,
    threads: Vec<JoinHandle<Result<Samples, EngineError>>>,
}

impl Passes {
    fn start(streams: &[Arc<CudaStream>], load: Load, patience: Duration) -> Result<Self, EngineError> {
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

    fn set(&self, part: Part) {
        self.part.store(part as u8, Ordering::Release);
    }

    fn finish(mut self) -> Result<Vec<Samples>, EngineError> {
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

fn median(series: &[f64]) -> f64 {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn mean(series: &[f64]) -> f64 {
    series.iter().sum::<f64>() / series.len().max(1) as f64
}

/// What moved, and what memory carries.
struct Rates<'a> {
    quiet: &'a Moved,
    moved: &'a Moved,
    copied: Option<&'a Moved>,
    copy_gbps: f64,
}

fn report(samples: &[Samples], rates: &Rates<'_>, wrong: u64) -> InterferenceReport {
    let Rates { quiet, moved, copied, copy_gbps } = *rates;
    let largest = |of: &dyn Fn(&Samples) -> f64| samples.iter().map(of).fold(0.0, f64::max);
    let ratio = |of: fn(&[f64]) -> f64, beside: fn(&Samples) -> &[f64]| {
        largest(&|rank| {
            let alone = (of(&rank.before) + of(&rank.after)) / 2.0;
            if alone > 0.0 { of(beside(rank)) / alone } else { 0.0 }
        })
    };
    let stall = largest(&|rank| {
        (mean(&rank.beside) - median(&rank.beside)) * rank.beside.len() as f64 / moved.waves.max(1) as f64
    });
    let memory_gbps = moved.memory_gbps();
    let copied = copied.filter(|_| samples.iter().all(|rank| !rank.copies.is_empty()));
    InterferenceReport {
        alone_us: largest(&|rank| median(&rank.before)),
        alone_again_us: largest(&|rank| median(&rank.after)),
        beside_us: largest(&|rank| median(&rank.beside)),
        slowdown: ratio(median, |rank| &rank.beside),
        slowdown_with_commits: ratio(mean, |rank| &rank.beside),
        stall_us_per_wave: stall,
        replays: samples.iter().map(|rank| rank.beside.len()).min().unwrap_or(0),
        exchanges: moved.exchanges,
        waves: moved.waves,
        gbps: moved.gbps(),
        gbps_alone: quiet.gbps(),
        memory_gbps,
        copy_gbps,
        allowed: 1.0 + ALLOWED * memory_gbps / copy_gbps,
        copies: copied.map(|copied| BesideCopies {
            slowdown: ratio(median, |rank| &rank.copies),
            gbps: copied.gbps(),
            memory_gbps: copied.memory_gbps(),
        }),
        verified: wrong == 0,
    }
}
