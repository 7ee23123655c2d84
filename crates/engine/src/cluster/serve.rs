//! A forward pass that checks instead of computing.

use std::sync::{Arc, Mutex, PoisonError};

use eplb_comm::host::{Content, HostMemory};
use eplb_comm::{CommError, Place};
use eplb_core::{ExpertId, LayerId, SlotId};

use super::lockstep::Route;

/// What steps and checks found wrong on any rank.
#[derive(Debug, Default)]
pub(crate) struct Findings(Mutex<Found>);

/// Wrong bytes and the first error that says why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) bytes_wrong: u64,
    pub(crate) first: Option<CommError>,
}

impl Findings {
    pub(crate) fn bytes(&self, wrong: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes_wrong += wrong;
    }

    /// A slot that a map names could not be read or holds something else: all of its bytes count as wrong.
    fn slot(&self, error: CommError, bytes: usize) {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.bytes_wrong += bytes as u64;
        found.first.get_or_insert(error);
    }

    pub(crate) fn take(&self) -> Found {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs step `step` on one rank: every slot of it that any rank's map names in this step must hold that expert while the
/// step runs. The bytes of one layer, another in each step, are looked at in samples.
pub(crate) fn forward(memory: &Arc<HostMemory>, step: u64, routes: &[Route], findings: &Findings) {
    for (at, route) in routes.iter().enumerate() {
        let route = &route.map;
        if routes[..at].iter().any(|seen| Arc::ptr_eq(&seen.map, route) || seen.map == *route) {
            continue;
        }
        let sampled = (step % route.nrows() as u64) as usize;
        for layer in 0..route.nrows() {
            for slot in eplb_comm::Memory::slots(memory.as_ref()) {
                let Ok(expert) = u32::try_from(route[(layer, slot)]) else { continue };
                let (layer_id, slot, expert) = (LayerId::at(layer), SlotId::at(slot), ExpertId(expert));
                let checked = check(memory, layer_id, slot, expert, (layer == sampled).then_some(step));
                match checked {
                    Ok(wrong) => findings.bytes(wrong),
                    Err(error) => {
                        let layout = eplb_comm::Memory::layout(memory.as_ref());
                        findings.slot(error, layout.layer(layer_id).expert_bytes());
                    }
                }
            }
        }
    }
}

fn check(
    memory: &Arc<HostMemory>,
    layer: LayerId,
    slot: SlotId,
    expert: ExpertId,
    seed: Option<u64>,
) -> Result<u64, CommError> {
    let guard = memory.read(Place::slot(layer, slot))?;
    if guard.content().0 != Content::Expert(expert) {
        guard.expect(expert)?;
    }
    Ok(seed.map_or(0, |seed| guard.sample_wrong(expert, 2, seed)))
}
