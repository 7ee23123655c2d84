//! A bench whose ranks are processes: each measures in lockstep with the others, and all come to the same report.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::Carried;
use eplb_core::{ModelLayout, RankId, Topology};
use eplb_exchange::ExchangePlan;

use super::worker::{Moved, Task, Worker};
use super::{Done, ExchangeBench, ExchangeReport, Setup, Team};
use super::{links, ranks};
use crate::error::EngineError;
use crate::process::Session;

impl ExchangeBench {
    /// Runs the exchanges as one rank of a session, on a device of its own. Every rank calls it with the same bench, and all return the
    /// same report; times are those of the slowest rank, from the moment at which all have come.
    ///
    /// # Errors
    /// As [`ExchangeBench::run`]; the carrier is none for processes; a rank is gone.
    pub fn run_as_rank(&self, session: Session) -> Result<ExchangeReport, EngineError> {
        if self.time.is_some() {
            // Each would end by its own clock.
            return Err(EngineError::Options(
                "processes make a number of exchanges, not as many as fit".into(),
            ));
        }
        let setup = self.setup()?;
        let number = session.rank().0;
        let own = |path: &PathBuf| PathBuf::from(format!("{}.{number}", path.display()));
        let bench = Self { timeline: self.timeline.as_ref().map(own), ..self.clone() };
        let mut rank = AsRank::join(&bench, &setup, session)?;
        let mut report = bench.measure(&mut rank, &setup)?;
        // Ranks without devices take nothing of them.
        report.device_bytes =
            Some(rank.device_bytes).filter(|_| rank.backend != eplb_comm_peer::HOST_BACKEND);
        Ok(report)
    }
}

/// This process as one rank.
#[derive(Debug)]
pub(super) struct AsRank {
    session: Session,
    worker: Worker,
    backend: &'static str,
    device_bytes: u64,
    layout: Arc<ModelLayout>,
    patience: Duration,
}

impl AsRank {
    /// Takes memory on this rank's device and makes its communicator, with all others.
    pub(super) fn join(
        bench: &ExchangeBench,
        setup: &Setup,
        mut session: Session,
    ) -> Result<Self, EngineError> {
        let rank = session.rank();
        let parts = ranks::as_rank(bench, setup, &mut session)?;
        let backend = parts.parts.communicator.backend();
        let worker = Worker::new(rank, setup, parts.parts, bench);
        let (device_bytes, layout, patience) = (parts.device_bytes, setup.layout.clone(), bench.patience);
        let mut joined = Self { session, worker, backend, device_bytes, layout, patience };
        joined.device_bytes = joined.largest("device bytes", parts.device_bytes)?;
        Ok(joined)
    }

    /// This rank's worker.
    pub(super) fn worker(&mut self) -> &mut Worker {
        &mut self.worker
    }

    /// One number of each rank, in the order of ranks.
    fn gather(&mut self, label: &str, numbers: &[u64]) -> Result<Vec<Vec<u64>>, EngineError> {
        let message: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let said = self.session.gather(label, &message)?;
        let read = |bytes: Vec<u8>| bytes.as_chunks::<8>().0.iter().map(|n| u64::from_le_bytes(*n)).collect();
        Ok(said.into_iter().map(read).collect())
    }

    fn largest(&mut self, label: &str, mine: u64) -> Result<u64, EngineError> {
        Ok(self.gather(label, &[mine])?.into_iter().flatten().max().unwrap_or(mine))
    }

    /// Carries out a plan as this rank; how long it took here from the moment at which all had come.
    pub(super) fn exchange_own(
        &mut self,
        plan: &Arc<ExchangePlan>,
        topology: &Topology,
    ) -> Result<(Duration, Moved), EngineError> {
        let members: Vec<RankId> = topology.all_ranks().collect();
        let board = self.session.begin_exchange(plan.hash64(), self.worker.bulletin())?;
        let start = Instant::now();
        let moved = self.worker.exchange(Task { plan: plan.clone(), members, board, start })?;
        Ok((moved.end.saturating_duration_since(start), moved))
    }
}

impl Team for AsRank {
    fn backend(&self) -> &'static str {
        self.backend
    }

    fn fill(&mut self) -> Result<(), EngineError> {
        self.worker.fill()
    }

    fn check(&mut self) -> Result<u64, EngineError> {
        let mine = self.worker.check()?;
        Ok(self.gather("wrong bytes", &[mine])?.into_iter().flatten().sum())
    }

    fn exchange(&mut self, plan: &Arc<ExchangePlan>, topology: &Topology) -> Result<Done, EngineError> {
        let (time, moved) = self.exchange_own(plan, topology)?;
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let Carried { link_bytes, local_bytes, transfers } = moved.carried;
        let mine =
            [nanoseconds(time), moved.steps, nanoseconds(moved.stall), link_bytes, local_bytes, transfers];
        let mut done = Done { here: 1, timelines: moved.timeline.into_iter().collect(), ..Done::default() };
        for (at, said) in self.gather("exchanged", &mine)?.into_iter().enumerate() {
            let &[time, steps, stall, link_bytes, local_bytes, transfers] = said.as_slice() else {
                return Err(EngineError::Unreadable { rank: RankId::at(at), what: "what its exchange took" });
            };
            done.time = done.time.max(Duration::from_nanos(time));
            done.steps = done.steps.max(steps);
            done.stall = done.stall.max(Duration::from_nanos(stall));
            done.carried.push(Carried { link_bytes, local_bytes, transfers });
        }
        Ok(done)
    }

    /// Only where the memory of other processes is open here.
    fn links(&mut self, plan: &Arc<ExchangePlan>) -> Result<Option<f64>, EngineError> {
        let mut best: Option<Duration> = None;
        for round in 0..links::ROUNDS {
            // All begin together.
            self.gather("links", &[])?;
            let mine =
                self.worker.links(&links::Task::new(plan, round, Instant::now() + self.patience / 2))?;
            let nanoseconds =
                mine.map_or(u64::MAX, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            let worst = self.largest("copied", nanoseconds)?;
            if worst == u64::MAX {
                return Ok(None);
            }
            let worst = Duration::from_nanos(worst);
            best = Some(best.map_or(worst, |best| best.min(worst)));
        }
        let ranks = self.session.members().len();
        Ok(links::gbps(plan, &self.layout, ranks, best))
    }
}
