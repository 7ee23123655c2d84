//! What a wave must be before anything of it is enqueued.

use std::sync::Arc;

use eplb_core::{Landing, RankId, Transfer};

use crate::error::CommError;
use crate::host::HostMemory;
use crate::memory::Place;

/// Checks that every rank and place that a wave names exists, on all ranks alike.
///
/// # Errors
/// The first that does not.
pub(super) fn places_exist(memories: &[Arc<HostMemory>], transfers: &[Transfer]) -> Result<(), CommError> {
    let memory = |rank: RankId, place: Place| {
        memories.get(rank.index()).ok_or_else(|| CommError::NoSuchPlace {
            rank,
            place,
            reason: format!("the group has ranks 0..{}", memories.len()),
        })
    };
    for transfer in transfers {
        let source = Place::source(transfer);
        memory(transfer.source, source)?.check(source)?;
        let slot = Place::slot(transfer.layer, transfer.dest_slot);
        let dest = memory(transfer.dest, slot)?;
        dest.check(slot)?;
        if let Landing::Staged { .. } = transfer.landing {
            dest.check(Place::landing(transfer))?;
        }
    }
    Ok(())
}
