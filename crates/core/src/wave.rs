//! Waves: what is moved and committed at once. Waves are data; a communicator carries their transfers out.

use crate::ids::{ExpertId, LayerId, RankId, SlotId};

/// Where the bytes of a transfer land.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Landing {
    /// Straight in the destination slot, which no map in force names.
    InPlace,
    /// In the destination rank's staging memory, this many bytes from its start; the commit copies them in.
    Staged {
        /// Offset in bytes; the expert takes `LayerLayout::staged_bytes` from there.
        offset: usize,
    },
}

/// One expert's bytes, all of its tensors, from a slot of one rank to another rank, or inside a rank if
/// source and destination rank are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Transfer {
    /// Layer of the expert.
    pub layer: LayerId,
    /// The expert.
    pub expert: ExpertId,
    /// Rank that holds the bytes.
    pub source: RankId,
    /// Its slot that holds them.
    pub source_slot: SlotId,
    /// Rank that needs the bytes.
    pub dest: RankId,
    /// Its slot that they are for.
    pub dest_slot: SlotId,
    /// Where they land.
    pub landing: Landing,
}

impl Transfer {
    /// Whether the bytes stay on their rank.
    pub fn is_local(&self) -> bool {
        self.source == self.dest
    }
}

/// How a slot gets its new content when a wave commits. Commits of a rank run in the order listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fill {
    /// The bytes are there: they landed in place, and only the map changes.
    InPlace(ExpertId),
    /// The bytes are in staging at `offset` and are copied in.
    Staged {
        /// The expert whose bytes they are.
        expert: ExpertId,
        /// Offset in the rank's staging memory, in bytes.
        offset: usize,
    },
    /// The bytes are in another slot of the same rank at the time of the commit, and are copied over.
    FromSlot {
        /// The expert whose bytes they are.
        expert: ExpertId,
        /// The slot that holds them.
        slot: SlotId,
    },
    /// The slot becomes empty: only the map changes.
    Empty,
}

impl Fill {
    /// Whether bytes are copied; else only the map changes.
    pub fn copies(&self) -> bool {
        matches!(self, Fill::Staged { .. } | Fill::FromSlot { .. })
    }

    /// The expert that the slot holds afterwards.
    pub fn expert(&self) -> Option<ExpertId> {
        match *self {
            Fill::InPlace(expert) | Fill::Staged { expert, .. } | Fill::FromSlot { expert, .. } => {
                Some(expert)
            }
            Fill::Empty => None,
        }
    }

    /// Whether the commit copies bytes over a slot that is in service until then, so that all ranks must
    /// commit at one agreed step.
    pub fn overwrites(&self) -> bool {
        matches!(self, Fill::Staged { .. } | Fill::FromSlot { .. })
    }
}

/// A slot's change at the commit of a wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotCommit {
    /// Layer of the slot.
    pub layer: LayerId,
    /// The slot.
    pub slot: SlotId,
    /// What it gets.
    pub fill: Fill,
}

/// A set of changes that is transferred and then committed at once; the placement after it is valid.
///
/// Order of events: all `drains` go out of service; when no step that may use them is left, transfers run; when
/// all bytes are in and all reads are over, all `commits` take effect.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Wave {
    /// Slots taken out of service before bytes land in them, in order of layer and slot.
    pub drains: Vec<(LayerId, SlotId)>,
    /// Transfers in canonical order: layer, expert, destination rank, destination slot.
    pub transfers: Vec<Transfer>,
    /// Slot changes, in order of layer; within a layer in the order that they must run.
    pub commits: Vec<SlotCommit>,
}

impl Wave {
    /// Whether the commit overwrites slots in service, so that all ranks must commit at one agreed step.
    pub fn needs_agreed_step(&self) -> bool {
        self.commits.iter().any(|c| c.fill.overwrites())
    }
}
