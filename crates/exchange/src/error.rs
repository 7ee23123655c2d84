//! Why an exchange cannot be planned.

use eplb_core::{CoreError, ExpertId, LayerId, RankId, SlotId};

/// What forbids an exchange between two placements. Nothing has been moved when one of these is returned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// The new placement names experts that no live rank holds. They are never copied from garbage: fetch them
    /// first, or leave them out.
    #[error(
        "{} experts of the new placement are held by no live rank, first {} {}; fetch them from the checkpoint or \
         leave them out",
        experts.len(), experts[0].0, experts[0].1
    )]
    MissingExperts {
        /// Every one of them, at least one, in order of layer and expert.
        experts: Vec<(LayerId, ExpertId)>,
    },
    /// The new placement puts an expert on a dead rank.
    #[error("{layer} {slot} of the new placement belongs to {rank}, which is dead; it must be -1")]
    DeadRank {
        /// Layer of the slot.
        layer: LayerId,
        /// The slot.
        slot: SlotId,
        /// Its dead owner.
        rank: RankId,
    },
    /// Staging cannot hold one expert, but a slot that cannot be spared must change.
    #[error(
        "{layer} needs {needed} bytes of staging per rank, but the budget is {budget}; raise staging_bytes"
    )]
    StagingTooSmall {
        /// A layer that needs staging.
        layer: LayerId,
        /// Bytes of one staged expert of that layer.
        needed: usize,
        /// The budget given.
        budget: usize,
    },
    /// An expert has more replicas than maps have columns.
    #[error("{layer} {expert} has {count} replicas in the {which} placement, but max_replicas is {max}")]
    TooManyReplicas {
        /// Layer of the expert.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
        /// Its replicas.
        count: usize,
        /// The limit.
        max: usize,
        /// `"old"` or `"new"`.
        which: &'static str,
    },
    /// No further change of a layer fits the limits given (drain floor, staging, replicas).
    #[error(
        "{layer}: {left} slot changes cannot be ordered within the limits; raise staging_bytes or lower drain_floor"
    )]
    Stuck {
        /// The first layer with changes left.
        layer: LayerId,
        /// Changes left over all layers.
        left: usize,
    },
    /// Placements, topology, layout or loads of different shapes.
    #[error(transparent)]
    Shape(#[from] CoreError),
}
