//! Ranks of a bench that are processes and pull from each other's memory.

use std::time::Instant;

use eplb_comm::Communicator as _;
use eplb_comm::host::{HostMemory, HostStream, StreamOptions};
use eplb_comm_peer::process::{Meeting, PeerError, join_device, join_host};
use eplb_cuda::{Context, CudaStream, DeviceMemory, Puller, probe};

use super::links::Plains;
use super::ranks::{Own, Parts, committing, inspector, peer_options};
use super::{ExchangeBench, Setup, host_bytes};
use crate::error::EngineError;
use crate::process::{HostId, Session};

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
        Err(_) => on_host(setup, &meeting),
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

fn on_host(setup: &Setup, meeting: &Meeting) -> Result<Own, EngineError> {
    let staging = setup.limits.staging_bytes;
    crate::rebalance::check_bytes(host_bytes(&setup.layout, &setup.topology, staging))?;
    let slots = setup.topology.slots_of(meeting.rank);
    let memory = HostMemory::shared(meeting.rank, setup.layout.clone(), slots, staging)?;
    let communicator = join_host(meeting, memory.clone()).map_err(refused)?;
    let parts = Parts {
        stream: Box::new(HostStream::new(memory.clone(), StreamOptions::default())?),
        communicator: Box::new(communicator),
        inspect: Box::new(memory),
        links: Plains::default(),
        compute: None,
    };
    Ok(Own { parts, device_bytes: 0, pool_bytes: 0 })
}

fn on_device(
    bench: &ExchangeBench,
    setup: &Setup,
    meeting: &Meeting,
    devices: usize,
) -> Result<Own, EngineError> {
    let rank = meeting.rank;
    // A process that sees one device alone was given its own.
    let context = Context::primary(if devices == 1 { 0 } else { rank.index() })?;
    let (layout, slots) = (setup.layout.clone(), setup.topology.slots_of(rank));
    let staging = setup.limits.staging_bytes;
    let memory = DeviceMemory::exportable(&context, rank, layout, slots, staging, bench.handles)?;
    let compute = CudaStream::new(&context, 0)?;
    let stream = committing(bench, &memory, &compute)?;
    let pool_bytes = stream.pool_bytes() as u64;
    let inspector = inspector(bench, &memory)?;
    let (before, _) = context.memory_info()?;
    let options = peer_options(bench);
    let joined = join_device(meeting, memory.clone(), &options).map_err(refused)?;
    let (now, _) = context.memory_info()?;
    debug_assert_eq!(joined.communicator.world_size(), bench.ranks);
    let parts = Parts {
        stream: Box::new(stream),
        communicator: Box::new(joined.communicator),
        inspect: Box::new(inspector),
        links: Plains {
            copies: Some(Box::new(Puller::new(memory, joined.memories, bench.streams)?)),
            sends: None,
        },
        compute: Some(compute),
    };
    Ok(Own { parts, device_bytes: before.saturating_sub(now) as u64, pool_bytes })
}
