//! Ranks of a bench: memory, stream and communicator of each backend.

mod devices;
mod group;
mod inspect;
mod own;

use std::sync::Arc;
use std::time::Instant;

use eplb_comm::host::{HostMemory, HostStream, StreamOptions};
use eplb_comm::local::LocalGroup;
use eplb_comm::{CommError, Communicator, Stream};
use eplb_comm_nccl::{Backend, Collectives, Gather, Launch, NcclCommunicator, Options};
use eplb_core::{ModelLayout, NodeId, Topology};
use eplb_cuda::CudaStream;

use super::crowd::Crowds;
use super::links::Plains;
use super::{ExchangeBench, Inspect, gloo, host_bytes};
use crate::error::EngineError;
use crate::process::auto::mix;
use devices::{Beside, Connected, devices};
pub(super) use devices::{committing, inspector};
pub use group::DeviceGroup;
pub(super) use own::{Own, as_rank};

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// Copies between threads, on host memory.
    Local,
    /// Gloo over the loopback interface, on host memory.
    Gloo,
    /// Gloo over the loopback interface, on devices, through pinned host memory.
    DeviceGloo,
    /// NCCL, on devices.
    Nccl(Backend),
    /// Copy engines that pull from the memory of peers, on devices.
    Peer,
    /// What fits best between ranks that are processes: [`AutoTransport`](crate::process::AutoTransport).
    Auto,
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
        Carrier::DeviceGloo => devices(bench, topology, layout, staging, |group| {
            let communicators = group.connect_gloo(Instant::now() + bench.patience)?;
            let pumps = group.memories.iter().map(|_| None).collect();
            Ok(Connected::with(communicators.into_iter().map(boxed).collect(), Beside::ToStart(pumps)))
        }),
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
        Carrier::Auto => Err(EngineError::Options(
            "auto is for ranks that are processes: --processes; threads of one process have peer".into(),
        )),
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
    let nodes: Vec<NodeId> = topology.all_ranks().map(|rank| topology.node_of(rank)).collect();
    inside.zip(between).map(|(inside, between)| mix(inside, boxed(between), nodes.clone())).collect()
}

pub(crate) fn boxed(communicator: impl Communicator + 'static) -> Box<dyn Communicator> {
    Box::new(communicator)
}

/// How the bench wants its communicators over `peer`.
pub(super) fn peer_options(bench: &ExchangeBench) -> eplb_comm_peer::Options {
    let (streams, max_gbps) = (bench.streams, bench.max_gbps);
    let mut options = eplb_comm_peer::Options { streams, max_gbps, ..eplb_comm_peer::Options::default() };
    options.turns = bench.turns.unwrap_or(options.turns);
    options
}

/// How the bench wants its communicators over NCCL.
pub(super) fn nccl_options(bench: &ExchangeBench) -> Options {
    let mut options = Options { config: bench.config.clone(), launch: bench.launch, ..Options::default() };
    options.operations = bench.operations.unwrap_or(options.operations);
    options.gather_below = bench.gather_below.unwrap_or(options.gather_below);
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
