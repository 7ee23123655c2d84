//! What ranks tell each other before they connect.

use std::ops::Range;

use eplb_comm::Memory;
use eplb_core::RankId;
use gloo_sys::Secret;

use crate::error::GlooError;
use crate::options::Options;

/// Version of everything that ranks exchange.
const VERSION: u64 = 1;

/// One rank's part of the agreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) version: u64,
    /// Drawn anew for each attempt of each start.
    pub(crate) nonce: u64,
    /// Hash of the tensors that all ranks must have alike.
    pub(crate) layout: u64,
    pub(crate) slots: Range<usize>,
    pub(crate) staging_bytes: usize,
    pub(crate) small_bytes: usize,
    pub(crate) piece_bytes: usize,
}

impl Facts {
    pub(crate) fn of(memory: &dyn Memory, options: &Options, nonce: u64) -> Self {
        Self {
            version: VERSION,
            nonce,
            layout: memory.layout().hash64(),
            slots: memory.slots(),
            staging_bytes: memory.staging_bytes(),
            small_bytes: options.small_bytes,
            piece_bytes: options.piece_bytes,
        }
    }

    /// Of ranks that exchange messages without a layout.
    pub(crate) fn of_pairs(options: &Options) -> Self {
        let (small_bytes, piece_bytes) = (options.small_bytes, options.piece_bytes);
        Self {
            version: VERSION,
            nonce: 0,
            layout: u64::from_le_bytes(*b"eplbpair"),
            slots: 0..0,
            staging_bytes: 0,
            small_bytes,
            piece_bytes,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let numbers = [
            self.version,
            self.nonce,
            self.layout,
            self.slots.start as u64,
            self.slots.end as u64,
            self.staging_bytes as u64,
            self.small_bytes as u64,
            self.piece_bytes as u64,
        ];
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// `None`: not of this version's form.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        let numbers: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let [version, nonce, layout, start, end, staging, small, piece] = numbers[..] else { return None };
        let size = |number: u64| usize::try_from(number).ok();
        (rest.is_empty() && version == VERSION).then_some(())?;
        Some(Self {
            version,
            nonce,
            layout,
            slots: size(start)?..size(end)?,
            staging_bytes: size(staging)?,
            small_bytes: size(small)?,
            piece_bytes: size(piece)?,
        })
    }
}

/// What the ranks of an attempt know and nobody else: drawn from all nonces, which only who reads the store can know.
pub(crate) fn secret(generation: u64, all: &[Facts]) -> Secret {
    let mut hasher = xxhash_rust::xxh3::Xxh3::with_seed(generation);
    all.iter().for_each(|facts| hasher.update(&facts.nonce.to_le_bytes()));
    hasher.digest128().to_le_bytes()
}

/// Checks that all ranks fit together, and that each slot has one owner.
///
/// # Errors
/// The first rank that does not fit this one, or two that own one slot.
pub(crate) fn check(rank: RankId, all: &[Facts]) -> Result<(), GlooError> {
    let own = &all[rank.index()];
    let mismatch = |rank, other, reason| Err(GlooError::Mismatch { rank, other, reason });
    for (other, facts) in all.iter().enumerate() {
        let pairs = [
            ("tensors, rows or row bytes of an expert (as a hash)", own.layout, facts.layout),
            ("small_bytes", own.small_bytes as u64, facts.small_bytes as u64),
            ("piece_bytes", own.piece_bytes as u64, facts.piece_bytes as u64),
        ];
        if let Some((what, here, there)) = pairs.into_iter().find(|(_, here, there)| here != there) {
            let reason = format!("{what}: {here:#x} here, {there:#x} there; start all ranks with the same");
            return mismatch(rank, RankId::at(other), reason);
        }
    }
    let mut owned: Vec<_> = all
        .iter()
        .enumerate()
        .filter(|(_, f)| !f.slots.is_empty())
        .map(|(r, f)| (f.slots.clone(), r))
        .collect();
    owned.sort_unstable_by_key(|(slots, _)| (slots.start, slots.end));
    match owned.windows(2).find(|pair| pair[1].0.start < pair[0].0.end) {
        Some(pair) => mismatch(
            RankId::at(pair[0].1),
            RankId::at(pair[1].1),
            format!("they own slots {:?} and {:?}; a slot has one owner", pair[0].0, pair[1].0),
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(slots: Range<usize>) -> Facts {
        Facts {
            version: VERSION,
            nonce: 7,
            layout: 5,
            slots,
            staging_bytes: 64,
            small_bytes: 10,
            piece_bytes: 20,
        }
    }

    #[test]
    fn what_is_written_is_read_and_junk_is_not() {
        let one = facts(3..9);
        assert_eq!(Facts::decode(&one.encode()), Some(one.clone()));
        assert_eq!(Facts::decode(&one.encode()[1..]), None);
        assert_eq!(Facts::decode(b"junk"), None);
        let newer = Facts { version: VERSION + 1, ..one };
        assert_eq!(Facts::decode(&newer.encode()), None);
    }

    #[test]
    fn ranks_that_differ_are_named() {
        check(RankId(0), &[facts(0..4), facts(4..4), facts(4..6)]).unwrap();
        let other = Facts { layout: 6, ..facts(4..6) };
        let error = check(RankId(0), &[facts(0..4), other]).unwrap_err().to_string();
        assert!(error.contains("rank 0 does not fit rank 1: tensors"), "{error}");
        let other = Facts { piece_bytes: 21, ..facts(4..6) };
        assert!(check(RankId(1), &[facts(0..4), other]).unwrap_err().to_string().contains("piece_bytes"));
        assert!(check(RankId(0), &[facts(0..4), facts(3..6)]).unwrap_err().to_string().contains("one owner"));
    }
}
