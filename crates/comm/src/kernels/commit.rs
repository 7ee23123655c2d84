//! The commit: staged experts into their slots, and the maps changed in place, in one launch.

use super::error::KernelError;
use super::rows::{RowCopy, copy_rows};

/// A 32-bit entry of a map: a slot of `log2phy` or an expert of `phy2log`, a count, or the bits of a share.
///
/// `dest` is a device address in a list for the device, and an offset into the maps given to [`commit`] in a list for the
/// twin; a multiple of 4 in both. No two entries of a list write the same word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordWrite {
    /// Where it goes.
    pub dest: u64,
    /// What is written.
    pub value: u32,
}

impl WordWrite {
    /// Bytes of an entry on the device.
    pub const BYTES: usize = 16;

    /// An integer of a map; -1 = none.
    pub fn entry(dest: u64, value: i32) -> Self {
        Self { dest, value: value.cast_unsigned() }
    }

    /// A share.
    pub fn share(dest: u64, value: f32) -> Self {
        Self { dest, value: value.to_bits() }
    }

    /// The entry in its layout on the device: a 64-bit address, a 32-bit value and four bytes of 0, little-endian.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.dest.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }
}

/// Copies rows from `staging` to `slots` and writes words of `maps`.
///
/// On the device both happen in one launch, in no order among themselves: work of the stream behind it sees all of it, work
/// before it none. A commit that only changes maps (a drain, a putting-in-service) has no rows.
///
/// # Errors
/// An entry reaches outside its memory, or is no multiple of 4; nothing was changed then.
pub fn commit(
    rows: &[RowCopy],
    words: &[WordWrite],
    staging: &[u8],
    slots: &mut [u8],
    maps: &mut [u8],
) -> Result<(), KernelError> {
    for (entry, word) in words.iter().enumerate() {
        if word.dest % 4 != 0 {
            return Err(KernelError::Range {
                what: "the place of a word",
                value: word.dest,
                allowed: "a multiple of 4",
            });
        }
        let end = word.dest.saturating_add(4);
        if end > maps.len() as u64 {
            return Err(KernelError::Outside { entry, what: "the maps", end, bytes: maps.len() });
        }
    }
    copy_rows(rows, staging, slots)?;
    for word in words {
        // Inside a slice: fits in usize.
        maps[word.dest as usize..][..4].copy_from_slice(&word.value.to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_words_are_written() {
        let (mut slots, mut maps) = ([0u8; 4], [7u8; 12]);
        let words = [WordWrite::entry(8, -1), WordWrite::share(0, 1.0)];
        commit(&[RowCopy::run(1, 2, 2)], &words, &[1, 2, 3], &mut slots, &mut maps).unwrap();
        assert_eq!(slots, [0, 0, 2, 3]);
        assert_eq!(maps, [0, 0, 0x80, 0x3f, 7, 7, 7, 7, 255, 255, 255, 255]);
        assert_eq!(words[0].to_bytes(), [8, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0]);
    }

    #[test]
    fn nothing_is_changed_by_a_list_with_an_error() {
        let (mut slots, mut maps) = ([0u8; 4], [0u8; 8]);
        let mut refused = |row, word| commit(&[row], &[word], &[1; 4], &mut slots, &mut maps).is_err();
        assert!(refused(RowCopy::run(0, 0, 4), WordWrite::entry(8, 1)));
        assert!(refused(RowCopy::run(0, 0, 4), WordWrite::entry(2, 1)));
        assert!(refused(RowCopy::run(0, 0, 4), WordWrite::entry(u64::MAX - 3, 1)));
        assert!(refused(RowCopy::run(0, 1, 4), WordWrite::entry(0, 1)));
        assert_eq!((slots, maps), ([0; 4], [0; 8]));
    }
}
