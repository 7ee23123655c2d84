//! Exchanges and plain copies beside forward passes, and what they move.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::{Fill, ModelLayout, Placement, Topology, Transfer};
use eplb_exchange::ExchangePlan;

use super::super::links::{self, Manner, Means, Ports, Which};
use super::super::threads::Threads;
use super::super::{ExchangeBench, Setup, Team, ports};
use crate::error::EngineError;

/// Parts of what a plan carries that are copied one after the other at a limited speed: each takes about a millisecond at full speed.
const SLICES: usize = 20;

/// Exchanges, one after the other.
pub(super) struct Exchanges<'a> {
    pub(super) bench: &'a ExchangeBench,
    pub(super) setup: &'a Setup,
    pub(super) now: Placement,
    pub(super) round: usize,
}

/// What a number of exchanges did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moved {
    pub(super) exchanges: usize,
    pub(super) waves: usize,
    pub(super) seconds: f64,
    /// Over links into the rank that gets most.
    bytes: u64,
    /// Read and written on the device where that is most.
    memory_bytes: u64,
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, more: Self) {
        self.exchanges += more.exchanges;
        self.waves += more.waves;
        self.seconds += more.seconds;
        self.bytes += more.bytes;
        self.memory_bytes += more.memory_bytes;
    }
}

impl Moved {
    #[cfg(test)]
    pub(super) fn of(seconds: f64, bytes: u64, waves: usize) -> Self {
        Self { exchanges: 1, waves, seconds, bytes, memory_bytes: bytes }
    }

    pub(super) fn gbps(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e9
    }

    pub(super) fn memory_gbps(&self) -> f64 {
        self.memory_bytes as f64 / self.seconds / 1e9
    }
}

impl Exchanges<'_> {
    pub(super) fn plan(&mut self, count: usize) -> Result<Vec<Arc<ExchangePlan>>, EngineError> {
        let mut plans = Vec::new();
        for _ in 0..count {
            let plan = Arc::new(self.bench.plan(self.setup, &self.now, self.round)?);
            self.now = plan.target().clone();
            self.round += 1;
            plans.push(plan);
        }
        Ok(plans)
    }

    pub(super) fn run(&mut self, threads: &mut Threads, count: usize) -> Result<Moved, EngineError> {
        let plans = self.plan(count)?;
        self.carry_out(threads, &plans)
    }

    /// Copies what a plan carries over links again and again, for so long, with no protocol around it; no faster than `most` 10^9 bytes per second
    /// into the rank that gets most, if that is given. `None` where ranks cannot.
    pub(super) fn copy(
        &self,
        threads: &mut Threads,
        plan: &ExchangePlan,
        time: Duration,
        most: Option<f64>,
    ) -> Result<Option<Moved>, EngineError> {
        let Setup { topology, layout, .. } = self.setup;
        let slices =
            slices(&Which::Planned.transfers(plan, topology), if most.is_some() { SLICES } else { 1 });
        let mut moved = Moved::default();
        let start = Instant::now();
        let mut slices = slices.iter().cycle();
        while let Some(slice) = slices.next().filter(|_| start.elapsed() < time) {
            let deadline = Instant::now() + threads.patience / 2;
            let task = links::Task::new(slice, Means::Copies, Manner::TurnsAtSource, deadline);
            if threads.copy(&task)?.is_none() {
                return Ok(None);
            }
            let (bytes, memory_bytes) = copied_bytes(slice, topology, layout);
            moved += Moved { exchanges: 1, bytes, memory_bytes, ..Moved::default() };
            if let Some(most) = most {
                let due = Duration::from_secs_f64(moved.bytes as f64 / most / 1e9);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
        moved.seconds = start.elapsed().as_secs_f64();
        Ok(Some(moved))
    }

    /// Carries out plans without a pause between them.
    pub(super) fn carry_out(
        &self,
        threads: &mut Threads,
        plans: &[Arc<ExchangePlan>],
    ) -> Result<Moved, EngineError> {
        let Setup { topology, layout, .. } = self.setup;
        let start = Instant::now();
        for plan in plans {
            threads.exchange(plan, topology)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let mut moved = Moved { exchanges: plans.len(), seconds, ..Moved::default() };
        for plan in plans {
            moved.waves += plan.waves().len();
            moved.bytes += ports(plan, layout, topology.ranks()).most_received();
            moved.memory_bytes += memory_bytes(plan, topology, layout);
        }
        Ok(moved)
    }
}

/// Transfers in so many parts, each with about as many into every rank.
fn slices(transfers: &[Transfer], parts: usize) -> Vec<Arc<[Transfer]>> {
    let mut slices = vec![Vec::new(); parts];
    let mut into = BTreeMap::new();
    for transfer in transfers {
        let number: &mut usize = into.entry(transfer.dest).or_default();
        slices[*number % parts].push(*transfer);
        *number += 1;
    }
    slices.into_iter().filter(|slice| !slice.is_empty()).map(Arc::from).collect()
}

/// Bytes of plain copies that go into the rank that gets most, and that they read and write on the device where that is most.
fn copied_bytes(transfers: &[Transfer], topology: &Topology, layout: &ModelLayout) -> (u64, u64) {
    let mut touched = vec![0u64; topology.ranks()];
    for transfer in transfers {
        for rank in [transfer.source, transfer.dest] {
            touched[rank.index()] += layout.layer(transfer.layer).expert_bytes() as u64;
        }
    }
    let received = Ports::of(transfers.iter(), layout, topology.ranks()).most_received();
    (received, touched.into_iter().max().unwrap_or(0))
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
