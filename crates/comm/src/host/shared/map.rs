//! Where slots, staging and tags lie in a segment.

use eplb_core::{LayerId, ModelLayout, RankId};

use super::segment::{Segment, SegmentError};
use crate::error::CommError;
use crate::host::memory::block_bytes;
use crate::host::region::ALIGN;

/// First word of every segment with slots.
const MAGIC: u64 = u64::from_le_bytes(*b"eplbslot");
/// Bytes of the words at its beginning: the magic number, and two that are drawn anew for each memory.
const HEAD: usize = 64;

/// Where things lie in a rank's segment: all that another process must know to open it, beside the descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spots {
    /// Bytes of the segment.
    pub bytes: usize,
    /// Drawn for this memory, and written at its beginning: memory of another start of the rank has another.
    pub nonce: [u64; 2],
    /// Offset of the tags, one word for each slot of each layer.
    pub tags: usize,
    /// `[layer][tensor]`: offset of the first local slot.
    pub blocks: Vec<Vec<usize>>,
    /// Offset of the staging, which its owner alone uses.
    pub staging: usize,
}

impl Spots {
    /// Places everything for a rank.
    pub(in crate::host) fn plan(
        rank: RankId,
        layout: &ModelLayout,
        slots: usize,
        staging_bytes: usize,
        nonce: [u64; 2],
    ) -> Result<Self, CommError> {
        let too_large =
            || CommError::NoMemory { rank, what: "slots and staging in one piece".into(), bytes: usize::MAX };
        let mut end = HEAD;
        let mut take = |bytes: usize| {
            let at = end;
            end = at.checked_add(bytes)?.checked_next_multiple_of(ALIGN)?;
            Some(at)
        };
        let tags = layout.layers().checked_mul(slots).and_then(|n| n.checked_mul(8)).and_then(&mut take);
        let tags = tags.ok_or_else(too_large)?;
        let mut blocks = Vec::new();
        for layer in 0..layout.layers() {
            let mut offsets = Vec::new();
            for tensor in layout.layer(LayerId::at(layer)).tensors() {
                offsets.push(take(block_bytes(layer, tensor, slots)?).ok_or_else(too_large)?);
            }
            blocks.push(offsets);
        }
        let staging = take(staging_bytes).ok_or_else(too_large)?;
        Ok(Self { bytes: end, nonce, tags, blocks, staging })
    }

    /// Writes the words at the beginning.
    pub(in crate::host) fn mark(&self, segment: &Segment) {
        for (at, word) in [MAGIC, self.nonce[0], self.nonce[1]].into_iter().enumerate() {
            segment.store(at * 8, word);
        }
    }

    /// Compares them.
    pub(super) fn check(&self, load: impl Fn(usize) -> Option<u64>, what: &str) -> Result<(), SegmentError> {
        let found = [load(0), load(8), load(16)];
        if found != [Some(MAGIC), Some(self.nonce[0]), Some(self.nonce[1])] {
            return Err(SegmentError::Stale { what: what.into() });
        }
        Ok(())
    }
}
