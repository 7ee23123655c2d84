//! What the links give: plain copies, and plain sends of NCCL, between the pairs of a plan, all at once and both ways, with no protocol
//! around them.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::Place;
use eplb_comm_nccl::{Backend, Options, Rendezvous, Sends};
use eplb_comm_peer::{source_after_source, sources_in_turn};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, Topology, Transfer};
use eplb_cuda::{DeviceMemory, Puller};
use eplb_exchange::ExchangePlan;

use crate::error::EngineError;

/// Copies per rank are repeated this often in each manner, and the fastest counts.
const ROUNDS: usize = 3;

/// Experts that a ring carries into each rank, as far as there are slots.
const RING: usize = 160;

/// Which copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// What a plan carries over links.
    Planned,
    /// Experts into each rank, all of them from its left neighbour: what a port gives while nothing else uses it.
    Ring,
}

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// Copy engines that pull from the memory of others.
    Copies,
    /// Sends and receives of NCCL.
    Sends,
}

/// In which order plain copies are enqueued, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// As the plan has them, a stream for each source.
    Planned,
    /// The same, on streams of the sources.
    PlannedAtSource,
    /// Source after source, each rank beginning with another, on one stream.
    Runs,
    /// One from each source in turn, each rank beginning with another, on streams of the sources.
    TurnsAtSource,
    /// As [`Manner::Runs`], the tensors of an expert as one batch.
    BatchedRuns,
    /// As [`Manner::TurnsAtSource`], the tensors of an expert as one batch.
    BatchedTurnsAtSource,
}

impl Manner {
    /// All of them, in the order in which they are measured.
    pub(super) const ALL: [Self; 6] = [
        Self::Planned,
        Self::PlannedAtSource,
        Self::Runs,
        Self::TurnsAtSource,
        Self::BatchedRuns,
        Self::BatchedTurnsAtSource,
    ];

    /// Those that are worth measuring: sends know of none.
    fn of(means: Means) -> &'static [Self] {
        match means {
            Means::Copies => &Self::ALL,
            Means::Sends => &[Self::Planned],
        }
    }

    /// Whether the tensors of an expert are one batch: one call of the driver, which not all drivers have.
    fn is_batched(self) -> bool {
        matches!(self, Self::BatchedRuns | Self::BatchedTurnsAtSource)
    }

    /// What it is called in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Planned => "as planned",
            Self::PlannedAtSource => "as planned, by the sources",
            Self::Runs => "source after source",
            Self::TurnsAtSource => "sources in turn, by the sources",
            Self::BatchedRuns => "source after source, in batches",
            Self::BatchedTurnsAtSource => "sources in turn, by the sources, in batches",
        }
    }

    /// A rank's copies in this order.
    fn arrange(self, mine: Vec<Transfer>, rank: RankId, ranks: usize) -> Vec<Transfer> {
        match self {
            Self::Planned | Self::PlannedAtSource => mine,
            Self::Runs | Self::BatchedRuns => source_after_source(mine, rank.index(), ranks),
            Self::TurnsAtSource | Self::BatchedTurnsAtSource => sources_in_turn(mine, rank.index(), ranks),
        }
    }
}

/// What to copy.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) transfers: Arc<[Transfer]>,
    pub(super) means: Means,
    manner: Manner,
    pub(super) deadline: Instant,
}

impl Task {
    /// Copies in a manner; sends have one of their own.
    pub(super) fn new(transfers: &Arc<[Transfer]>, means: Means, manner: Manner, deadline: Instant) -> Self {
        Self { transfers: transfers.clone(), means, manner, deadline }
    }
}

impl Which {
    /// The copies, in the order of the plan.
    pub(super) fn transfers(self, plan: &ExchangePlan, topology: &Topology) -> Arc<[Transfer]> {
        match self {
            Self::Planned => {
                let all = plan.waves().iter().flat_map(|wave| &wave.transfers);
                all.filter(|transfer| !transfer.is_local()).copied().collect()
            }
            Self::Ring => ring(plan.old().layers(), topology).into(),
        }
    }
}

fn ring(layers: usize, topology: &Topology) -> Vec<Transfer> {
    let ranks = topology.ranks();
    let mut transfers = Vec::new();
    for dest in topology.all_ranks().filter(|_| ranks > 1) {
        let source = RankId::at((dest.index() + ranks - 1) % ranks);
        let slots = topology.slots_of(dest).zip(topology.slots_of(source));
        let cells = slots.flat_map(|slots| (0..layers).map(move |layer| (layer, slots)));
        transfers.extend(cells.take(RING).map(|(layer, (to, from))| Transfer {
            layer: LayerId::at(layer),
            expert: ExpertId(0),
            source,
            source_slot: SlotId::at(from),
            dest,
            dest_slot: SlotId::at(to),
            landing: Landing::InPlace,
        }));
    }
    transfers
}

/// What plain copies took: bytes into the worst rank per second, in 10^9.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Links {
    /// Between the pairs of a plan, a copy for each tensor, in the best manner.
    pub(super) planned_gbps: f64,
    /// The same with an expert's tensors as one batch.
    pub(super) batched_gbps: Option<f64>,
    /// Each manner, and what it gave.
    pub(super) by_manner: Vec<(&'static str, f64)>,
    /// Through one port, each way, in the best manner of all.
    pub(super) port_gbps: f64,
}

/// Measures both kinds of copies; `time` is how long the slowest rank took for a task, `None` where ranks cannot copy plainly.
pub(super) fn measure(
    plan: &ExchangePlan,
    topology: &Topology,
    layout: &ModelLayout,
    (means, patience): (Means, Duration),
    mut time: impl FnMut(Task) -> Result<Option<Duration>, EngineError>,
) -> Result<Option<Links>, EngineError> {
    let manners = Manner::of(means);
    let mut each = |which: Which| -> Result<Option<Vec<(Manner, f64)>>, EngineError> {
        let transfers = which.transfers(plan, topology);
        let busiest = Ports::of(transfers.iter(), layout, topology.ranks()).most_received();
        let mut best = vec![Duration::MAX; manners.len()];
        // Round after round in all manners, so that what changes meanwhile befalls all alike.
        for _ in 0..ROUNDS {
            for (best, &manner) in best.iter_mut().zip(manners) {
                let deadline = Instant::now() + patience / 2;
                let Some(worst) = time(Task::new(&transfers, means, manner, deadline))? else {
                    return Ok(None);
                };
                *best = worst.min(*best);
            }
        }
        if busiest == 0 || best.iter().any(Duration::is_zero) {
            return Ok(None);
        }
        let gbps = best.iter().map(|best| busiest as f64 / best.as_secs_f64() / 1e9);
        Ok(Some(manners.iter().copied().zip(gbps).collect()))
    };
    let Some(planned) = each(Which::Planned)? else { return Ok(None) };
    let Some(ring) = each(Which::Ring)? else { return Ok(None) };
    let best = |of: &[(Manner, f64)], batched: Option<bool>| {
        let those =
            of.iter().filter(|(manner, _)| batched.is_none_or(|batched| manner.is_batched() == batched));
        those.map(|&(_, gbps)| gbps).reduce(f64::max)
    };
    Ok(Some(Links {
        planned_gbps: best(&planned, Some(false)).unwrap_or(0.0),
        batched_gbps: best(&planned, Some(true)),
        by_manner: planned.iter().map(|&(manner, gbps)| (manner.name(), gbps)).collect(),
        port_gbps: best(&ring, None).unwrap_or(0.0),
    }))
}

/// Bytes over links through the ports of all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports {
    into: Vec<u64>,
    out_of: Vec<u64>,
}

impl Ports {
    /// What transfers carry; those inside a rank take no link.
    pub(super) fn of<'a>(
        transfers: impl Iterator<Item = &'a Transfer>,
        layout: &ModelLayout,
        ranks: usize,
    ) -> Self {
        let mut ports = Self { into: vec![0; ranks], out_of: vec![0; ranks] };
        for transfer in transfers.filter(|transfer| !transfer.is_local()) {
            let bytes = layout.layer(transfer.layer).expert_bytes() as u64;
            ports.into[transfer.dest.index()] += bytes;
            ports.out_of[transfer.source.index()] += bytes;
        }
        ports
    }

    /// Into the rank that gets most.
    pub(super) fn most_received(&self) -> u64 {
        self.into.iter().copied().max().unwrap_or(0)
    }

    /// Through the busiest port, either way.
    pub(super) fn busiest(&self) -> u64 {
        self.into.iter().chain(&self.out_of).copied().max().unwrap_or(0)
    }
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
        match task.manner {
            Manner::Runs | Manner::BatchedRuns => self.use_one_stream(),
            Manner::Planned => self.use_streams(self.per_source(), false),
            _ => self.use_streams(self.per_source(), true),
        }
        self.use_batches(task.manner.is_batched());
        let mine = task.transfers.iter().filter(|transfer| transfer.dest == rank).copied().collect();
        let mine = task.manner.arrange(mine, rank, self.ranks());
        let start = Instant::now();
        for transfer in &mine {
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
        Ok(sends.carry(&task.transfers, task.deadline)?)
    }
}

/// The means that a rank has.
#[derive(Debug, Default)]
pub(super) struct Plains {
    pub(super) copies: Option<Box<dyn Plain>>,
    pub(super) sends: Option<Box<dyn Plain>>,
}

impl Plains {
    /// Carries this rank's part of a plan plainly, if it can; how long it took.
    pub(super) fn copy(&mut self, task: &Task) -> Result<Option<Duration>, EngineError> {
        let plain = match task.means {
            Means::Copies => &mut self.copies,
            Means::Sends => &mut self.sends,
        };
        plain.as_mut().map(|plain| plain.copy(task)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use eplb_core::TensorLayout;

    use super::*;

    #[test]
    fn a_ring_loads_every_port_alike_and_ports_are_added_up() {
        let layout = ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 10)]; 3]).unwrap();
        let topology = Topology::uniform(4, 80).unwrap();
        let transfers = ring(3, &topology);
        let ports = Ports::of(transfers.iter(), &layout, 4);
        // 20 slots of 3 layers.
        assert_eq!(ports, Ports { into: vec![600; 4], out_of: vec![600; 4] });
        let mut cells: Vec<_> = transfers.iter().map(|t| (t.layer, t.dest_slot)).collect();
        cells.sort_unstable();
        cells.dedup();
        assert_eq!(cells.len(), transfers.len(), "no slot is written twice");
        let of_one = transfers.iter().filter(|t| t.dest == RankId(1) || t.dest == RankId(2)).count() as u64;
        let mut moved = transfers.clone();
        moved.iter_mut().for_each(|t| t.source = if t.dest == RankId(1) { RankId(1) } else { RankId(3) });
        let ports = Ports::of(moved.iter(), &layout, 4);
        assert_eq!(
            (ports.most_received(), ports.busiest()),
            (600, 10 * of_one),
            "{ports:?}: two ranks from one source"
        );
        assert_eq!(ring(3, &Topology::uniform(1, 4).unwrap()), []);
    }
}
