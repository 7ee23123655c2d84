//! Where the slots of a layer set lie.

use std::ptr::NonNull;
use std::sync::Arc;

use eplb_comm::host::{Content, HostMemory};
use eplb_comm::{CommError, Communicator, Memory, Place};
use eplb_core::{ExpertId, LayerId, Placement, SlotId};
use eplb_cuda::DeviceMemory;

use crate::error::EngineError;
use crate::process::{Meeting, Source, Transport};

/// Slots and staging of one rank.
#[derive(Debug, Clone)]
pub(super) enum Slots {
    Host(Arc<HostMemory>),
    Device(Arc<DeviceMemory>),
}

impl Slots {
    fn memory(&self) -> &dyn Memory {
        match self {
            Self::Host(memory) => &**memory,
            Self::Device(memory) => &**memory,
        }
    }

    /// The slots that this rank owns, numbered over all ranks.
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.memory().slots()
    }

    /// States what the slots hold. Memory of a device keeps no such notes.
    pub(super) fn declare(&self, placement: &Placement) -> Result<(), CommError> {
        let Self::Host(memory) = self else { return Ok(()) };
        for layer in (0..placement.layers()).map(LayerId::at) {
            for slot in self.range().map(SlotId::at) {
                let content = placement.expert_at(layer, slot).map_or(Content::Empty, Content::Expert);
                memory.declare(Place::slot(layer, slot), content)?;
            }
        }
        Ok(())
    }

    /// Address of the first local slot of a tensor: of the host, or of the device.
    pub(super) fn address(&self, layer: LayerId, tensor: usize) -> Option<NonNull<u8>> {
        match self {
            Self::Host(memory) => memory.address(layer, tensor),
            Self::Device(memory) => {
                let address = usize::try_from(memory.address(layer, tensor)?).ok()?;
                NonNull::new(std::ptr::without_provenance_mut(address))
            }
        }
    }

    /// Makes this rank's communicator, together with all ranks.
    pub(super) fn connect(
        &self,
        transport: &dyn Transport,
        meeting: Meeting<()>,
    ) -> Result<Box<dyn Communicator>, EngineError> {
        let Meeting { rank, world_size, store, memory: (), deadline } = meeting;
        match self {
            Self::Host(memory) => {
                transport.connect(Meeting { rank, world_size, store, memory: memory.clone(), deadline })
            }
            Self::Device(memory) => transport.connect_device(Meeting {
                rank,
                world_size,
                store,
                memory: memory.clone(),
                deadline,
            }),
        }
    }

    /// Has the host's source put an expert into a slot.
    pub(super) fn fill(
        &self,
        source: &dyn Source,
        layer: LayerId,
        slot: SlotId,
        expert: ExpertId,
    ) -> Result<(), EngineError> {
        match self {
            Self::Host(memory) => source.fill(memory, layer, slot, expert),
            Self::Device(memory) => source.fill_device(memory, layer, slot, expert),
        }
    }
}
