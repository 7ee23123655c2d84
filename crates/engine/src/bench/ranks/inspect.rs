//! How slots are filled and looked at.

use std::sync::Arc;

use eplb_comm::Memory;
use eplb_comm::conformance::RankMemory;
use eplb_comm::host::HostMemory;
use eplb_core::{ExpertId, LayerId, SlotId};
use eplb_cuda::Inspector;

use super::super::Inspect;
use crate::error::EngineError;

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
