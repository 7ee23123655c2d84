//! What waves read and write: slots and staging of one rank.

use std::fmt;
use std::sync::Arc;

use eplb_core::{Landing, LayerId, ModelLayout, SlotId, Transfer};

/// A place for one expert's bytes in the memory of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// A slot of a layer.
    Slot {
        /// The layer.
        layer: LayerId,
        /// The slot, numbered over all ranks.
        slot: SlotId,
    },
    /// A staged expert of a layer, this many bytes from the start of staging.
    Staging {
        /// Layer of the expert, which says how many bytes it takes.
        layer: LayerId,
        /// Offset in bytes.
        offset: usize,
    },
}

impl Place {
    /// A slot of a layer.
    pub fn slot(layer: LayerId, slot: SlotId) -> Self {
        Place::Slot { layer, slot }
    }

    /// A staged expert of a layer, `offset` bytes from the start of staging.
    pub fn staged(layer: LayerId, offset: usize) -> Self {
        Place::Staging { layer, offset }
    }

    /// Where a transfer reads.
    pub fn source(transfer: &Transfer) -> Self {
        Place::slot(transfer.layer, transfer.source_slot)
    }

    /// Where a transfer lands.
    pub fn landing(transfer: &Transfer) -> Self {
        match transfer.landing {
            Landing::InPlace => Place::slot(transfer.layer, transfer.dest_slot),
            Landing::Staged { offset } => Place::staged(transfer.layer, offset),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Slot { layer, slot } => write!(f, "{layer} {slot}"),
            Place::Staging { layer, offset } => write!(f, "staging at byte {offset} for {layer}"),
        }
    }
}

/// Memory of one rank: the slots of every layer as registered by the host, and the engine's staging.
///
/// Host and device memory differ in how bytes are reached, so each backend works on its own implementation; this
/// trait is what the engine needs to know of any.
pub trait Memory: fmt::Debug + Send + Sync {
    /// Tensors of every layer.
    fn layout(&self) -> &Arc<ModelLayout>;

    /// The slots that this rank owns, numbered over all ranks.
    fn slots(&self) -> std::ops::Range<usize>;

    /// Bytes of staging.
    fn staging_bytes(&self) -> usize;
}
