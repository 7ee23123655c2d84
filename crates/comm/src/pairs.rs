//! Batches of messages between pairs of ranks: what the exchange code of other servers asks a transport for.

use std::fmt::Debug;
use std::ptr::NonNull;
use std::time::Instant;

use eplb_core::RankId;
use xxhash_rust::xxh3::Xxh3;

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

/// What a sender tells the receiver of its messages before their bytes: how many, how many bytes in all, and a hash of their sizes in
/// order. A receiver takes nothing in that it does not expect.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchHeader(pub [u64; 3]);

impl BatchHeader {
    /// Bytes of it as it travels.
    pub const BYTES: usize = size_of::<[u64; 3]>();

    /// That of the messages from one rank to another.
    pub fn of(messages: &[Message]) -> Self {
        let mut hasher = Xxh3::new();
        let mut bytes = 0;
        for message in messages {
            hasher.update(&(message.bytes as u64).to_le_bytes());
            bytes += message.bytes as u64;
        }
        Self([messages.len() as u64, bytes, hasher.digest()])
    }

    /// As it travels.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (place, number) in bytes.chunks_exact_mut(8).zip(self.0) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// As it came.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let number = |at: usize| std::array::from_fn(|byte| bytes[8 * at + byte]);
        Self(std::array::from_fn(|at| u64::from_le_bytes(number(at))))
    }

    /// In which way what a sender told differs from what was expected, in words.
    pub fn differs(self, expected: Self) -> String {
        let words = |Self([count, bytes, _]): Self| format!("{count} messages of {bytes} bytes in all");
        match self.0[..2] == expected.0[..2] {
            true => format!("it sends {}, as expected, but in other sizes", words(expected)),
            false => format!("it sends {}; expected {}", words(self), words(expected)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sizes: &[usize]) -> BatchHeader {
        let message = |&bytes: &usize| Message { peer: RankId(1), base: NonNull::dangling(), bytes };
        BatchHeader::of(&sizes.iter().map(message).collect::<Vec<_>>())
    }

    #[test]
    fn sizes_in_another_order_are_another_header() {
        let (told, expected) = (header(&[8, 24]), header(&[24, 8]));
        assert_ne!(told, expected);
        assert!(told.differs(expected).contains("other sizes"), "{}", told.differs(expected));
        assert!(header(&[3]).differs(expected).contains("expected 2 messages of 32 bytes"));
        assert_eq!(BatchHeader::from_bytes(told.to_bytes()), told);
    }
}
