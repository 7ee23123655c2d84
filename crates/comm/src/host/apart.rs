//! What a rank may do at once.

use eplb_core::{Landing, Transfer};

use super::memory::HostMemory;
use crate::error::CommError;
use crate::memory::{Memory, Place};

/// Checks that a wave writes no place of a rank twice and reads no slot that it writes: what came out would depend on
/// which copy is first.
///
/// # Errors
/// [`CommError::Conflict`] with the place.
pub fn places_apart(memory: &HostMemory, transfers: &[Transfer]) -> Result<(), CommError> {
    let rank = memory.rank();
    let conflict =
        |place, wanted, found: &str| Err(CommError::Conflict { rank, place, wanted, found: found.into() });
    let mut slots = Vec::new();
    let mut staged = Vec::new();
    for transfer in transfers.iter().filter(|t| t.dest == rank) {
        match transfer.landing {
            Landing::InPlace => slots.push((transfer.layer, transfer.dest_slot)),
            Landing::Staged { offset } => {
                let bytes = memory.layout().layer(transfer.layer).staged_bytes();
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
