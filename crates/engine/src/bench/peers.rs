//! Ranks of a bench that are processes and pull from each other's memory, or have found out when they met what else carries it.

use std::time::Instant;

use eplb_comm::Communicator;
use eplb_comm::host::{HostMemory, HostStream, StreamOptions};
use eplb_comm::store::StoreAddress;
use eplb_comm_nccl::Backend;
use eplb_comm_peer::process::{Meeting, PeerError, join_device, join_host};
use eplb_cuda::{Context, CudaStream, DeviceMemory, Puller, probe};

use super::links::Plains;
use super::ranks::{Carrier, Own, Parts, committing, inspector, nccl_options, peer_options};
use super::{ExchangeBench, Setup, host_bytes};
use crate::error::EngineError;
use crate::process::auto::Joined;
use crate::process::{self, AutoTransport, GlooTransport, HostId, NcclTransport, Session, Transport as _};

/// The part of a rank of a session: on the device of its number, or on the only one that it sees; without a CUDA driver, on host memory that
/// the processes share.
pub(super) fn as_rank(
    bench: &ExchangeBench,
    setup: &Setup,
    session: &mut Session,
) -> Result<Own, EngineError> {
    let devices = probe().map(|probe| probe.devices.len());
    let kind = if devices.is_ok() { "devices" } else { "host memory" };
    session.compare(&[("memory of slots", kind.to_owned())])?;
    let meeting = meeting(bench, session)?;
    match devices {
        Ok(devices) => on_device(bench, setup, &meeting, devices),
        Err(error) if bench.carrier == Carrier::DeviceGloo => Err(error.into()),
        Err(_) => on_host(bench, setup, &meeting),
    }
}

/// How ranks meet that may have to mix backends.
fn auto(bench: &ExchangeBench) -> Option<AutoTransport> {
    let nccl = NcclTransport::with_options(Backend::Nccl, nccl_options(bench));
    let is_auto = bench.carrier == Carrier::Auto || bench.nodes > 1;
    is_auto.then(|| AutoTransport::new(gloo()).with_peer(peer_options(bench)).with_nccl(nccl))
}

/// Ranks of a bench are of one host: Gloo is reached at its loopback address.
fn gloo() -> Result<GlooTransport, EngineError> {
    GlooTransport::new(None, &StoreAddress::File("/".into()))
}

/// The meeting of transports that that of a backend is.
fn with<M>(meeting: &Meeting, memory: M) -> process::Meeting<M> {
    let Meeting { rank, world_size, store, deadline, .. } = meeting;
    process::Meeting {
        rank: *rank,
        world_size: *world_size,
        store: store.clone(),
        memory,
        deadline: *deadline,
    }
}

/// Where the ranks of a session meet.
pub(super) fn meeting(bench: &ExchangeBench, session: &mut Session) -> Result<Meeting, EngineError> {
    Ok(Meeting {
        rank: session.rank(),
        world_size: bench.ranks,
        store: session.corner()?,
        host: HostId::here().name().to_owned(),
        deadline: Instant::now() + bench.patience,
    })
}

pub(super) fn refused(error: PeerError) -> EngineError {
    EngineError::Backend { backend: "peer", detail: error.to_string() }
}

fn on_host(bench: &ExchangeBench, setup: &Setup, meeting: &Meeting) -> Result<Own, EngineError> {
    let staging = setup.limits.staging_bytes;
    crate::rebalance::check_bytes(host_bytes(&setup.layout, &setup.topology, staging))?;
    let slots = setup.topology.slots_of(meeting.rank);
    let memory = HostMemory::shared(meeting.rank, setup.layout.clone(), slots, staging)?;
    let (communicator, reasons): (Box<dyn Communicator>, _) = match auto(bench) {
        Some(auto) => (auto.connect(with(meeting, memory.clone()))?, auto.reasons()),
        None => {
            (Box::new(join_host(meeting, memory.clone(), &peer_options(bench)).map_err(refused)?), Vec::new())
        }
    };
    let parts = Parts {
        stream: Box::new(HostStream::new(memory.clone(), StreamOptions::default())?),
        communicator,
        inspect: Box::new(memory),
        links: Plains::default(),
        compute: None,
    };
    Ok(Own { parts, device_bytes: 0, pool_bytes: 0, reasons })
}

fn on_device(
    bench: &ExchangeBench,
    setup: &Setup,
    meeting: &Meeting,
    devices: usize,
) -> Result<Own, EngineError> {
    let rank = meeting.rank;
    // A process that sees one device alone was given its own; ranks share devices where they are more.
    let context = Context::primary(rank.index() % devices.max(1))?;
    let (layout, slots) = (setup.layout.clone(), setup.topology.slots_of(rank));
    let staging = setup.limits.staging_bytes;
    let memory = DeviceMemory::exportable(&context, rank, layout, slots, staging, bench.handles)?;
    let compute = CudaStream::new(&context, 0)?;
    let stream = committing(bench, &memory, &compute)?;
    let pool_bytes = stream.pool_bytes() as u64;
    let inspector = inspector(bench, &memory)?;
    let (before, _) = context.memory_info()?;
    let (joined, reasons) = match auto(bench) {
        Some(auto) => (auto.join_device(with(meeting, memory.clone()))?, auto.reasons()),
        None if bench.carrier == Carrier::DeviceGloo => {
            let communicator = gloo()?.connect_device(with(meeting, memory.clone()))?;
            (Joined { memories: None, communicator }, Vec::new())
        }
        None => {
            let joined = join_device(meeting, memory.clone(), &peer_options(bench)).map_err(refused)?;
            let (communicator, memories) = (Box::new(joined.communicator), Some(joined.memories));
            (Joined { memories, communicator }, Vec::new())
        }
    };
    let (now, _) = context.memory_info()?;
    debug_assert_eq!(joined.communicator.world_size(), bench.ranks);
    // Plain copies between all ranks want the memory of all.
    let puller = |memories| Puller::new(memory.clone(), memories, bench.streams);
    let copies = joined.memories.map(puller).transpose()?.map(|puller| Box::new(puller) as _);
    let parts = Parts {
        stream: Box::new(stream),
        communicator: joined.communicator,
        inspect: Box::new(inspector),
        links: Plains { copies, sends: None },
        compute: Some(compute),
    };
    Ok(Own { parts, device_bytes: before.saturating_sub(now) as u64, pool_bytes, reasons })
}
