//! Carries out the exchanges of a bench, one after the other, and takes their measure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::{Fill, ModelLayout, Topology, Wave};
use eplb_cuda::{Context, CudaStream, forward};
use eplb_exchange::ExchangePlan;

use super::{ExchangeBench, ExchangeReport, Setup, Team, cpu, links, ports, timeline};
use crate::error::EngineError;

/// What the threads for pulls are called, of all ranks of a process.
const PULLING: &str = "peer-";

/// Exchanges over which the processor time of threads is taken.
const MOST_LOOKS: usize = 64;

/// A copy inside a device that is too long for its start to count.
const COPY_BYTES: usize = 128 << 20;

/// How long threads that have nothing to do are looked at.
const REST: Duration = Duration::from_millis(100);

/// Processor time of each of `ranks` threads for pulls over that in which exchanges ran, and of a rest that follows.
fn pulling_cpu((taken, time): (Duration, Duration), ranks: usize) -> Option<(f64, f64)> {
    let before = cpu::taken(PULLING)?;
    let begin = Instant::now();
    std::thread::sleep(REST);
    let idle = cpu::taken(PULLING)?.saturating_sub(before);
    let share =
        |taken: Duration, time: Duration| taken.as_secs_f64() / time.as_secs_f64().max(1e-9) / ranks as f64;
    Some((share(taken, time), share(idle, begin.elapsed())))
}

/// Bytes that the largest commit of a plan copies on one rank.
fn commit_bytes_worst(plan: &ExchangePlan, topology: &Topology, layout: &ModelLayout) -> u64 {
    let of_wave = |wave: &Wave| {
        let mut ranks = vec![0; topology.ranks()];
        for commit in &wave.commits {
            if matches!(commit.fill, Fill::Staged { .. } | Fill::FromSlot { .. }) {
                ranks[topology.rank_of(commit.slot).index()] +=
                    layout.layer(commit.layer).expert_bytes() as u64;
            }
        }
        ranks.into_iter().max().unwrap_or(0)
    };
    plan.waves().iter().map(of_wave).max().unwrap_or(0)
}

impl ExchangeBench {
    /// What a copy inside a device does, to hold commits amid steps against; `None` where no steps run.
    pub(super) fn copy_gbps(&self, device: usize) -> Result<Option<f64>, EngineError> {
        if self.step.is_zero() {
            return Ok(None);
        }
        let stream = CudaStream::new(&Context::primary(device)?, 0)?;
        Ok(Some(forward::copy_gbps(&stream, COPY_BYTES)?))
    }

    /// All exchanges, with checks, and then plain copies to compare with.
    pub(super) fn measure(&self, team: &mut dyn Team, setup: &Setup) -> Result<ExchangeReport, EngineError> {
        let Setup { topology, layout, limits, start, .. } = setup;
        let mut placement = start.clone();
        team.fill()?;
        let mut ms = Vec::new();
        let (mut bytes_wrong, mut planned_bytes, mut steps, mut stall) = (0, 0, 0, Duration::ZERO);
        let mut last = None;
        let mut carried_bytes = Vec::new();
        let rounds = self.warmup + self.iterations;
        let (mut links, mut sends) = (None, None);
        let begin = Instant::now();
        let (mut times, mut checks) = (None, 0);
        let (mut moving, mut here) = ((Duration::ZERO, Duration::ZERO), 1);
        for round in 0..rounds {
            let plan = Arc::new(self.plan(setup, &placement, round)?);
            placement = plan.target().clone();
            planned_bytes += plan.totals().link_bytes;
            // Looking takes a while: the first of many exchanges speak for all.
            let looks = (self.warmup..self.warmup + MOST_LOOKS).contains(&round);
            let cpu_before = looks.then(|| cpu::taken(PULLING)).flatten();
            let done = team.exchange(&plan, topology)?;
            ms.push(done.time.as_secs_f64() * 1e3);
            if round >= self.warmup {
                steps = steps.max(done.steps);
                stall = stall.max(done.stall);
            }
            carried_bytes = done.carried_by;
            let over = self.time.is_some_and(|time| round >= self.warmup && begin.elapsed() >= time);
            let ends = over || round + 1 == rounds;
            if let Some(before) = cpu_before
                && let Some(now) = cpu::taken(PULLING)
            {
                moving = (moving.0 + now.saturating_sub(before), moving.1 + done.time);
            }
            if let (true, Some(path)) = (ends, &self.timeline) {
                times = Some(timeline::take(path, &done.timelines)?);
            }
            here = done.here;
            if round == 0 || ends || self.check_every.is_some_and(|every| (round + 1) % every.max(1) == 0) {
                bytes_wrong += team.check()?;
                checks += 1;
            }
            if ends {
                sends = team.links(&plan, topology, links::Means::Sends)?;
                links = team.links(&plan, topology, links::Means::Copies)?.or_else(|| sends.clone());
            }
            last = Some(plan);
            if ends {
                break;
            }
        }
        let pull_cpu = pulling_cpu(moving, here);
        let Some(last) = last else { return Err(EngineError::Options("nothing was measured".into())) };
        let ports = ports(&last, layout, self.ranks);
        let bytes_worst_rank = ports.most_received();
        let measured = ms[self.warmup..].to_vec();
        let mut sorted = measured.clone();
        sorted.sort_by(f64::total_cmp);
        let ms_median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        Ok(ExchangeReport {
            backend: team.backend(),
            reasons: Vec::new(),
            carried_bytes,
            planned_bytes,
            ms_first: ms[0],
            ms_median,
            ms_min: sorted[0],
            ms: measured,
            bytes_worst_rank,
            gbps_worst_rank: bytes_worst_rank as f64 / ms_median / 1e6,
            staging_bytes: limits.staging_bytes,
            waves: last.waves().len(),
            moves: last.totals().moves,
            staged: last.totals().staged,
            verified: bytes_wrong == 0,
            bytes_wrong,
            link_gbps: links.as_ref().map(|links| links.planned_gbps),
            batched_gbps: links.as_ref().and_then(|links| links.batched_gbps),
            link_manners: links.as_ref().map_or(Vec::new(), |links| links.by_manner.clone()),
            sends_gbps: sends.map(|links| links.planned_gbps),
            bytes_busiest_port: ports.busiest(),
            port_gbps: links.map(|links| links.port_gbps),
            steps,
            margin: self.margin,
            again: 0,
            stall_us_max: stall.as_secs_f64() * 1e6,
            commit_bytes_worst: commit_bytes_worst(&last, topology, layout),
            copy_gbps: None,
            device_bytes: None,
            pool_bytes: None,
            pinned_bytes: 0,
            served: Vec::new(),
            crowded: Vec::new(),
            checks,
            pull_cpu,
            times,
        })
    }
}
