//! What a rank may do at once.

use eplb_core::Transfer;

use super::memory::HostMemory;
use crate::error::CommError;
use crate::memory::{self, Memory};

/// Checks that a wave writes no place of a rank twice and reads no slot that it writes: [`memory::places_apart`].
///
/// # Errors
/// [`CommError::Conflict`] with the place.
pub fn places_apart(memory: &HostMemory, transfers: &[Transfer]) -> Result<(), CommError> {
    memory::places_apart(memory.rank(), memory.layout(), transfers)
}
