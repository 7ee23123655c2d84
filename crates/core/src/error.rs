//! Errors of the vocabulary: shapes and values that cannot be.

use crate::ids::{ExpertId, LayerId, RankId, SlotId};

/// What is wrong with a topology, a load matrix, a placement, a share or a layout.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// An array does not have the shape that the others imply.
    #[error("{what} has shape {found:?}, expected {expected}")]
    Shape {
        /// The array.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape in words.
        expected: String,
    },
    /// A load is NaN, infinite or negative.
    #[error("load of {layer} {expert} at step {step} is {value}; loads are finite token counts, 0 or more")]
    Load {
        /// Step inside the window.
        step: usize,
        /// Layer of the value.
        layer: LayerId,
        /// Expert of the value.
        expert: ExpertId,
        /// The value itself.
        value: f64,
    },
    /// A slot names an expert that does not exist.
    #[error("{layer} {slot} names expert {value}, but experts are 0..{experts} and -1 means an empty slot")]
    ExpertOutOfRange {
        /// Layer of the slot.
        layer: LayerId,
        /// The slot.
        slot: SlotId,
        /// What it names.
        value: i64,
        /// Number of logical experts.
        experts: usize,
    },
    /// A logical expert has no copy.
    #[error("{layer} {expert} has no slot: every expert needs at least one copy")]
    MissingExpert {
        /// Layer of the expert.
        layer: LayerId,
        /// The expert without a copy.
        expert: ExpertId,
    },
    /// Two maps of one placement contradict each other.
    #[error("{what} disagrees with phy2log at {layer} {expert}: it says {found}, phy2log says {expected}")]
    Disagree {
        /// The map that disagrees.
        what: &'static str,
        /// Layer of the entry.
        layer: LayerId,
        /// Expert of the entry.
        expert: ExpertId,
        /// What the map says.
        found: String,
        /// What `phy2log` implies.
        expected: String,
    },
    /// A share is not a fraction, not 0 at an empty slot, or does not sum to 1 over the replicas of an expert.
    #[error(
        "share of {layer} {expert} is {value}: shares are 0..1 and sum to 1 over the replicas of an expert"
    )]
    Share {
        /// Layer of the expert.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
        /// The offending value or sum.
        value: f64,
    },
    /// A share is set on an empty slot.
    #[error("share of {layer} {slot} is {value}, but the slot is empty: its share must be 0")]
    ShareOfEmptySlot {
        /// Layer of the slot.
        layer: LayerId,
        /// The empty slot.
        slot: SlotId,
        /// Its share.
        value: f64,
    },
    /// Ranks, nodes, slots or speeds that make no topology.
    #[error("topology: {0}")]
    Topology(String),
    /// A rank's speed is not a positive finite number.
    #[error("speed of {rank} is {value}; a speed is a finite number above 0 (1 = the others' speed)")]
    Speed {
        /// The rank.
        rank: RankId,
        /// Its speed.
        value: f64,
    },
    /// A tensor's rows, pitch and stride contradict each other.
    #[error("{layer} tensor {tensor:?}: {reason}")]
    Layout {
        /// Layer of the tensor.
        layer: LayerId,
        /// Name of the tensor.
        tensor: String,
        /// The contradiction and what would be right.
        reason: String,
    },
}
