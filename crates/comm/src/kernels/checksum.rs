//! A 64-bit checksum of an expert, over the bytes of all its tensors.
//!
//! The stream of a tensor is its rows one after another, without gaps; word `i` of it is the little-endian number in bytes
//! `8 i .. 8 i + 8`, with zeros behind the end. With `key = mix(golden * (t + 1))` for tensor `t`, 64-bit arithmetic without
//! carry out, and `w` the word:
//!
//! ```text
//! x            = (w ^ (key + golden * i)) * 0xbf58476d1ce4e5b9
//! y            = (x ^ (x >> 32)) * 0x94d049bb133111eb
//! weight(w, i) = y ^ (y >> 32)
//! checksum     = sum over t of ( mix(key ^ bytes of the tensor) + sum over i of weight(w, i) )
//! ```
//!
//! A weight is a bijection of its word, so that a single wrong word is always seen, and it depends on position and
//! tensor, so that swapped words, rows and tensors are. Without its last step, sums of two weights would agree in one of a
//! hundred swaps of the highest bytes of two words. The sum has no order: any part of it may be added first, and pitch,
//! cut and place make no difference. It guards against accidents, not against somebody who looks for a collision.

use super::{GOLDEN, mix};

/// Bytes of a unit of work of a checksum: `UNIT` of `kernels/checksum.cu`.
pub const CHECKSUM_UNIT: u64 = 8 << 10;

/// One tensor of one expert, in the list of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChecksumPart {
    /// Device address of the first row.
    pub base: u64,
    /// Number of rows.
    pub rows: u64,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// Bytes from one row to the next.
    pub pitch: u64,
    /// Units of the entries before this one in its list: [`ChecksumPart::number_units`].
    pub first_unit: u64,
    /// Number of the tensor in its layer.
    pub tensor: u32,
    /// The sum that it goes to. Entries of one sum stand together in a list that is to be fast.
    pub sum: u32,
}

impl ChecksumPart {
    /// Bytes of an entry on the device.
    pub const BYTES: usize = 48;

    /// Fills in `first_unit` of a list, and returns the units of the whole list, which the launch is given.
    pub fn number_units(list: &mut [Self]) -> u64 {
        let mut units = 0;
        for part in list {
            part.first_unit = units;
            units += (part.rows * part.row_bytes).div_ceil(CHECKSUM_UNIT);
        }
        units
    }

    /// The entry in its layout on the device: five 64-bit and two 32-bit numbers, little-endian.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let numbers = [self.base, self.rows, self.row_bytes, self.pitch, self.first_unit];
        for (field, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        bytes[40..44].copy_from_slice(&self.tensor.to_le_bytes());
        bytes[44..].copy_from_slice(&self.sum.to_le_bytes());
        bytes
    }
}

fn weight(word: u64, key: u64) -> u64 {
    let x = (word ^ key).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let y = (x ^ (x >> 32)).wrapping_mul(0x94d0_49bb_1331_11eb);
    y ^ (y >> 32)
}

/// What a tensor adds to the checksum of its expert.
pub fn tensor_sum<'a>(tensor: u32, rows: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let key = mix(GOLDEN.wrapping_mul(u64::from(tensor) + 1));
    let (mut sum, mut position, mut bytes) = (0u64, key, 0u64);
    let mut add = |word: [u8; 8]| {
        sum = sum.wrapping_add(weight(u64::from_le_bytes(word), position));
        position = position.wrapping_add(GOLDEN);
    };
    // A word that a row ended in, and the bytes of it that are there.
    let (mut open, mut filled) = ([0u8; 8], 0);
    for mut row in rows {
        bytes += row.len() as u64;
        if filled > 0 {
            let take = row.len().min(8 - filled);
            open[filled..filled + take].copy_from_slice(&row[..take]);
            (filled, row) = (filled + take, &row[take..]);
            if filled < 8 {
                continue;
            }
            add(open);
        }
        let (words, rest) = row.as_chunks::<8>();
        words.iter().for_each(|&word| add(word));
        (open, filled) = ([0; 8], rest.len());
        open[..filled].copy_from_slice(rest);
    }
    if filled > 0 {
        open[filled..].fill(0);
        add(open);
    }
    sum.wrapping_add(mix(key ^ bytes))
}

/// The checksum of an expert: its tensors in order, each as an iterator over its rows.
pub fn checksum<'a, R: IntoIterator<Item = &'a [u8]>>(tensors: impl IntoIterator<Item = R>) -> u64 {
    tensors.into_iter().zip(0..).fold(0, |sum, (rows, tensor)| sum.wrapping_add(tensor_sum(tensor, rows)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(bytes: &[u8], row: usize) -> u64 {
        tensor_sum(3, bytes.chunks(row))
    }

    #[test]
    fn sums_are_fixed() {
        // Worked out apart, from the definition.
        let bytes: Vec<u8> = (0..21).map(|at| (at * 7 + 1) as u8).collect();
        assert_eq!(checksum([[&bytes[..]], [&bytes[..3]]]), FIXED);
        assert_eq!(tensor_sum(0, []), EMPTY);
    }

    const FIXED: u64 = 0xe06f_ba27_a105_fba0;
    const EMPTY: u64 = 0x4821_8226_ff3c_d4bf;

    proptest! {
        #[test]
        fn rows_make_no_difference(bytes in proptest::collection::vec(any::<u8>(), 0..200), row in 1usize..40) {
            prop_assert_eq!(rows(&bytes, row), rows(&bytes, 1000));
        }

        #[test]
        fn accidents_are_seen(
            bytes in proptest::collection::vec(any::<u8>(), 1..200), at: u64, flip in 1u8.., other: u64,
        ) {
            let (at, other) = ((at % bytes.len() as u64) as usize, (other % bytes.len() as u64) as usize);
            let sum = rows(&bytes, 1000);
            let mut wrong = bytes.clone();
            wrong[at] ^= flip;
            prop_assert_ne!(rows(&wrong, 1000), sum, "a wrong byte");
            let mut swapped = bytes.clone();
            swapped.swap(at, other);
            prop_assert_eq!(rows(&swapped, 1000) == sum, swapped == bytes, "swapped bytes");
            prop_assert_ne!(rows(&bytes[..bytes.len() - 1], 1000), sum, "a shorter tensor");
            prop_assert_ne!(tensor_sum(4, [&bytes[..]]), sum, "another tensor");
            let longer = [&bytes[..], &[0]].concat();
            prop_assert_ne!(rows(&longer, 1000), sum, "a zero more");
        }
    }

    #[test]
    fn swapped_bytes_of_two_words_are_seen() {
        // Sums in which high bits meet only high bits agree far too often.
        let mut seed = 1u64;
        let mut next = || {
            seed = seed.wrapping_add(GOLDEN);
            mix(seed)
        };
        for _ in 0..100_000 {
            let mut words = [next(), next()].map(u64::to_le_bytes);
            let sum = tensor_sum(0, [words.as_flattened()]);
            let byte = (next() % 8) as usize;
            if words[0][byte] != words[1][byte] {
                (words[0][byte], words[1][byte]) = (words[1][byte], words[0][byte]);
                assert_ne!(tensor_sum(0, [words.as_flattened()]), sum, "{words:?}");
            }
        }
    }

    #[test]
    fn zeros_in_other_places_differ() {
        let zeros = [0u8; 64];
        assert_ne!(checksum([[&zeros[..64]], [&zeros[..32]]]), checksum([[&zeros[..32]], [&zeros[..64]]]));
    }

    #[test]
    fn units_and_layout() {
        let part = ChecksumPart {
            base: 5,
            rows: 2,
            row_bytes: 40_000,
            pitch: 50_000,
            first_unit: 0,
            tensor: 6,
            sum: 7,
        };
        let mut list = [part, part];
        assert_eq!(ChecksumPart::number_units(&mut list), 20);
        assert_eq!(list[1].first_unit, 10);
        let bytes = list[1].to_bytes();
        assert_eq!((bytes[0], bytes[8], bytes[32], bytes[40], bytes[44]), (5, 2, 10, 6, 7));
    }
}
