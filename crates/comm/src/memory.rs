//! What waves read and write: slots and staging of one rank.

use std::fmt;
use std::sync::Arc;

use eplb_core::layout::STAGING_ALIGN;
use eplb_core::{Landing, LayerId, ModelLayout, RankId, SlotId, Transfer};

use crate::error::CommError;

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

/// A place that was checked: it lies inside the memory that it was located in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Located {
    /// A slot, numbered inside its rank.
    Slot {
        /// The layer.
        layer: LayerId,
        /// Number inside the rank.
        local: usize,
    },
    /// Bytes of staging.
    Staging {
        /// Layer of the expert.
        layer: LayerId,
        /// First byte.
        offset: usize,
        /// Bytes that the expert takes.
        bytes: usize,
    },
}

/// What places a rank has: enough to check a wave that names another rank's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The rank.
    pub rank: RankId,
    /// Its slots, numbered over all ranks.
    pub slots: std::ops::Range<usize>,
    /// Bytes of its staging.
    pub staging_bytes: usize,
}

impl Extent {
    /// Finds a place in memory of this extent.
    ///
    /// # Errors
    /// It does not exist; the reason says what there is.
    pub fn locate(&self, layout: &ModelLayout, place: Place) -> Result<Located, CommError> {
        let missing = |reason| Err(CommError::NoSuchPlace { rank: self.rank, place, reason });
        let (Place::Slot { layer, .. } | Place::Staging { layer, .. }) = place;
        if layer.index() >= layout.layers() {
            return missing(format!("its layers are 0..{}", layout.layers()));
        }
        match place {
            Place::Slot { layer, slot } => {
                if !self.slots.contains(&slot.index()) {
                    return missing(format!("its slots are {}..{}", self.slots.start, self.slots.end));
                }
                Ok(Located::Slot { layer, local: slot.index() - self.slots.start })
            }
            Place::Staging { layer, offset } => {
                if offset % STAGING_ALIGN != 0 {
                    return missing(format!("offsets are multiples of {STAGING_ALIGN} bytes"));
                }
                let bytes = layout.layer(layer).staged_bytes();
                match offset.checked_add(bytes).filter(|&end| end <= self.staging_bytes) {
                    Some(_) => Ok(Located::Staging { layer, offset, bytes }),
                    None => missing(format!(
                        "an expert takes {bytes} of its {} bytes of staging",
                        self.staging_bytes
                    )),
                }
            }
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

/// Checks that a wave writes no place of a rank twice and reads no slot that it writes: what came out would depend on
/// which copy is first.
///
/// # Errors
/// [`CommError::Conflict`] with the place.
pub fn places_apart(rank: RankId, layout: &ModelLayout, transfers: &[Transfer]) -> Result<(), CommError> {
    let conflict =
        |place, wanted, found: &str| Err(CommError::Conflict { rank, place, wanted, found: found.into() });
    let mut slots = Vec::new();
    let mut staged = Vec::new();
    for transfer in transfers.iter().filter(|t| t.dest == rank) {
        match transfer.landing {
            Landing::InPlace => slots.push((transfer.layer, transfer.dest_slot)),
            Landing::Staged { offset } => {
                let bytes = layout.layer(transfer.layer).staged_bytes();
                staged.push((offset, offset + bytes, transfer.layer));
            }
        }
    }
    slots.sort_unstable();
    if let Some(pair) = slots.windows(2).find(|pair| pair[0] == pair[1]) {
        let (layer, slot) = pair[0];
        return conflict(Place::slot(layer, slot), "written", "the same wave writes it twice");
    }
    staged.sort_unstable();
    if let Some(pair) = staged.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        let (offset, _, layer) = pair[1];
        return conflict(Place::staged(layer, offset), "written", "the same wave writes bytes of it twice");
    }
    let read = transfers.iter().filter(|t| t.source == rank).map(|t| (t.layer, t.source_slot));
    match read.into_iter().find(|source| slots.binary_search(source).is_ok()) {
        Some((layer, slot)) => conflict(Place::slot(layer, slot), "written", "the same wave reads it"),
        None => Ok(()),
    }
}
