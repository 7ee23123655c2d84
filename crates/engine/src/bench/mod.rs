//! Measures exchanges of experts over a communicator: from the first submission to the last commit, bytes checked.
//!
//! Ranks are threads of this process ([`ExchangeBench::run`]), each with memory of its own: on host memory for `local` and `gloo`,
//! on one device each for the others. For `nccl`, `pynccl` and `peer` (there on host memory too) they may also be processes
//! ([`ExchangeBench::run_as_rank`]). They run the same driver,
//! exchange and protocol as in a server.

mod cpu;
mod crowd;
pub mod faults;
mod gloo;
pub mod interference;
mod links;
mod measure;
#[cfg(target_os = "linux")]
mod peers;
mod placement;
mod processes;
mod ranks;
mod report;
mod threads;
mod timeline;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::{Memory, Timeline};
use eplb_comm_nccl::Launch;
use eplb_core::{ModelLayout, Placement, TensorLayout, Topology};
use eplb_cuda::ipc::HandleKind;
use eplb_exchange::{ExchangePlan, Limits};

use crate::error::EngineError;
use crate::margin::Margin;
pub use crowd::Crowded;
use links::{Links, Ports};
pub use placement::Moves;
pub use ranks::{Carrier, Commit, DeviceGroup};
pub use report::ExchangeReport;
use threads::Threads;
pub use timeline::{Table, Wait};

/// What a fast link carries in a nanosecond.
const LINK_BYTES_PER_NS: u128 = 300;

/// What to measure.
#[derive(Debug, Clone)]
pub struct ExchangeBench {
    /// What carries the bytes.
    pub carrier: Carrier,
    /// Ranks.
    pub ranks: usize,
    /// MoE layers.
    pub layers: usize,
    /// Logical experts per layer.
    pub experts: usize,
    /// Slots beyond one per expert, per layer over all ranks.
    pub redundant: usize,
    /// Bytes of each tensor of an expert, for the layers in turn: one list is that of all.
    pub tensors: Vec<Vec<usize>>,
    /// Bytes from one row to the next beyond the row, and rows per tensor: `None` = contiguous.
    pub gaps: Option<(usize, usize)>,
    /// What moves.
    pub moves: Moves,
    /// Exchanges measured.
    pub iterations: usize,
    /// Time after which no exchange begins, once one was measured; for ranks that are threads. `None` = all are made.
    pub time: Option<Duration>,
    /// Every byte is checked after each so many exchanges, beside the first and the last.
    pub check_every: Option<usize>,
    /// Exchanges before them, of which the first is reported by itself.
    pub warmup: usize,
    /// Staging per rank; `None` = the default of [`Limits::new`].
    pub staging_bytes: Option<usize>,
    /// Whether waves overlap; `None`: they do.
    pub overlap: Option<bool>,
    /// Most bytes that a wave carries through a port; `None`: what is predicted to take the least time.
    pub wave_bytes: Option<u64>,
    /// Whether the checksum kernel looks at every slot that is checked, too, on devices.
    pub checksums: bool,
    /// Whether plain sends of NCCL are measured beside plain copies, with a backend of NCCL.
    pub sends: bool,
    /// Options of NCCL's communicators.
    pub config: nccl_rs::Config,
    /// Most operations of a rank in a group of NCCL; `None` = its default.
    pub operations: Option<usize>,
    /// Tensors of fewer bytes share a message with the others of their expert; `None` = the backend's default.
    pub gather_below: Option<usize>,
    /// Steps between the largest begun on any rank and the one proposed for a commit, at least: 2 and those that a round trip takes.
    pub margin: u64,
    /// Time of a step; zero commits as soon as all agree.
    pub step: Duration,
    /// Bytes that a server's own all-reduces sum on the same devices meanwhile; `None` = no server.
    pub beside_bytes: Option<usize>,
    /// Whether a server's cooperative kernels, each of which takes every multiprocessor, run on the same devices meanwhile.
    pub crowd: bool,
    /// From where groups are launched; the server beside launches them before its steps with [`Launch::Pump`].
    pub launch: Launch,
    /// Whether experts travel over the communicator of the server beside, which lends it, and not over one of our own.
    pub lent: bool,
    /// How commits go on devices, and how messages of NCCL are gathered.
    pub commit: Commit,
    /// How slots on devices are opened by other processes, with `peer`.
    pub handles: HandleKind,
    /// Longest time that any part may take.
    pub patience: Duration,
    /// Whether slots that could wait for a drain may go through staging ([`Limits::followers`]).
    pub followers: bool,
    /// Streams of each rank for pulls with `peer`: so many for each other rank where ranks are threads, for all where they are processes.
    pub streams: usize,
    /// Nodes that the ranks are to be taken for; more than one: `peer` inside them and `nccl` between them, in one wave. Ranks that are
    /// processes are told apart by the names of their hosts ([`HostId::pretended`](crate::process::HostId::pretended)), and meet as with `auto`.
    pub nodes: usize,
    /// Most bytes per second into a rank, in 10^9, with `peer` on devices; `None`: as fast as it goes.
    pub max_gbps: Option<f64>,
    /// Whether ranks take turns at sources, with `peer` on devices; `None`: the backend's default.
    pub turns: Option<bool>,
    /// Where to write what happened when in the last exchange, one line per moment; ranks that are processes add their number to the
    /// name. `None`: it is not recorded.
    pub timeline: Option<PathBuf>,
}

impl ExchangeBench {
    fn layout(&self) -> Result<ModelLayout, EngineError> {
        let tensor = |(number, &bytes): (usize, &usize)| {
            let name = format!("t{number}");
            match self.gaps {
                Some((gap, rows)) if bytes % rows == 0 => {
                    let (row_bytes, pitch) = (bytes / rows, bytes / rows + gap);
                    TensorLayout { name, rows, row_bytes, pitch, slot_stride: rows * pitch }
                }
                _ => TensorLayout::contiguous(name, bytes),
            }
        };
        let layers = self.tensors.iter().cycle().take(self.layers);
        let layers = layers.map(|tensors| tensors.iter().enumerate().map(tensor).collect());
        Ok(ModelLayout::new(layers.collect())?)
    }

    /// Runs the exchanges with ranks that are threads of this process.
    ///
    /// Where a proposal came too late for some rank, all of them are made again with a larger margin, and the report says how often:
    /// its figures are those of the last time alone.
    ///
    /// # Errors
    /// Options that contradict each other, too little memory, a backend that is not there, or an exchange that failed.
    /// Wrong bytes are no error here: they are counted.
    pub fn run(&self) -> Result<ExchangeReport, EngineError> {
        self.in_time(Self::run_once)
    }

    fn in_time(
        &self,
        mut measure: impl FnMut(&Self) -> Result<ExchangeReport, EngineError>,
    ) -> Result<ExchangeReport, EngineError> {
        let (report, margin, again) =
            until_in_time(self.margin, |margin| measure(&Self { margin, ..self.clone() }))?;
        Ok(ExchangeReport { margin, again, ..report })
    }

    fn run_once(&self) -> Result<ExchangeReport, EngineError> {
        let setup = self.setup()?;
        let ranks = ranks::make(self, &setup.topology, &setup.layout, setup.limits.staging_bytes)?;
        let (device_bytes, pool_bytes) = (ranks.device_bytes, ranks.pool_bytes);
        let (beside, crowds) = (ranks.beside, ranks.crowds);
        let pinned_bytes =
            ranks.parts.iter().map(|parts| parts.communicator.pinned_bytes()).max().unwrap_or(0);
        let mut threads = Threads::start(ranks.parts, &setup, self)?;
        let mut report = self.measure(&mut threads, &setup)?;
        (report.device_bytes, report.pool_bytes) = (device_bytes, pool_bytes);
        report.pinned_bytes = pinned_bytes as u64;
        if device_bytes.is_some() {
            report.copy_gbps = self.copy_gbps(0)?;
        }
        if let Some(beside) = beside {
            report.served = beside.finish()?;
        }
        if let Some(crowds) = crowds {
            report.crowded = crowds.finish()?;
        }
        Ok(report)
    }

    /// The first `rounds + 1` placements of a run, of which each follows from the one before: what others have to carry out to be
    /// compared with.
    ///
    /// # Errors
    /// Options that contradict each other.
    pub fn placements(&self, rounds: usize) -> Result<Vec<Placement>, EngineError> {
        let setup = self.setup()?;
        let mut placements = vec![setup.start.clone()];
        for round in 0..rounds {
            let plan = self.plan(&setup, &placements[round], round)?;
            placements.push(plan.target().clone());
        }
        Ok(placements)
    }

    fn setup(&self) -> Result<Setup, EngineError> {
        let slots = self.experts + self.redundant;
        if self.ranks == 0 || !slots.is_multiple_of(self.ranks) {
            return Err(EngineError::Options(format!(
                "{} experts and {} redundant slots do not divide over {} ranks",
                self.experts, self.redundant, self.ranks
            )));
        }
        if self.crowd && matches!(self.carrier, Carrier::Local | Carrier::Gloo) {
            return Err(EngineError::Options(
                "cooperative kernels beside an exchange want ranks on devices".into(),
            ));
        }
        if self.iterations == 0 || self.tensors.iter().all(Vec::is_empty) {
            return Err(EngineError::Options("at least one iteration and one tensor are needed".into()));
        }
        let mut topology = Topology::uniform(self.ranks, slots)?;
        if self.nodes > 1 {
            if !matches!(self.carrier, Carrier::Peer | Carrier::Auto) {
                return Err(EngineError::Options(
                    "nodes are for `peer` and `auto`, which are joined by nccl (or gloo) between them".into(),
                ));
            }
            topology = topology.with_nodes(self.nodes)?;
        }
        let topology = Arc::new(topology);
        let layout = Arc::new(self.layout()?);
        let mut limits = Limits::new(&layout, &topology);
        limits.overlap = self.overlap.unwrap_or(true);
        limits.followers = self.followers;
        limits.wave_bytes = self.wave_bytes;
        if !self.step.is_zero() {
            // A wave waits for about three steps then.
            limits.wave_cost =
                u64::try_from(self.step.as_nanos() * 3 * LINK_BYTES_PER_NS).unwrap_or(u64::MAX);
        }
        if let Some(bytes) = self.staging_bytes {
            limits.staging_bytes = bytes;
        }
        let start = Placement::round_robin(self.layers, self.experts, slots)?;
        Ok(Setup { topology, layout, limits, start, since: Instant::now() })
    }

    /// What round `round` carries out.
    fn plan(&self, setup: &Setup, now: &Placement, round: usize) -> Result<ExchangePlan, EngineError> {
        let Setup { topology, layout, limits, .. } = setup;
        let new = self.moves.apply(now, topology, round as u64)?;
        Ok(ExchangePlan::new(now, &new, topology, layout, None, limits)?)
    }
}

/// Measures with a margin of `least` steps, and anew with a larger one as long as a proposal came too late for some rank; the margin that was
/// enough, and how often it was not.
fn until_in_time<T>(
    least: u64,
    mut measure: impl FnMut(u64) -> Result<T, EngineError>,
) -> Result<(T, u64, usize), EngineError> {
    let (mut margin, mut again) = (Margin::new(least), 0);
    loop {
        match measure(margin.steps()) {
            // All ranks say so, or none: of one that is silent there is another cause.
            Err(EngineError::Aborted { cause, .. }) if cause.is_lateness() && margin.grow() => again += 1,
            done => return done.map(|done| (done, margin.steps(), again)),
        }
    }
}

/// Bytes over links that a plan carries through the port of each rank.
fn ports(plan: &ExchangePlan, layout: &ModelLayout, ranks: usize) -> Ports {
    Ports::of(plan.waves().iter().flat_map(|wave| &wave.transfers), layout, ranks)
}

/// What a bench begins with.
#[derive(Debug)]
struct Setup {
    topology: Arc<Topology>,
    layout: Arc<ModelLayout>,
    limits: Limits,
    start: Placement,
    /// What moments count from.
    since: Instant,
}

/// One exchange, over all ranks.
#[derive(Debug, Default)]
struct Done {
    /// From the submission to the last commit on the slowest rank.
    time: Duration,
    /// Most steps of a rank.
    steps: u64,
    /// Longest call of `step()`.
    stall: Duration,
    /// Bytes over links by the backends that carried them, over all ranks.
    carried_by: Vec<(&'static str, u64)>,
    /// Ranks of this process.
    here: usize,
    /// Of the ranks of this process, where they are recorded.
    timelines: Vec<Arc<Timeline>>,
}

impl Done {
    /// Adds what the backends of a rank carried; all ranks have the same ones.
    fn add(&mut self, carried_by: Vec<(&'static str, u64)>) {
        match self.carried_by.is_empty() {
            true => self.carried_by = carried_by,
            false => self.carried_by.iter_mut().zip(carried_by).for_each(|(sum, (_, bytes))| sum.1 += bytes),
        }
    }
}

/// All ranks of a bench, as what measures them sees them: threads of this process, or this process as one rank of several, each of
/// which measures in lockstep with the others.
trait Team {
    /// Name of the backend.
    fn backend(&self) -> &'static str;

    /// Writes the bytes that the maps in force name into every slot.
    fn fill(&mut self) -> Result<(), EngineError>;

    /// Bytes that are wrong, over all ranks.
    fn check(&mut self) -> Result<u64, EngineError>;

    /// Carries out a plan.
    fn exchange(&mut self, plan: &Arc<ExchangePlan>, topology: &Topology) -> Result<Done, EngineError>;

    /// What plain copies or sends give, between the pairs of a plan and in a ring; `None` where ranks have no such means. Overwrites slots.
    fn links(
        &mut self,
        plan: &ExchangePlan,
        topology: &Topology,
        means: links::Means,
    ) -> Result<Option<Links>, EngineError>;
}

/// Bytes of host memory that a bench on host memory needs.
fn host_bytes(layout: &ModelLayout, topology: &Topology, staging: usize) -> u64 {
    let slots = topology.slots() as u64;
    let per_slot: u64 = (0..layout.layers())
        .flat_map(|layer| layout.layer(eplb_core::LayerId::at(layer)).tensors())
        .map(|tensor| tensor.slot_stride as u64)
        .sum();
    per_slot * slots + (staging as u64) * topology.ranks() as u64
}

/// What ranks of the bench need of their memory.
trait Inspect: std::fmt::Debug + Send {
    fn memory(&self) -> &dyn Memory;
    fn fill(
        &mut self,
        layer: eplb_core::LayerId,
        slot: eplb_core::SlotId,
        expert: eplb_core::ExpertId,
    ) -> Result<(), EngineError>;
    fn count_wrong(
        &mut self,
        layer: eplb_core::LayerId,
        slot: eplb_core::SlotId,
        expert: eplb_core::ExpertId,
    ) -> Result<u64, EngineError>;
}

#[cfg(test)]
mod tests {
    use eplb_core::RankId;
    use eplb_exchange::Cause;

    use super::*;

    #[test]
    fn lateness_and_nothing_else_is_worth_another_try() {
        let rank = RankId(1);
        let aborted = |cause| Err::<(), _>(EngineError::Aborted { rank, wave: 0, cause });
        let late = Cause::TooLate { rank, wave: 0 };
        let mut tried = Vec::new();
        let done = until_in_time(3, |margin| {
            tried.push(margin);
            if tried.len() < 3 { aborted(late.clone()) } else { Ok(()) }
        });
        assert_eq!((done.unwrap(), tried), (((), 48, 2), vec![3, 12, 48]));
        let mut tried = 0;
        let failed = Cause::PeerFailed { rank, detail: "it broke".into() };
        let done = until_in_time(3, |_| {
            tried += 1;
            aborted(failed.clone())
        });
        assert!(done.unwrap_err().to_string().contains("it broke"));
        assert_eq!(tried, 1);
    }
}
