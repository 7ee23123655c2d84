//! A bench whose ranks are processes: each measures in lockstep with the others, and all come to the same report.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::{ModelLayout, RankId, Topology};
use eplb_exchange::ExchangePlan;

use super::links::Links;
use super::worker::{Moved, Task, Worker};
use super::{Done, ExchangeBench, ExchangeReport, Setup, Team};
use super::{links, ranks};
use crate::error::EngineError;
use crate::machine::Reason;
use crate::process::Session;

/// How far ahead of the moment at which the last rank came all of them begin.
const LEAD: Duration = Duration::from_millis(3);

/// The clock that all processes of this host share, if there is one.
fn clock() -> Option<Duration> {
    #[cfg(target_os = "linux")]
    {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Some(Duration::new(u64::try_from(now.tv_sec).ok()?, u32::try_from(now.tv_nsec).ok()?))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

impl ExchangeBench {
    /// Runs the exchanges as one rank of a session, on a device of its own. Every rank calls it with the same bench, and all return the
    /// same report; times are those of the slowest rank, from the moment at which all have come.
    ///
    /// # Errors
    /// As [`ExchangeBench::run`]; the carrier is none for processes; a rank is gone.
    pub fn run_as_rank(&self, mut session: Session) -> Result<ExchangeReport, EngineError> {
        if self.time.is_some() {
            // Each would end by its own clock.
            return Err(EngineError::Options(
                "processes make a number of exchanges, not as many as fit".into(),
            ));
        }
        self.in_time(|bench| bench.run_once_as_rank(&mut session))
    }

    fn run_once_as_rank(&self, session: &mut Session) -> Result<ExchangeReport, EngineError> {
        let setup = self.setup()?;
        let number = session.rank().0;
        let own = |path: &PathBuf| PathBuf::from(format!("{}.{number}", path.display()));
        let bench = Self { timeline: self.timeline.as_ref().map(own), ..self.clone() };
        let mut rank = AsRank::join(&bench, &setup, session)?;
        let mut report = bench.measure(&mut rank, &setup)?;
        // Ranks without devices take nothing of them.
        let on_devices = eplb_cuda::probe().is_ok();
        report.device_bytes = on_devices.then_some(rank.device_bytes);
        report.pool_bytes = on_devices.then_some(rank.pool_bytes);
        report.pinned_bytes = rank.pinned_bytes;
        if on_devices && number == 0 {
            report.copy_gbps = bench.copy_gbps(0)?;
        }
        report.reasons = std::mem::take(&mut rank.reasons);
        Ok(report)
    }
}

/// This process as one rank.
#[derive(Debug)]
pub(super) struct AsRank<'a> {
    session: &'a mut Session,
    worker: Worker,
    backend: &'static str,
    /// Whether all ranks are on one host.
    one_host: bool,
    device_bytes: u64,
    pool_bytes: u64,
    pinned_bytes: u64,
    reasons: Vec<Reason>,
    layout: Arc<ModelLayout>,
    patience: Duration,
}

impl<'a> AsRank<'a> {
    /// Takes memory on this rank's device and makes its communicator, with all others.
    pub(super) fn join(
        bench: &ExchangeBench,
        setup: &Setup,
        session: &'a mut Session,
    ) -> Result<Self, EngineError> {
        let rank = session.rank();
        let own = ranks::as_rank(bench, setup, session)?;
        let backend = own.parts.communicator.backend();
        let pinned_bytes = own.parts.communicator.pinned_bytes() as u64;
        let worker = Worker::new(rank, setup, own.parts, bench);
        let (device_bytes, pool_bytes, reasons) = (own.device_bytes, own.pool_bytes, own.reasons);
        let (layout, patience) = (setup.layout.clone(), bench.patience);
        let hosts = session.hosts()?;
        // Nodes that are only pretended have one clock.
        let one_host = bench.nodes > 1 || hosts.iter().all(|host| *host == hosts[0]);
        let mut joined = Self {
            session,
            worker,
            backend,
            one_host,
            device_bytes,
            pool_bytes,
            pinned_bytes,
            reasons,
            layout,
            patience,
        };
        joined.device_bytes = joined.largest("device bytes", device_bytes)?;
        joined.pool_bytes = joined.largest("pools", pool_bytes)?;
        joined.pinned_bytes = joined.largest("pinned bytes", pinned_bytes)?;
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

    /// Carries out a plan as this rank, from whenever it has heard that all have come.
    pub(super) fn exchange_own(
        &mut self,
        plan: &Arc<ExchangePlan>,
        topology: &Topology,
    ) -> Result<Moved, EngineError> {
        let members: Vec<RankId> = topology.all_ranks().collect();
        let board = self.session.begin_exchange(plan.hash64(), self.worker.bulletin())?;
        let start = Instant::now();
        self.worker.exchange(Task { plan: plan.clone(), members, board, start })
    }

    /// A moment at which all ranks go on together, once all have come. What is said through a store is heard by one rank up to a millisecond
    /// before the next; so ranks of one host, which has one clock, agree on a moment that lies a little ahead.
    fn together(&mut self) -> Result<Instant, EngineError> {
        let Some(now) = clock().filter(|_| self.one_host) else {
            self.gather("begin", &[])?;
            return Ok(Instant::now());
        };
        let said = self.gather("begin", &[nanoseconds(now)])?;
        let latest = said.into_iter().flatten().max().unwrap_or(0);
        let begin = Duration::from_nanos(latest) + LEAD;
        let (now, here) = (clock().unwrap_or(begin), Instant::now());
        // A rank that hears of it late has begun late.
        let begin =
            if now < begin { here + (begin - now) } else { here.checked_sub(now - begin).unwrap_or(here) };
        while Instant::now() < begin {
            std::thread::yield_now();
        }
        Ok(begin)
    }
}

impl Team for AsRank<'_> {
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
        let members: Vec<RankId> = topology.all_ranks().collect();
        let board = self.session.begin_exchange(plan.hash64(), self.worker.bulletin())?;
        let start = self.together()?;
        let moved = self.worker.exchange(Task { plan: plan.clone(), members, board, start })?;
        let time = moved.end.saturating_duration_since(start);
        let names: Vec<&'static str> = moved.carried_by.iter().map(|(backend, _)| *backend).collect();
        let mut mine = vec![nanoseconds(time), moved.steps, nanoseconds(moved.stall)];
        mine.extend(moved.carried_by.iter().map(|(_, bytes)| bytes));
        let mut done = Done { here: 1, timelines: moved.timeline.into_iter().collect(), ..Done::default() };
        for (at, said) in self.gather("exchanged", &mine)?.into_iter().enumerate() {
            let [time, steps, stall, bytes @ ..] = said.as_slice() else {
                return Err(EngineError::Unreadable { rank: RankId::at(at), what: "what its exchange took" });
            };
            done.time = done.time.max(Duration::from_nanos(*time));
            done.steps = done.steps.max(*steps);
            done.stall = done.stall.max(Duration::from_nanos(*stall));
            done.add(names.iter().copied().zip(bytes.iter().copied()).collect());
        }
        Ok(done)
    }

    /// Only where the memory of other processes is open here.
    fn links(
        &mut self,
        plan: &ExchangePlan,
        topology: &Topology,
        means: links::Means,
    ) -> Result<Option<Links>, EngineError> {
        let (layout, patience) = (self.layout.clone(), self.patience);
        links::measure(plan, topology, &layout, (means, patience), |task| {
            self.together()?;
            let mine = self.worker.links(&task)?;
            let worst = self.largest("copied", mine.map_or(u64::MAX, nanoseconds))?;
            Ok((worst != u64::MAX).then(|| Duration::from_nanos(worst)))
        })
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
