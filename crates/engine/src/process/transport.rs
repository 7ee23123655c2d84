//! How a rank gets its communicator: what a backend must offer to ranks that are processes.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use eplb_comm::Communicator;
use eplb_comm::host::HostMemory;
use eplb_comm::store::Store;
use eplb_core::{ModelLayout, RankId};
use eplb_cuda::DeviceMemory;

use crate::error::EngineError;
use crate::machine::Reason;

/// What a rank brings when all ranks make a communicator together. `M` is its memory: of the host, or of a device.
#[derive(Debug)]
pub struct Meeting<M = Arc<HostMemory>> {
    /// This rank.
    pub rank: RankId,
    /// Number of ranks.
    pub world_size: usize,
    /// A corner of the store that no other communicator has used, of this epoch or another.
    pub store: Arc<dyn Store>,
    /// This rank's slots and staging.
    pub memory: M,
    /// When it must be made.
    pub deadline: Instant,
}

/// Makes communicators between ranks.
pub trait Transport: Debug + Send + Sync {
    /// Name of the backend.
    fn name(&self) -> &'static str;

    /// Whether an exchange is over sooner if parts of a wave go while the wave before moves: not where submissions are carried one after another.
    fn overlaps(&self) -> bool {
        true
    }

    /// Whether waves are launched by the server's steps, on its thread, and not by a thread of the communicator.
    fn launches_in_steps(&self) -> bool {
        false
    }

    /// What was looked at when ranks last met, and why, what was taken last: of a transport that chooses.
    fn reasons(&self) -> Vec<Reason> {
        Vec::new()
    }

    /// Takes memory of a kind that it can carry experts to and from, zeroed.
    ///
    /// # Errors
    /// There is not that much.
    fn memory(
        &self,
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        staging_bytes: usize,
    ) -> Result<Arc<HostMemory>, EngineError> {
        Ok(HostMemory::new(rank, layout, slots, staging_bytes)?)
    }

    /// Makes this rank's communicator; all ranks call it together.
    ///
    /// # Errors
    /// The backend cannot be used here, or the ranks did not come together by the deadline.
    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError>;

    /// As [`Transport::connect`], for slots on a device.
    ///
    /// # Errors
    /// As there; and this backend carries host memory alone.
    fn connect_device(
        &self,
        _meeting: Meeting<Arc<DeviceMemory>>,
    ) -> Result<Box<dyn Communicator>, EngineError> {
        let detail =
            "it carries host memory; these slots lie on a device: use peer, nccl, pynccl or gloo".into();
        Err(EngineError::Backend { backend: self.name(), detail })
    }
}

/// Puts an expert's bytes into a slot when no other rank has them: reads it from the checkpoint.
pub trait Source: Debug + Send + Sync {
    /// Fills a slot of `memory` with an expert.
    ///
    /// # Errors
    /// The expert cannot be had.
    fn fill(
        &self,
        memory: &Arc<HostMemory>,
        layer: eplb_core::LayerId,
        slot: eplb_core::SlotId,
        expert: eplb_core::ExpertId,
    ) -> Result<(), EngineError>;

    /// As [`Source::fill`], for a slot on a device. The bytes are there when it returns.
    ///
    /// # Errors
    /// The expert cannot be had, or this source fills host memory alone.
    fn fill_device(
        &self,
        _memory: &Arc<DeviceMemory>,
        layer: eplb_core::LayerId,
        slot: eplb_core::SlotId,
        expert: eplb_core::ExpertId,
    ) -> Result<(), EngineError> {
        Err(EngineError::Options(format!(
            "{layer} {expert} has to be put into {slot} on a device, and this source fills host memory alone"
        )))
    }
}

/// Experts of the model that is made up ([`crate::cluster::weights`]).
#[derive(Debug, Clone, Copy, Default)]
pub struct MadeUp;

impl Source for MadeUp {
    fn fill(
        &self,
        memory: &Arc<HostMemory>,
        layer: eplb_core::LayerId,
        slot: eplb_core::SlotId,
        expert: eplb_core::ExpertId,
    ) -> Result<(), EngineError> {
        Ok(memory.fill(layer, slot, expert)?)
    }

    fn fill_device(
        &self,
        memory: &Arc<DeviceMemory>,
        layer: eplb_core::LayerId,
        slot: eplb_core::SlotId,
        expert: eplb_core::ExpertId,
    ) -> Result<(), EngineError> {
        use eplb_comm::conformance::RankMemory;
        Ok(eplb_cuda::Inspector::new(memory.clone())?.fill(layer, slot, expert)?)
    }
}
