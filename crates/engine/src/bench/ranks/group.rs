//! The devices of a process's ranks, and NCCL's communicators between them.

use std::sync::Arc;
use std::time::Instant;

use eplb_comm::CommError;
use eplb_comm::store::{InProcessStore, Store};
use eplb_comm_gloo::GlooCommunicator;
use eplb_comm_nccl::{
    Backend, Collectives, Lend, NcclCommError, NcclCommunicator, Options, Rendezvous, connect,
};
use eplb_core::{ModelLayout, RankId, Topology};
use eplb_cuda::ipc::HandleKind;
use eplb_cuda::{DeviceMemory, probe};

use super::super::links::{LaterSends, Plain};
use super::boxed;
use super::devices::{Beside, Connected};
use crate::error::EngineError;

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
    pub(super) fn free_bytes(&self) -> Result<Vec<usize>, EngineError> {
        let free = |memory: &Arc<DeviceMemory>| memory.context().memory_info().map(|(free, _)| free);
        Ok(self.memories.iter().map(free).collect::<Result<_, _>>()?)
    }

    /// Plain sends of every rank, over a communicator of their own.
    pub(super) fn later_sends(&self, backend: Backend, options: &Options) -> Vec<Box<dyn Plain>> {
        let rendezvous = Rendezvous { store: self.store.clone(), size: self.memories.len(), epoch: 1 };
        let later = |memory: &Arc<DeviceMemory>| -> Box<dyn Plain> {
            Box::new(LaterSends::new(backend, memory.clone(), rendezvous.clone(), options.clone()))
        };
        self.memories.iter().map(later).collect()
    }

    /// Communicators over those of a server that is started here, and sums as many bytes in each step.
    pub(super) fn borrow(&self, options: &Options, bytes: usize) -> Result<Connected, EngineError> {
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
        self.together(|memory| Ok(connect(backend, memory, &rendezvous, options.clone(), deadline)?))
    }

    /// As [`DeviceGroup::connect`], over Gloo at the loopback address.
    ///
    /// # Errors
    /// As there.
    pub fn connect_gloo(&self, deadline: Instant) -> Result<Vec<GlooCommunicator>, EngineError> {
        let (world, options) = (self.memories.len(), eplb_comm_gloo::Options::default().staged());
        self.together(|memory| {
            let made = GlooCommunicator::connect_device(
                memory,
                world,
                self.store.clone(),
                options.clone(),
                deadline,
            );
            made.map_err(|error| EngineError::Backend { backend: "gloo", detail: error.to_string() })
        })
    }

    /// What every rank makes on a thread of its own.
    fn together<C: Send>(
        &self,
        make: impl Fn(Arc<DeviceMemory>) -> Result<C, EngineError> + Sync,
    ) -> Result<Vec<C>, EngineError> {
        let make = &make;
        let made: Vec<_> = std::thread::scope(|scope| {
            let one = |memory: &Arc<DeviceMemory>| {
                let memory = memory.clone();
                scope.spawn(move || make(memory))
            };
            let threads: Vec<_> = self.memories.iter().map(one).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let mut communicators = Vec::new();
        let mut failure: Option<EngineError> = None;
        for (rank, made) in made.into_iter().enumerate() {
            let lost = |_| EngineError::RankLost {
                rank: RankId::at(rank),
                detail: "making its communicator panicked".into(),
            };
            match made.map_err(lost).flatten() {
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
