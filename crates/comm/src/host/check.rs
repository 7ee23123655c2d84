//! Filling places with the pattern, and checking them against it.

use std::sync::Arc;

use eplb_core::{ExpertId, LayerId, SlotId};

use super::content::Content;
use super::guards::ReadGuard;
use super::memory::HostMemory;
use crate::error::CommError;
use crate::memory::Place;
use crate::pattern;
use crate::random::Random;

/// Bytes of one sampled piece.
const SAMPLE_BYTES: usize = 64;

impl HostMemory {
    /// Writes the pattern of an expert into a slot, all tensors, and names it.
    ///
    /// # Errors
    /// There is no such slot, or it is in use.
    pub fn fill(self: &Arc<Self>, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<(), CommError> {
        let mut guard = self.write(Place::slot(layer, slot))?;
        for tensor in 0..guard.layout().tensors().len() {
            let mut at = 0;
            for row in guard.rows_mut(tensor) {
                pattern::fill(layer, expert, tensor, at, row);
                at += row.len();
            }
        }
        guard.set_content(Content::Expert(expert));
        Ok(())
    }

    /// Number of bytes of a slot that are not those of the expert, over all tensors. What is expected is computed,
    /// see [`pattern`].
    ///
    /// # Errors
    /// There is no such slot, or it is being written.
    pub fn count_wrong(
        self: &Arc<Self>,
        layer: LayerId,
        slot: SlotId,
        expert: ExpertId,
    ) -> Result<u64, CommError> {
        Ok(self.read(Place::slot(layer, slot))?.count_wrong(expert))
    }

    /// As [`HostMemory::count_wrong`], but only of `samples` pieces of at most 64 bytes per tensor, chosen by `seed`;
    /// the first and the last bytes of each tensor are always among them.
    ///
    /// # Errors
    /// There is no such slot, or it is being written.
    pub fn sample_wrong(
        self: &Arc<Self>,
        layer: LayerId,
        slot: SlotId,
        expert: ExpertId,
        samples: usize,
        seed: u64,
    ) -> Result<u64, CommError> {
        Ok(self.read(Place::slot(layer, slot))?.sample_wrong(expert, samples, seed))
    }
}

impl ReadGuard {
    /// Number of bytes that are not those of the expert, over all tensors.
    pub fn count_wrong(&self, expert: ExpertId) -> u64 {
        let mut wrong = 0;
        for tensor in 0..self.layout().tensors().len() {
            let mut at = 0;
            for row in self.rows(tensor) {
                wrong += pattern::count_wrong(self.layer(), expert, tensor, at, row);
                at += row.len();
            }
        }
        wrong
    }

    /// Number of wrong bytes in `samples` pieces per tensor, see [`HostMemory::sample_wrong`].
    pub fn sample_wrong(&self, expert: ExpertId, samples: usize, seed: u64) -> u64 {
        let mut wrong = 0;
        let mut random = Random::new(seed);
        for tensor in 0..self.layout().tensors().len() {
            let (rows, row_bytes) = {
                let tensor = &self.layout().tensors()[tensor];
                (tensor.rows, tensor.row_bytes)
            };
            let piece = SAMPLE_BYTES.min(row_bytes);
            for sample in 0..samples.max(2) {
                let (row, from) = match sample {
                    0 => (0, 0),
                    1 => (rows - 1, row_bytes - piece),
                    _ => (random.below(rows), random.below(row_bytes - piece + 1)),
                };
                let Some(bytes) = self.rows(tensor).nth(row) else { continue };
                let at = row * row_bytes + from;
                wrong += pattern::count_wrong(self.layer(), expert, tensor, at, &bytes[from..from + piece]);
            }
        }
        wrong
    }

    fn layer(&self) -> LayerId {
        let (Place::Slot { layer, .. } | Place::Staging { layer, .. }) = self.place();
        layer
    }
}
