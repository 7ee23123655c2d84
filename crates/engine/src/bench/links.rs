//! What the links give: plain copies (or sends, between processes over NCCL) between the pairs of a plan, all at once and both ways,
//! with no protocol around them.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::Place;
use eplb_comm_nccl::{Backend, Options, Rendezvous, Sends};
use eplb_core::{ModelLayout, Transfer};
use eplb_cuda::{DeviceMemory, Puller};
use eplb_exchange::ExchangePlan;

use super::bytes_into;
use super::threads::Threads;
use super::worker::{Command, Reply};
use crate::error::EngineError;

/// Copies per rank are repeated this often and the fastest counts.
pub(super) const ROUNDS: usize = 6;

/// What to copy.
#[derive(Debug, Clone)]
pub(super) struct Task {
    plan: Arc<ExchangePlan>,
    /// Whether copies from one source may run beside each other.
    beside: bool,
    pub(super) deadline: Instant,
}

impl Task {
    /// What goes over links, in the order of the plan.
    pub(super) fn transfers(&self) -> impl Iterator<Item = &Transfer> {
        self.plan.waves().iter().flat_map(|wave| &wave.transfers).filter(|transfer| !transfer.is_local())
    }

    /// The copies of round `round`: with one stream for each source, and with all there are, in turn. The best of all counts.
    pub(super) fn new(plan: &Arc<ExchangePlan>, round: usize, deadline: Instant) -> Self {
        Self { plan: plan.clone(), beside: round % 2 == 1, deadline }
    }
}

/// Bytes per second into the worst rank, in 10^9; `None` where ranks cannot copy plainly.
pub(super) fn measure(threads: &mut Threads, plan: &Arc<ExchangePlan>) -> Result<Option<f64>, EngineError> {
    let mut best: Option<Duration> = None;
    for round in 0..ROUNDS {
        let task = Task::new(plan, round, Instant::now() + threads.patience / 2);
        let replies = threads.ask(|_| Command::Links(task.clone()))?;
        let mut worst = Duration::ZERO;
        for reply in &replies {
            match reply {
                Reply::Copied(Some(time)) => worst = worst.max(*time),
                _ => return Ok(None),
            }
        }
        best = Some(best.map_or(worst, |best| best.min(worst)));
    }
    Ok(gbps(plan, &threads.layout, threads.len(), best))
}

/// The same from the time of the slowest rank.
pub(super) fn gbps(
    plan: &ExchangePlan,
    layout: &ModelLayout,
    ranks: usize,
    worst: Option<Duration>,
) -> Option<f64> {
    let bytes = bytes_into(plan, layout, ranks).into_iter().max().unwrap_or(0);
    worst.filter(|_| bytes > 0).map(|time| bytes as f64 / time.as_secs_f64() / 1e9)
}

/// Copies with no protocol around them.
pub(super) trait Plain: Debug + Send {
    /// Carries this rank's part of a plan; how long it took.
    fn copy(&mut self, task: &Task) -> Result<Duration, EngineError>;
}

impl Plain for Puller {
    /// Each expert over its own link.
    fn copy(&mut self, task: &Task) -> Result<Duration, EngineError> {
        let rank = self.memory().rank();
        self.use_streams(if task.beside { self.per_source() } else { 1 });
        let start = Instant::now();
        for transfer in task.transfers().filter(|transfer| transfer.dest == rank) {
            self.pull(transfer.source.index(), Place::source(transfer), Place::landing(transfer))?;
        }
        self.finish(task.deadline)?;
        Ok(start.elapsed())
    }
}

/// Sends of NCCL, over a communicator that is made when they are first asked for: what was measured before does not see it.
#[derive(Debug)]
pub(super) struct LaterSends {
    backend: Backend,
    memory: Arc<DeviceMemory>,
    rendezvous: Rendezvous,
    options: Options,
    sends: Option<Sends>,
}

impl LaterSends {
    pub(super) fn new(
        backend: Backend,
        memory: Arc<DeviceMemory>,
        rendezvous: Rendezvous,
        options: Options,
    ) -> Self {
        Self { backend, memory, rendezvous, options, sends: None }
    }
}

impl Plain for LaterSends {
    /// All experts of the plan between their pairs, group after group.
    fn copy(&mut self, task: &Task) -> Result<Duration, EngineError> {
        let sends = match &mut self.sends {
            Some(sends) => sends,
            none => {
                let memory = self.memory.clone();
                let made =
                    Sends::connect(self.backend, memory, &self.rendezvous, &self.options, task.deadline)?;
                none.insert(made)
            }
        };
        let transfers: Vec<Transfer> = task.transfers().copied().collect();
        Ok(sends.carry(&transfers, task.deadline)?)
    }
}

/// Carries this rank's part of a plan plainly, if it can; how long it took.
pub(super) fn copy(plain: &mut Option<Box<dyn Plain>>, task: &Task) -> Result<Option<Duration>, EngineError> {
    plain.as_mut().map(|plain| plain.copy(task)).transpose()
}
