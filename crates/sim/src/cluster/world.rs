//! The clock, the queue of events, and the life of a run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use eplb_core::{LoadMatrix, ModelLayout, Placement, TensorLayout, Topology, Transfer};
use eplb_exchange::{ExchangePlan, Limits, Outcome, Phase, Record};
use eplb_plan::{Options, Planner, Policy, Request};
use fastrand::Rng;
use ndarray::Array2;

use super::board::Board;
use super::check::Violation;
use super::host::Host;
use super::memory::Memory;
use super::plant::Plant;
use super::scenario::{FaultKind, Scenario};
use super::transport::{Copies, CopyId};

/// Simulated time after which a rank that has not ended hangs, in microseconds.
const LIMIT: u64 = 3_000_000;
/// How long steps go on after the last exchange, in microseconds.
const AFTER: u64 = 8_000;
/// How long steps wait for a rank that died, in microseconds.
pub(super) const PASS_TIMEOUT: u64 = 20_000;
/// Bytes of an expert; only their number counts.
const EXPERT_BYTES: usize = 64;
/// Lines kept to tell what came before a violation.
const LOG: usize = 80;

/// What can happen.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    /// A rank's host thread comes around.
    Look(usize),
    /// A rank's device ends what it has begun.
    DeviceEnd(usize),
    CopyBegin(CopyId),
    CopyEnd(CopyId),
    /// A rank's wish reaches the store.
    Decide {
        rank: usize,
        exchange: usize,
        from: Record,
        to: Record,
    },
    /// The store's answer reaches the rank.
    Answer {
        rank: usize,
        exchange: usize,
        record: Record,
    },
    /// The scenario's fault strikes.
    Fault,
    /// Steps wait no longer for a rank that is gone.
    LeavePasses(usize),
}

/// A forward pass over all ranks.
#[derive(Debug, Default)]
pub(super) struct Pass {
    pub(super) maps: BTreeMap<usize, Arc<Array2<i32>>>,
    /// Ranks whose device has begun it, in that order, and the versions of all slots then.
    pub(super) begun: Vec<(usize, Vec<u64>)>,
    pub(super) released: bool,
}

/// What runs did, to see that they tested something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Exchanges that ended with every wave committed on every rank that lives.
    pub completed: usize,
    /// Exchanges given up.
    pub aborted: usize,
    /// Those of them that all ranks that live call too late.
    pub late: usize,
    /// Commits on devices.
    pub commits: usize,
    /// Commits that failed there.
    pub broken: usize,
    /// Submissions of early parts.
    pub early: usize,
    /// Copies ended.
    pub copies: usize,
    /// Steps checked, by rank.
    pub steps: usize,
    /// What the struck rank was doing when the fault struck, and how often.
    pub struck: BTreeMap<(&'static str, String), usize>,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Tally) {
        self.completed += other.completed;
        self.aborted += other.aborted;
        self.late += other.late;
        self.commits += other.commits;
        self.broken += other.broken;
        self.early += other.early;
        self.copies += other.copies;
        self.steps += other.steps;
        for (key, count) in &other.struck {
            *self.struck.entry(key.clone()).or_default() += count;
        }
    }
}

/// A run that broke a promise.
#[derive(Debug, Clone, thiserror::Error)]
#[error("seed {seed}: {violation}\n{}", log.join("\n"))]
pub struct Failure {
    /// Seed of the scenario.
    pub seed: u64,
    /// What was broken.
    pub violation: Violation,
    /// What ranks did just before.
    pub log: Vec<String>,
}

/// The state of a run.
#[derive(Debug)]
pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) topology: Topology,
    layout: ModelLayout,
    pub(super) rng: Rng,
    pub(super) epoch: Instant,
    /// Microseconds since the start.
    pub(super) now: u64,
    events: BTreeMap<(u64, u64), Event>,
    number: u64,
    pub(super) hosts: Vec<Host>,
    pub(super) memory: Memory,
    /// By exchange, by rank.
    pub(super) plans: Vec<Vec<Arc<ExchangePlan>>>,
    /// By exchange.
    pub(super) boards: Vec<Board>,
    /// Ids of steps, and when there is traffic for them.
    pub(super) schedule: Vec<(u64, u64)>,
    pub(super) passes: BTreeMap<u64, Pass>,
    /// Transfers submitted on all sides that have not begun.
    pub(super) waiting: BTreeMap<CopyId, Transfer>,
    pub(super) copies: Copies,
    pub(super) tally: Tally,
    /// When the run ends; set with the end of the last exchange.
    end: Option<u64>,
    log: VecDeque<String>,
}

/// Runs a scenario.
///
/// # Errors
/// The first promise that it broke, with what happened just before.
pub fn run(scenario: &Scenario) -> Result<Tally, Box<Failure>> {
    let mut world = World::new(scenario.clone());
    match world.live() {
        Ok(()) => Ok(world.tally),
        Err(violation) => Err(Box::new(Failure { seed: scenario.seed, violation, log: world.log.into() })),
    }
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let topology = Topology::uniform(scenario.ranks, scenario.ranks * scenario.slots_per_rank)
            .unwrap_or_else(|error| unreachable!("a scenario has ranks with slots: {error}"));
        let tensors = vec![TensorLayout::contiguous("w", EXPERT_BYTES)];
        let layout = ModelLayout::new(vec![tensors; scenario.layers])
            .unwrap_or_else(|error| unreachable!("a scenario has layers: {error}"));
        // Another stream of numbers than the one that drew the scenario.
        let mut rng = Rng::with_seed(scenario.seed ^ 0x5EED_0FC1_0C4B_1D00);
        let start = placement(&scenario, &topology, rng.u64(..));
        let map = Arc::new(start.phy2log().to_owned());
        let hosts = (0..scenario.ranks).map(|_| Host::new(Arc::clone(&map))).collect();
        let memory = Memory::new(&start, layout.largest_staged());
        Self {
            topology,
            layout,
            rng,
            epoch: Instant::now(),
            now: 0,
            events: BTreeMap::new(),
            number: 0,
            hosts,
            memory,
            plans: Vec::new(),
            boards: Vec::new(),
            schedule: Vec::new(),
            passes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            copies: Copies::new(),
            tally: Tally::default(),
            end: None,
            log: VecDeque::new(),
            scenario,
        }
    }

    fn live(&mut self) -> Result<(), Violation> {
        for rank in 0..self.scenario.ranks {
            let micros = self.rng.u64(0..=self.scenario.look);
            self.after(micros, Event::Look(rank));
        }
        self.after(self.scenario.fault.at, Event::Fault);
        self.open_exchange();
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            if self.end.is_some_and(|end| at > end) {
                return self.check_end();
            }
            if at > LIMIT {
                let phases = self.hosts.iter().enumerate().filter(|(_, h)| h.alive);
                let phases = phases.map(|(r, h)| format!("rank {r}: {}", phase_name(h.phase())));
                return Err(Violation::Hang(phases.collect::<Vec<_>>().join(", ")));
            }
            match event {
                Event::Look(rank) => self.look(rank)?,
                Event::DeviceEnd(rank) => self.end_device(rank)?,
                Event::CopyBegin(id) => self.begin_copy(id)?,
                Event::CopyEnd(id) => self.end_copy(id),
                Event::Decide { rank, exchange, from, to } => {
                    if let Some(record) = self.decide(rank, exchange, from, to) {
                        let micros = self.rng.u64(0..=self.scenario.note);
                        self.after(micros, Event::Answer { rank, exchange, record });
                    }
                }
                Event::Answer { rank, exchange, record } => self.answer(rank, exchange, record)?,
                Event::Fault => self.strike()?,
                Event::LeavePasses(rank) => {
                    self.hosts[rank].left_passes = true;
                    for id in self.passes.keys().copied().collect::<Vec<_>>() {
                        self.release_pass(id);
                    }
                }
            }
            (0..self.hosts.len()).for_each(|rank| self.take_outcome(rank));
            self.close_exchange()?;
        }
        Ok(())
    }

    pub(super) fn after(&mut self, micros: u64, event: Event) {
        self.number += 1;
        self.events.insert((self.now + micros, self.number), event);
    }

    /// Keeps a line for the log of a failure.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        let line = format!("{:>8} us  {}", self.now, line());
        self.log.push_back(line);
    }

    /// Whether a rank has a fault planted. Planted faults sit on one rank, drawn with the scenario.
    pub(super) fn planted(&self, rank: usize, plant: Plant) -> bool {
        self.scenario.plant == Some(plant) && rank == self.scenario.fault.rank
    }

    /// Whether there is traffic for a rank's next step.
    pub(super) fn step_is_due(&mut self, rank: usize) -> bool {
        let next = self.hosts[rank].steps;
        while self.schedule.len() <= next {
            let (id, at) = self.schedule.last().copied().unwrap_or_default();
            let gap = if self.rng.u32(0..8) == 0 { self.rng.u64(2..10) } else { 1 };
            let pause = match self.scenario.pause {
                0 => 0,
                longest => u64::from(self.rng.u32(0..6) == 0) * self.rng.u64(0..=longest),
            };
            self.schedule.push((id + gap, at.max(self.now) + pause));
        }
        self.schedule[next].1 <= self.now
    }

    /// Plans the next exchange from the placement in force.
    fn open_exchange(&mut self) {
        let experts = self.scenario.experts;
        let old = Placement::with_missing(experts, self.hosts[0].map.as_ref().clone())
            .unwrap_or_else(|error| unreachable!("maps name experts of the model: {error}"));
        let mut limits = Limits::new(&self.layout, &self.topology);
        limits.staging_bytes = self.scenario.staging_experts * self.layout.largest_staged();
        limits.overlap = self.scenario.overlap;
        limits.wave_bytes = self.scenario.wave_experts.map(|experts| experts * EXPERT_BYTES as u64);
        let plan = |target: &Placement| {
            let plan = ExchangePlan::new(&old, target, &self.topology, &self.layout, None, &limits);
            let mut plan = plan.unwrap_or_else(|error| unreachable!("every expert has a slot: {error}"));
            if let Some(fault) = self.scenario.plant.and_then(Plant::in_plan) {
                plan.plant(fault, self.layout.largest_staged(), &self.topology);
            }
            Arc::new(plan)
        };
        let target = placement(&self.scenario, &self.topology, self.rng.u64(..));
        let mut plans = vec![plan(&target); self.hosts.len()];
        if self.scenario.fault.kind == FaultKind::OtherPlan {
            let other = placement(&self.scenario, &self.topology, self.rng.u64(..));
            plans[self.scenario.fault.rank] = plan(&other);
        }
        self.plans.push(plans);
        self.boards.push(Board::new(self.hosts.len()));
        for rank in 0..self.hosts.len() {
            self.hosts[rank].begin_at = self.now + self.rng.u64(0..=4 * self.scenario.step);
        }
    }

    /// When all ranks that live have ended the exchange: compares how, and opens the next.
    fn close_exchange(&mut self) -> Result<(), Violation> {
        let number = self.boards.len();
        let ended = |host: &Host| !host.alive || (host.exchanges == number && host.outcome.is_some());
        if self.end.is_some() || !self.hosts.iter().all(ended) {
            return Ok(());
        }
        let equal = if self.boards[number - 1].lost {
            self.check_without_store(number - 1)?;
            false
        } else {
            self.check_agreement(number - 1)?
        };
        let alive = || self.hosts.iter().filter(|host| host.alive);
        if alive().all(|host| host.outcome == Some(Outcome::Completed)) {
            self.tally.completed += 1;
        } else {
            self.tally.aborted += 1;
            let late = |host: &Host| host.outcome.as_ref().is_some_and(Outcome::came_too_late);
            self.tally.late += usize::from(alive().all(late));
        }
        let whole = alive().count() == self.hosts.len() && !alive().any(|host| host.device.failed);
        if number < self.scenario.exchanges && equal && whole {
            self.open_exchange();
        } else {
            self.end = Some(self.now + AFTER + 10 * self.scenario.copy);
        }
        Ok(())
    }

    /// The scenario's fault happens.
    fn strike(&mut self) -> Result<(), Violation> {
        let fault = self.scenario.fault;
        let phase = phase_name(self.hosts[fault.rank].phase());
        *self.tally.struck.entry((fault.kind.name(), phase)).or_default() += 1;
        self.note(|| format!("rank {}: {:?}", fault.rank, fault.kind));
        let host = &mut self.hosts[fault.rank];
        match fault.kind {
            FaultKind::Nothing | FaultKind::OtherPlan => {}
            FaultKind::Death => {
                host.alive = false;
                host.exchange = None;
                self.lose_side(fault.rank);
                self.after(PASS_TIMEOUT, Event::LeavePasses(fault.rank));
            }
            FaultKind::Stop { micros } => host.stopped_until = self.now + micros,
            FaultKind::TransferError => host.port.fail_next = true,
            FaultKind::TransferStall => host.port.stall_next = true,
            FaultKind::CommitFails { hangs } => host.device.fail_next = Some(hangs),
            FaultKind::Cancel => self.cancel(fault.rank)?,
            FaultKind::StoreLost => {
                for board in &mut self.boards {
                    board.lost = true;
                }
            }
        }
        Ok(())
    }
}

fn phase_name(phase: Option<Phase>) -> String {
    phase.map_or_else(|| "at rest".into(), |phase| phase.to_string())
}

/// A valid placement that follows from a seed.
fn placement(scenario: &Scenario, topology: &Topology, seed: u64) -> Placement {
    let even = Array2::from_elem((scenario.layers, scenario.experts), 1.0);
    let options = Options { policy: Policy::Random, seed, ..Options::default() };
    let plan = LoadMatrix::from_sum(even).map_err(|e| e.to_string()).and_then(|loads| {
        let planner = Planner::new(1).map_err(|e| e.to_string())?;
        planner.place(&Request::new(&loads, topology, &options)).map_err(|e| e.to_string())
    });
    plan.unwrap_or_else(|error| unreachable!("a scenario has a slot for every expert: {error}"))
}
