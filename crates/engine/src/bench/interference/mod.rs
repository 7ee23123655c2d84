//! What an exchange costs the forward pass beside it, and the forward pass the exchange.
//!
//! Each rank replays a captured matrix product on its compute stream without pause, on which the commits of the exchange run too. Its
//! time is measured on the device from one replay to the next, by turns alone and beside exchanges without pause; then by turns alone and beside plain
//! copies of the same bytes.

mod exchanges;
mod figures;
mod passes;

use std::time::Duration;

use eplb_cuda::forward::{self, Load};

use super::threads::Threads;
use super::{ExchangeBench, Team, ranks};
use crate::error::EngineError;
use exchanges::{Exchanges, Moved};
use figures::{Rates, report};
use passes::{Part, Passes};

/// Most exchanges of one part; they are planned before it begins.
const MOST_EXCHANGES: usize = 400;

/// Fewest: several in each turn, so that one of them that was held up while it was timed does not leave next to none.
const FEWEST_EXCHANGES: usize = 4 * TURNS as usize;

/// Parts that passes alone and passes beside something take turns in, so that a device that grows warmer does so for both.
const TURNS: u32 = 4;

/// What was measured, over all ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct InterferenceReport {
    /// Median time of a replay with nothing beside it, on the rank where it is longest, microseconds.
    pub alone_us: f64,
    /// The same later, between plain copies: how far the device itself drifted.
    pub alone_again_us: f64,
    /// Median beside exchanges, on the rank where it is longest; commits fall into few replays and do not show here.
    pub beside_us: f64,
    /// Largest over ranks of the median beside over the median of the passes alone between them.
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
    /// The same as slow as the exchanges were: as many bytes per second into the rank that gets most.
    pub paced: Option<BesideCopies>,
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
        let count = ((time.as_secs_f64() / one.max(1e-6)) as usize).clamp(FEWEST_EXCHANGES, MOST_EXCHANGES);
        let quiet = exchanges.run(&mut threads, count)?;
        let mut copy_gbps = f64::INFINITY;
        for stream in &streams {
            copy_gbps = copy_gbps.min(forward::copy_gbps(stream, load.copy_bytes())?);
        }
        let passes = Passes::start(&streams, load, self.patience)?;
        let rest = |part: Part, time: Duration| {
            passes.set(part);
            std::thread::sleep(time);
            passes.set(Part::Nothing);
        };
        // The device comes to its clocks and temperature.
        rest(Part::Nothing, time / 2);
        let planned = exchanges.plan(count)?;
        let mut moved = Moved::default();
        for plans in planned.chunks(count.div_ceil(TURNS as usize)) {
            rest(Part::Before, time / TURNS);
            passes.set(Part::Beside);
            moved += exchanges.carry_out(&mut threads, plans)?;
            passes.set(Part::Nothing);
        }
        rest(Part::Before, time / TURNS);
        // Plain copies overwrite slots.
        let wrong = threads.check()?;
        let mut copied = [None, None];
        for _ in 0..TURNS {
            for (at, part, most) in [(0, Part::Copies, None), (1, Part::Paced, Some(moved.gbps()))] {
                rest(Part::After, time / TURNS);
                passes.set(part);
                let Some(plan) = planned.last() else { continue };
                if let Some(more) = exchanges.copy(&mut threads, plan, time / TURNS, most)? {
                    *copied[at].get_or_insert(Moved::default()) += more;
                }
                passes.set(Part::Nothing);
            }
        }
        rest(Part::After, time / TURNS);
        let samples = passes.finish()?;
        let rates = Rates { quiet: &quiet, moved: &moved, copied, copy_gbps };
        Ok(report(&samples, &rates, wrong))
    }
}
