//! Ranks of a bench over Gloo: threads of this process, each with connections of its own over the loopback interface, and beside them
//! a plain Gloo loop on others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::host::{HostMemory, HostStream, StreamOptions};
use eplb_comm::store::{InProcessStore, Store};
use eplb_comm_gloo::{GlooCommunicator, Options, Plain, PlainLoop};
use eplb_core::{LayerId, ModelLayout, RankId, Topology};

use super::links::{self, Plains, Task};
use super::ranks::{Parts, Ranks, boxed};
use super::{ExchangeBench, host_bytes};
use crate::error::EngineError;

pub(super) fn ranks(
    bench: &ExchangeBench,
    topology: &Topology,
    layout: &Arc<ModelLayout>,
    staging: usize,
) -> Result<Ranks, EngineError> {
    if bench.beside_bytes.is_some() {
        return Err(EngineError::Options(
            "a server's all-reduces beside the exchange want devices, not gloo".into(),
        ));
    }
    // The plain loop has memory of its own for what it carries.
    crate::rebalance::check_bytes(2 * host_bytes(layout, topology, staging))?;
    let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
    let deadline = Instant::now() + bench.patience;
    let make = &|rank: RankId| -> Result<Parts, EngineError> {
        let failed = |error: eplb_comm_gloo::GlooError| EngineError::Backend {
            backend: "gloo",
            detail: error.to_string(),
        };
        let memory = HostMemory::new(rank, layout.clone(), topology.slots_of(rank), staging)?;
        let stream = HostStream::new(memory.clone(), StreamOptions::default())?;
        let (options, world) = (Options::default(), topology.ranks());
        let device = options.device.clone();
        let communicator = GlooCommunicator::connect(memory.clone(), world, store.clone(), options, deadline);
        // Every layer has the same tensors here; the loop carries them without gaps.
        let tensors = layout.layer(LayerId(0)).tensors().iter().map(|tensor| tensor.rows * tensor.row_bytes);
        let tensors: Vec<usize> = tensors.collect();
        let communicator = communicator.map_err(failed)?;
        let plain =
            PlainLoop::connect(rank, world, store.clone(), &device, &tensors, deadline).map_err(failed)?;
        Ok(Parts {
            stream: Box::new(stream),
            communicator: boxed(communicator),
            inspect: Box::new(memory),
            links: Plains { copies: Some(Box::new(Link { rank, plain })), sends: None },
            compute: None,
        })
    };
    // Ranks wait for each other.
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = topology.all_ranks().map(|rank| scope.spawn(move || make(rank))).collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let lost = |rank: usize| EngineError::RankLost {
        rank: RankId::at(rank),
        detail: "making its communicator panicked".into(),
    };
    let parts = made.into_iter().enumerate().map(|(rank, made)| made.unwrap_or_else(|_| Err(lost(rank))));
    let parts = parts.collect::<Result<_, _>>()?;
    Ok(Ranks { parts, device_bytes: None, pool_bytes: None, beside: None, crowds: None })
}

/// A rank's part of the plain loop.
#[derive(Debug)]
struct Link {
    rank: RankId,
    plain: PlainLoop,
}

impl links::Plain for Link {
    fn copy(&mut self, task: &Task) -> Result<Duration, EngineError> {
        let numbered = (0u32..).zip(task.transfers.iter());
        let own = numbered.filter_map(|(number, transfer)| match self.rank {
            rank if rank == transfer.source => Some(Plain { peer: transfer.dest, sends: true, number }),
            rank if rank == transfer.dest => Some(Plain { peer: transfer.source, sends: false, number }),
            _ => None,
        });
        let own: Vec<_> = own.collect();
        let carried = self.plain.carry(&own, task.deadline);
        carried.map_err(|error| EngineError::Backend { backend: "gloo", detail: error.to_string() })
    }
}
