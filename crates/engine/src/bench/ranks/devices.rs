//! Ranks of one process with a device each, and what is beside their communicators.

use std::sync::Arc;

use eplb_comm::Communicator;
use eplb_comm_nccl::{Collectives, Launch, Pump};
use eplb_core::{ModelLayout, Topology};
use eplb_cuda::ipc::HandleKind;
use eplb_cuda::kernels::Kernels;
use eplb_cuda::{CudaStream, DeviceMemory, DeviceStream, Inspector, Puller};

use super::super::crowd::Crowds;
use super::super::links::{Plain, Plains};
use super::{Carrier, Commit, DeviceGroup, ExchangeBench, Parts, Ranks};
use crate::error::EngineError;

/// Communicators of all ranks, and the server beside them.
pub(super) struct Connected {
    pub(super) communicators: Vec<Box<dyn Communicator>>,
    pub(super) beside: Beside,
    /// Plain sends, by rank, or none.
    pub(super) sends: Vec<Box<dyn Plain>>,
    /// Own pools of the communicator that has most.
    pub(super) pool_bytes: usize,
}

impl Connected {
    pub(super) fn with(communicators: Vec<Box<dyn Communicator>>, beside: Beside) -> Self {
        Self { communicators, beside, sends: Vec::new(), pool_bytes: 0 }
    }
}

/// A server beside the exchange.
pub(super) enum Beside {
    /// If there is to be one: for each rank the handle by which it launches waves, if it does.
    ToStart(Vec<Option<Pump>>),
    /// It lends its communicators.
    Started(Collectives),
}

/// Ranks with a device each, and what their communicators take of the devices' memory.
pub(super) fn devices(
    bench: &ExchangeBench,
    topology: &Topology,
    layout: &Arc<ModelLayout>,
    staging: usize,
    connect: impl FnOnce(&DeviceGroup) -> Result<Connected, EngineError>,
) -> Result<Ranks, EngineError> {
    let by_nccl = matches!(bench.carrier, Carrier::Nccl(_));
    if bench.launch == Launch::Pump && (bench.beside_bytes.is_none() || !by_nccl) {
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
pub(in crate::bench) fn inspector(
    bench: &ExchangeBench,
    memory: &Arc<DeviceMemory>,
) -> Result<Inspector, EngineError> {
    let inspector = Inspector::new(memory.clone())?;
    if !bench.checksums {
        return Ok(inspector);
    }
    Ok(inspector.with_checksums(Arc::new(Kernels::load(memory.context(), None)?))?)
}

/// A compute stream whose commits are copies or launches of the kernel, as the bench wants it.
pub(in crate::bench) fn committing(
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
