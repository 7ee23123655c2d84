//! A rank that is a process of its own.

use std::sync::Arc;
use std::time::Instant;

use eplb_comm::Memory as _;
use eplb_comm_nccl::{Launch, NcclCommunicator, Rendezvous, connect};
use eplb_cuda::{Context, CudaStream, DeviceMemory, probe};

use super::super::links::{LaterSends, Plain, Plains};
use super::super::{ExchangeBench, Setup};
use super::{Carrier, Parts, committing, inspector, nccl_options};
use crate::error::EngineError;
use crate::machine::Reason;
use crate::process::{HostId, Session};

/// A rank that is a process, and what its communicator takes of its device's memory.
#[derive(Debug)]
pub(in crate::bench) struct Own {
    pub(in crate::bench) parts: Parts,
    pub(in crate::bench) device_bytes: u64,
    /// Its own pools.
    pub(in crate::bench) pool_bytes: u64,
    /// What `auto` looked at.
    pub(in crate::bench) reasons: Vec<Reason>,
}

/// The part of a rank of a session: on the device of its number among the ranks of its host, or on the only one that it sees.
pub(in crate::bench) fn as_rank(
    bench: &ExchangeBench,
    setup: &Setup,
    session: &mut Session,
) -> Result<Own, EngineError> {
    if bench.beside_bytes.is_some() || bench.crowd || bench.launch == Launch::Pump {
        return Err(EngineError::Options("a server beside the exchange wants ranks that are threads".into()));
    }
    #[cfg(target_os = "linux")]
    if matches!(bench.carrier, Carrier::Peer | Carrier::Auto | Carrier::DeviceGloo) {
        return super::super::peers::as_rank(bench, setup, session);
    }
    let Carrier::Nccl(backend) = bench.carrier else {
        return Err(EngineError::Options(
            "ranks that are processes exchange over nccl, pynccl, peer, auto, or gloo on devices".into(),
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
    Ok(Own { parts, device_bytes: before.saturating_sub(now) as u64, pool_bytes, reasons: Vec::new() })
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
    let meeting = super::super::peers::meeting(bench, session)?;
    let joined = eplb_comm_peer::process::join_bulletin(&meeting, memory.layout(), memory.extent().clone());
    Ok(communicator.with_bulletin(joined.map_err(super::super::peers::refused)?))
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
