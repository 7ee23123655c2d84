//! Batches of messages between pairs of ranks: what the exchange code of other servers asks a transport for.

use std::fmt::Debug;
use std::ptr::NonNull;
use std::time::Instant;

use eplb_core::RankId;

use crate::error::CommError;

/// Bytes to or from another rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// The other rank.
    pub peer: RankId,
    /// Where the bytes lie, or go.
    pub base: NonNull<u8>,
    /// How many.
    pub bytes: usize,
}

/// Point-to-point messages in batches, without a plan that all ranks know.
///
/// The messages from one rank to another match in the order in which they are given on both sides, batch by batch; sizes must be
/// equal, and a batch in which they are not is an error on the receiving side before a byte of it lands. Ranks that exchange
/// nothing with each other in a batch need not call at the same time, or at all. A rank that is dropped while batches of others are
/// under way ends them with an error: all agree to part before the first one leaves.
///
/// A [`crate::Communicator`] knows whole waves, and more: where an expert comes from, and that nobody reads what is written. This is
/// for servers that keep that to themselves.
pub trait Pairs: Debug + Send {
    /// Name of the backend.
    fn backend(&self) -> &'static str;

    /// This rank.
    fn rank(&self) -> RankId;

    /// Number of ranks, this one included.
    fn world_size(&self) -> usize;

    /// Sends and receives a batch; returns when what is received is in and what is sent may be written again. After an error the
    /// connections are spent: every later call fails with the cause of the first.
    ///
    /// # Errors
    /// A peer that is this rank or none, a peer whose batch is another, one that died, or the deadline.
    ///
    /// # Safety
    /// Until it returns, what is sent can be read and nobody writes it, what is received into can be written and nobody else
    /// touches it, and no two of the latter overlap.
    unsafe fn exchange(
        &mut self,
        sends: &[Message],
        receives: &[Message],
        deadline: Instant,
    ) -> Result<(), CommError>;

    /// Bytes received from other ranks so far.
    fn received_bytes(&self) -> u64;
}
