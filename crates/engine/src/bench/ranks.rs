//! Ranks of a bench: memory, stream and communicator of each backend.

use std::sync::Arc;
use std::time::Instant;

use eplb_comm::conformance::RankMemory;
use eplb_comm::host::{HostMemory, HostStream, StreamOptions};
use eplb_comm::local::LocalGroup;
use eplb_comm::store::{InProcessStore, Store};
use eplb_comm::{CommError, Communicator, Memory, Mixed, Stream};
use eplb_comm_nccl::{
    Backend, Collectives, Gather, Launch, Lend, NcclCommError, NcclCommunicator, Options, Pump, Rendezvous,
    connect,
};
use eplb_core::{ExpertId, LayerId, ModelLayout, RankId, SlotId, Topology};
use eplb_cuda::ipc::HandleKind;
use eplb_cuda::kernels::Kernels;
use eplb_cuda::{Context, CudaStream, DeviceMemory, DeviceStream, Inspector, Puller, probe};

use super::crowd::Crowds;
use super::links::{LaterSends, Plain, Plains};
use super::{ExchangeBench, Inspect, Setup, gloo, host_bytes};
use crate::error::EngineError;
use crate::process::{HostId, Session};

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// Copies between threads, on host memory.
    Local,
    /// Gloo over the loopback interface, on host memory.
    Gloo,
    /// NCCL, on devices.
    Nccl(Backend),
    /// Copy engines that pull from the memory of peers, on devices.
    Peer,
}

/// How bytes go from staging to slots on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Commit {
    /// By the commit kernel where its machine code is found, else by copies.
    #[default]
    Auto,
    /// A copy for each tensor.
    Copies,
    /// One launch of the commit kernel, compiled at start-up if need be.
    Kernel,
}

/// One rank of a bench.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) stream: Box<dyn Stream>,
    pub(super) communicator: Box<dyn Communicator>,
    pub(super) inspect: Box<dyn Inspect>,
    pub(super) links: Plains,
    /// The compute stream, of ranks on devices.
    pub(super) compute: Option<Arc<CudaStream>>,
}

/// All ranks of a bench.
#[derive(Debug)]
pub(super) struct Ranks {
    pub(super) parts: Vec<Parts>,
    pub(super) device_bytes: Option<u64>,
    /// Own pools of the rank that has most.
    pub(super) pool_bytes: Option<u64>,
    /// The server's own collectives.
    pub(super) beside: Option<Collectives>,
    /// The server's cooperative kernels.
    pub(super) crowds: Option<Crowds>,
}

pub(super) fn make(
    bench: &ExchangeBench,
    topology: &Topology,
    layout: &Arc<ModelLayout>,
    staging: usize,
) -> Result<Ranks, EngineError> {
    match bench.carrier {
        Carrier::Local => local(topology, layout, staging),
        Carrier::Gloo => gloo::ranks(bench, topology, layout, staging),
        Carrier::Nccl(backend) => {
            let options = nccl_options(bench);
            let deadline = Instant::now() + bench.patience;
            devices(bench, topology, layout, staging, |group| {
                if bench.lent {
                    return group.borrow(&options, bench.beside_bytes.unwrap_or(0));
                }
                let communicators = group.connect(backend, &options, deadline)?;
                let pool_bytes = communicators.iter().map(NcclCommunicator::pool_bytes).max();
                let pump = |c: &NcclCommunicator| (bench.launch == Launch::Pump).then(|| c.pump());
                let pumps = communicators.iter().map(pump).collect();
                let mut made =
                    Connected::with(communicators.into_iter().map(boxed).collect(), Beside::ToStart(pumps));
                made.pool_bytes = pool_bytes.unwrap_or(0);
                // Beside a server's collectives nobody says in which order such sends are launched.
                if bench.sends && bench.beside_bytes.is_none() && bench.ranks > 1 && bench.gaps.is_none() {
                    made.sends = group.later_sends(backend, &options);
                }
                Ok(made)
            })
        }
        Carrier::Peer => devices(bench, topology, layout, staging, |group| {
            let options = peer_options(bench);
            let inside = eplb_comm_peer::connect(&group.memories, &options)?.into_iter().map(boxed);
            let pumps = group.memories.iter().map(|_| None).collect();
            let communicators = if bench.nodes > 1 {
                let deadline = Instant::now() + bench.patience;
                let between = group.connect(Backend::Nccl, &nccl_options(bench), deadline)?;
                mixed(topology, inside, between)?
            } else {
                inside.collect()
            };
            Ok(Connected::with(communicators, Beside::ToStart(pumps)))
        }),
    }
}

/// `peer` inside nodes and `nccl` between them.
fn mixed(
    topology: &Topology,
    inside: impl Iterator<Item = Box<dyn Communicator>>,
    between: Vec<NcclCommunicator>,
) -> Result<Vec<Box<dyn Communicator>>, EngineError> {
    let topology = Arc::new(topology.clone());
    let pair =
        |(inside, between)| Ok(boxed(Mixed::new("peer and nccl", inside, boxed(between), topology.clone())?));
    inside.zip(between).map(pair).collect()
}

pub(crate) fn boxed(communicator: impl Communicator + 'static) -> Box<dyn Communicator> {
    Box::new(communicator)
}

/// Communicators of all ranks, and the server beside them.
struct Connected {
    communicators: Vec<Box<dyn Communicator>>,
    beside: Beside,
    /// Plain sends, by rank, or none.
    sends: Vec<Box<dyn Plain>>,
    /// Own pools of the communicator that has most.
    pool_bytes: usize,
}

impl Connected {
    fn with(communicators: Vec<Box<dyn Communicator>>, beside: Beside) -> Self {
        Self { communicators, beside, sends: Vec::new(), pool_bytes: 0 }
    }
}

/// A server beside the exchange.
enum Beside {
    /// If there is to be one: for each rank the handle by which it launches waves, if it does.
    ToStart(Vec<Option<Pump>>),
    /// It lends its communicators.
    Started(Collectives),
}

/// Ranks with a device each, and what their communicators take of the devices' memory.
fn devices(
    bench: &ExchangeBench,
    topology: &Topology,
    layout: &Arc<ModelLayout>,
    staging: usize,
    connect: impl FnOnce(&DeviceGroup) -> Result<Connected, EngineError>,
) -> Result<Ranks, EngineError> {
    if bench.launch == Launch::Pump && (bench.beside_bytes.is_none() || bench.carrier == Carrier::Peer) {
        return Err(EngineError::Options(
            "waves that a server launches are NCCL's, and need a server: say what it sums beside the exchange".into(),
        ));
    }
    // Threads of one process pull from each other's memory as it is.
    let kind = if bench.carrier == Carrier::Peer { HandleKind::Legacy } else { bench.handles };
    if bench.lent && bench.launch != Launch::Pump {
        return Err(EngineError::Options(
            "a server that lends its communicator launches the waves itself".into(),
        ));
    }
    let group = DeviceGroup::exportable(topology, layout, staging, kind)?;
    // Everything but the communicators first: from their first message on nothing is taken any more.
    let ends = group.memories.iter().map(|memory| Ends::new(bench, memory, &group.memories));
    let ends = ends.collect::<Result<Vec<_>, _>>()?;
    let before = group.free_bytes()?;
    let Connected { communicators, beside, sends, pool_bytes } = connect(&group)?;
    let commits = ends.iter().map(|ends| ends.stream.pool_bytes()).max().unwrap_or(0);
    let pool_bytes = Some((pool_bytes + commits) as u64);
    let mut sends = sends.into_iter();
    let taken = before.iter().zip(group.free_bytes()?).map(|(before, now)| before.saturating_sub(now));
    let device_bytes = taken.max().map(|most| most as u64);
    let parts = communicators.into_iter().zip(ends).map(|(communicator, ends)| Parts {
        stream: Box::new(ends.stream),
        communicator,
        inspect: Box::new(ends.inspector),
        // Memory of other kinds is not open to the devices of other threads.
        links: Plains {
            copies: (bench.handles == HandleKind::Legacy)
                .then(|| -> Box<dyn Plain> { Box::new(ends.puller) }),
            sends: sends.next(),
        },
        compute: Some(ends.compute),
    });
    let parts = parts.collect();
    let contexts: Vec<_> = group.memories.iter().map(|memory| memory.context().clone()).collect();
    let beside = match (beside, bench.beside_bytes) {
        (Beside::Started(server), _) => Some(server),
        (Beside::ToStart(pumps), Some(bytes)) => Some(Collectives::start(&contexts, &pumps, bytes)?),
        (Beside::ToStart(_), None) => None,
    };
    let crowds = bench.crowd.then(|| Crowds::start(&contexts)).transpose()?;
    Ok(Ranks { parts, device_bytes, pool_bytes, beside, crowds })
}

/// What a rank on a device has beside its communicator.
struct Ends {
    compute: Arc<CudaStream>,
    stream: DeviceStream,
    inspector: Inspector,
    puller: Puller,
}

impl Ends {
    fn new(
        bench: &ExchangeBench,
        memory: &Arc<DeviceMemory>,
        all: &[Arc<DeviceMemory>],
    ) -> Result<Self, EngineError> {
        let stream = CudaStream::new(memory.context(), 0)?;
        Ok(Self {
            stream: committing(bench, memory, &stream)?,
            compute: stream,
            inspector: inspector(bench, memory)?,
            puller: Puller::new(memory.clone(), all.to_vec(), bench.streams)?,
        })
    }
}

/// What looks at a rank's slots, as the bench wants it.
pub(super) fn inspector(bench: &ExchangeBench, memory: &Arc<DeviceMemory>) -> Result<Inspector, EngineError> {
    let inspector = Inspector::new(memory.clone())?;
    if !bench.checksums {
        return Ok(inspector);
    }
    Ok(inspector.with_checksums(Arc::new(Kernels::load(memory.context(), None)?))?)
}

/// A compute stream whose commits are copies or launches of the kernel, as the bench wants it.
pub(super) fn committing(
    bench: &ExchangeBench,
    memory: &Arc<DeviceMemory>,
    stream: &Arc<CudaStream>,
) -> Result<DeviceStream, EngineError> {
    let made = DeviceStream::new(memory.clone(), stream.clone())?;
    let kernels = match bench.commit {
        Commit::Copies => return Ok(made),
        Commit::Kernel => Kernels::load(memory.context(), None)?,
        Commit::Auto => match Kernels::load_built(memory.context(), None) {
            Ok(kernels) => kernels,
            // Copies do the same; nobody asked for more.
            Err(_) => return Ok(made),
        },
    };
    Ok(made.with_kernels(Arc::new(kernels))?)
}

/// A rank that is a process, and what its communicator takes of its device's memory.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) parts: Parts,
    pub(super) device_bytes: u64,
    /// Its own pools.
    pub(super) pool_bytes: u64,
}

/// The part of a rank of a session: on the device of its number among the ranks of its host, or on the only one that it sees.
pub(super) fn as_rank(
    bench: &ExchangeBench,
    setup: &Setup,
    session: &mut Session,
) -> Result<Own, EngineError> {
    if bench.beside_bytes.is_some() || bench.crowd || bench.launch == Launch::Pump {
        return Err(EngineError::Options("a server beside the exchange wants ranks that are threads".into()));
    }
    #[cfg(target_os = "linux")]
    if bench.carrier == Carrier::Peer {
        return super::peers::as_rank(bench, setup, session);
    }
    let Carrier::Nccl(backend) = bench.carrier else {
        return Err(EngineError::Options(
            "ranks that are processes exchange over nccl, pynccl or peer".into(),
        ));
    };
    let rank = session.rank();
    let hosts = session.hosts()?;
    let before_us = hosts[..rank.index()].iter().filter(|&host| *host == hosts[rank.index()]).count();
    let ordinal = if probe()?.devices.len() == 1 { 0 } else { before_us };
    let context = Context::primary(ordinal)?;
    let slots = setup.topology.slots_of(rank);
    let (layout, staging) = (setup.layout.clone(), setup.limits.staging_bytes);
    let memory = DeviceMemory::exportable(&context, rank, layout, slots, staging, bench.handles)?;
    let compute = CudaStream::new(&context, 0)?;
    let stream = committing(bench, &memory, &compute)?;
    let inspector = inspector(bench, &memory)?;
    let (before, _) = context.memory_info()?;
    let rendezvous = Rendezvous { store: session.corner()?, size: hosts.len(), epoch: session.epoch() };
    let deadline = Instant::now() + bench.patience;
    let options = nccl_options(bench);
    let communicator = connect(backend, memory.clone(), &rendezvous, options.clone(), deadline)?;
    let pool_bytes = (communicator.pool_bytes() + stream.pool_bytes()) as u64;
    let communicator = with_bulletin(communicator, bench, &memory, &hosts, session)?;
    let (now, _) = context.memory_info()?;
    // Ranks that are alone have no links, and rows with gaps are not sent plainly.
    let sends = (hosts.len() > 1 && bench.gaps.is_none())
        .then(|| -> Box<dyn Plain> { Box::new(LaterSends::new(backend, memory, rendezvous, options)) });
    let parts = Parts {
        stream: Box::new(stream),
        communicator: Box::new(communicator),
        inspect: Box::new(inspector),
        links: Plains { copies: None, sends },
        compute: Some(compute),
    };
    Ok(Own { parts, device_bytes: before.saturating_sub(now) as u64, pool_bytes })
}

/// Ranks of one host say notes to each other in pages that they share.
#[cfg(target_os = "linux")]
fn with_bulletin(
    communicator: NcclCommunicator,
    bench: &ExchangeBench,
    memory: &Arc<DeviceMemory>,
    hosts: &[HostId],
    session: &mut Session,
) -> Result<NcclCommunicator, EngineError> {
    if hosts.len() < 2 || hosts.iter().any(|host| *host != hosts[0]) {
        return Ok(communicator);
    }
    let meeting = super::peers::meeting(bench, session)?;
    let joined = eplb_comm_peer::process::join_bulletin(&meeting, memory.layout(), memory.extent().clone());
    Ok(communicator.with_bulletin(joined.map_err(super::peers::refused)?))
}

#[cfg(not(target_os = "linux"))]
fn with_bulletin(
    communicator: NcclCommunicator,
    _: &ExchangeBench,
    _: &Arc<DeviceMemory>,
    _: &[HostId],
    _: &mut Session,
) -> Result<NcclCommunicator, EngineError> {
    Ok(communicator)
}

/// How the bench wants its communicators over `peer`.
pub(super) fn peer_options(bench: &ExchangeBench) -> eplb_comm_peer::Options {
    let (streams, max_gbps) = (bench.streams, bench.max_gbps);
    eplb_comm_peer::Options { streams, max_gbps, ..eplb_comm_peer::Options::default() }
}

/// How the bench wants its communicators over NCCL.
fn nccl_options(bench: &ExchangeBench) -> Options {
    let mut options = Options { config: bench.config.clone(), launch: bench.launch, ..Options::default() };
    options.operations = bench.operations.unwrap_or(options.operations);
    options.gather_below = bench.gather_below.unwrap_or(options.gather_below);
    options.register = bench.register;
    options.gather = if bench.commit == Commit::Copies { Gather::Copies } else { Gather::Auto };
    options
}

fn local(topology: &Topology, layout: &Arc<ModelLayout>, staging: usize) -> Result<Ranks, EngineError> {
    let needed = host_bytes(layout, topology, staging);
    crate::rebalance::check_bytes(needed)?;
    let memories = topology
        .all_ranks()
        .map(|rank| HostMemory::new(rank, layout.clone(), topology.slots_of(rank), staging))
        .collect::<Result<Vec<_>, _>>()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let parts = LocalGroup::new(memories.clone(), threads)?
        .into_iter()
        .zip(memories)
        .map(|(communicator, memory)| -> Result<Parts, CommError> {
            Ok(Parts {
                stream: Box::new(HostStream::new(memory.clone(), StreamOptions::default())?),
                communicator: Box::new(communicator),
                inspect: Box::new(memory),
                links: Plains::default(),
                compute: None,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Ranks { parts, device_bytes: None, pool_bytes: None, beside: None, crowds: None })
}

/// Memory of ranks of this process, each on a device of its own.
#[derive(Debug)]
pub struct DeviceGroup {
    /// By rank.
    pub memories: Vec<Arc<DeviceMemory>>,
    store: Arc<dyn Store>,
}

impl DeviceGroup {
    /// Takes the memory of every rank of a topology: rank `r` on device `r`.
    ///
    /// # Errors
    /// There is no driver, there are fewer devices than ranks, or too little memory.
    pub fn new(topology: &Topology, layout: &Arc<ModelLayout>, staging: usize) -> Result<Self, EngineError> {
        Self::exportable(topology, layout, staging, HandleKind::Legacy)
    }

    /// As [`DeviceGroup::new`], in memory of which there are such handles.
    ///
    /// # Errors
    /// As [`DeviceGroup::new`].
    pub fn exportable(
        topology: &Topology,
        layout: &Arc<ModelLayout>,
        staging: usize,
        kind: HandleKind,
    ) -> Result<Self, EngineError> {
        let layouts = vec![layout.clone(); topology.ranks()];
        let slots: Vec<_> = topology.all_ranks().map(|rank| topology.slots_of(rank)).collect();
        Self::made(&layouts, &slots, staging, kind)
    }

    /// As [`DeviceGroup::new`], with a layout (rows alike, pitches maybe not) and slots for each rank.
    ///
    /// # Errors
    /// As [`DeviceGroup::new`].
    pub fn of(
        layouts: &[Arc<ModelLayout>],
        slots: &[std::ops::Range<usize>],
        staging: usize,
    ) -> Result<Self, EngineError> {
        Self::made(layouts, slots, staging, HandleKind::Legacy)
    }

    fn made(
        layouts: &[Arc<ModelLayout>],
        slots: &[std::ops::Range<usize>],
        staging: usize,
        kind: HandleKind,
    ) -> Result<Self, EngineError> {
        let contexts = probe()?.contexts(layouts.len())?;
        let memories = contexts
            .iter()
            .zip(layouts.iter().zip(slots))
            .enumerate()
            .map(|(rank, (context, (layout, slots)))| {
                let rank = RankId::at(rank);
                DeviceMemory::exportable(context, rank, layout.clone(), slots.clone(), staging, kind)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { memories, store: Arc::new(InProcessStore::new()) })
    }

    /// Free bytes of every rank's device.
    fn free_bytes(&self) -> Result<Vec<usize>, EngineError> {
        let free = |memory: &Arc<DeviceMemory>| memory.context().memory_info().map(|(free, _)| free);
        Ok(self.memories.iter().map(free).collect::<Result<_, _>>()?)
    }

    /// Plain sends of every rank, over a communicator of their own.
    fn later_sends(&self, backend: Backend, options: &Options) -> Vec<Box<dyn Plain>> {
        let rendezvous = Rendezvous { store: self.store.clone(), size: self.memories.len(), epoch: 1 };
        let later = |memory: &Arc<DeviceMemory>| -> Box<dyn Plain> {
            Box::new(LaterSends::new(backend, memory.clone(), rendezvous.clone(), options.clone()))
        };
        self.memories.iter().map(later).collect()
    }

    /// Communicators over those of a server that is started here, and sums as many bytes in each step.
    fn borrow(&self, options: &Options, bytes: usize) -> Result<Connected, EngineError> {
        let lend = |memory: &Arc<DeviceMemory>| Lend {
            memory: memory.clone(),
            rendezvous: Rendezvous { store: self.store.clone(), size: self.memories.len(), epoch: 1 },
            options: options.clone(),
        };
        let (server, communicators) =
            Collectives::start_lending(self.memories.iter().map(lend).collect(), bytes)?;
        let pool_bytes = communicators.iter().map(NcclCommunicator::pool_bytes).max();
        let boxed = communicators.into_iter().map(boxed).collect();
        let made = Connected::with(boxed, Beside::Started(server));
        Ok(Connected { pool_bytes: pool_bytes.unwrap_or(0), ..made })
    }

    /// Makes every rank's communicator, each on a thread of its own, since they wait for each other.
    ///
    /// # Errors
    /// The first rank's error that is not about another rank.
    pub fn connect(
        &self,
        backend: Backend,
        options: &Options,
        deadline: Instant,
    ) -> Result<Vec<NcclCommunicator>, EngineError> {
        let rendezvous = Rendezvous { store: self.store.clone(), size: self.memories.len(), epoch: 1 };
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .memories
                .iter()
                .map(|memory| {
                    let (rendezvous, options) = (rendezvous.clone(), options.clone());
                    scope.spawn(move || connect(backend, memory.clone(), &rendezvous, options, deadline))
                })
                .collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let mut communicators = Vec::new();
        let mut failure: Option<EngineError> = None;
        for (rank, made) in made.into_iter().enumerate() {
            let lost = |_| EngineError::RankLost {
                rank: RankId::at(rank),
                detail: "making its communicator panicked".into(),
            };
            match made.map_err(lost).and_then(|made| Ok(made?)) {
                Ok(communicator) => communicators.push(communicator),
                // That others did not come says less than why one of them did not.
                Err(error) if failure.as_ref().is_none_or(is_about_others) => failure = Some(error),
                Err(_) => {}
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        Ok(communicators)
    }
}

/// Whether an error only says that other ranks did not come.
fn is_about_others(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Nccl(
            NcclCommError::Group(_)
                | NcclCommError::Nccl(nccl_rs::NcclError::Timeout { .. })
                | NcclCommError::Comm(CommError::Timeout { .. })
        )
    )
}

impl Inspect for Arc<HostMemory> {
    fn memory(&self) -> &dyn Memory {
        &**self
    }

    fn fill(&mut self, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<(), EngineError> {
        Ok(HostMemory::fill(self, layer, slot, expert)?)
    }

    fn count_wrong(&mut self, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<u64, EngineError> {
        Ok(HostMemory::count_wrong(self, layer, slot, expert)?)
    }
}

impl Inspect for Inspector {
    fn memory(&self) -> &dyn Memory {
        &**Inspector::memory(self)
    }

    fn fill(&mut self, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<(), EngineError> {
        Ok(RankMemory::fill(self, layer, slot, expert)?)
    }

    fn count_wrong(&mut self, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<u64, EngineError> {
        Ok(Inspector::count_wrong(self, layer, slot, expert)?)
    }
}
