//! What a wave must be before anything of it is enqueued.

use eplb_comm::{CommError, Memory, Place};
use eplb_core::layout::STAGING_ALIGN;
use eplb_core::{Landing, RankId, Transfer};

use crate::facts::Facts;

/// Checks that every rank and place that a wave names exists, from what all ranks said when they connected. Layers have the same
/// sizes everywhere, so this rank's layout answers for all.
///
/// # Errors
/// The first that does not exist.
pub(crate) fn places_exist(
    memory: &dyn Memory,
    facts: &[Facts],
    transfers: &[Transfer],
) -> Result<(), CommError> {
    for transfer in transfers {
        place(memory, facts, transfer.source, Place::source(transfer))?;
        place(memory, facts, transfer.dest, Place::slot(transfer.layer, transfer.dest_slot))?;
        if let Landing::Staged { .. } = transfer.landing {
            place(memory, facts, transfer.dest, Place::landing(transfer))?;
        }
    }
    Ok(())
}

fn place(memory: &dyn Memory, facts: &[Facts], rank: RankId, place: Place) -> Result<(), CommError> {
    let missing = |reason| Err(CommError::NoSuchPlace { rank, place, reason });
    let Some(owner) = facts.get(rank.index()) else {
        return missing(format!("the group has ranks 0..{}", facts.len()));
    };
    let (Place::Slot { layer, .. } | Place::Staging { layer, .. }) = place;
    if layer.index() >= memory.layout().layers() {
        return missing(format!("its layers are 0..{}", memory.layout().layers()));
    }
    match place {
        Place::Slot { slot, .. } if !owner.slots.contains(&slot.index()) => {
            missing(format!("its slots are {}..{}", owner.slots.start, owner.slots.end))
        }
        Place::Slot { .. } => Ok(()),
        Place::Staging { offset, .. } if offset % STAGING_ALIGN != 0 => {
            missing(format!("offsets are multiples of {STAGING_ALIGN} bytes"))
        }
        Place::Staging { offset, .. } => {
            let bytes = memory.layout().layer(layer).staged_bytes();
            match offset.checked_add(bytes).filter(|&end| end <= owner.staging_bytes) {
                Some(_) => Ok(()),
                None => missing(format!(
                    "an expert takes {bytes} of its {} bytes of staging",
                    owner.staging_bytes
                )),
            }
        }
    }
}
