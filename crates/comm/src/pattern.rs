//! Bytes that an expert must have, computed from its name alone.
//!
//! Checks of an exchange fill weights with this pattern and compare with it later, so that what is expected never
//! comes from the memory that is checked.

use eplb_core::{ExpertId, LayerId};

/// Start value of one tensor of one expert: different names give unrelated byte streams.
fn seed(layer: LayerId, expert: ExpertId, tensor: usize) -> u64 {
    let name = (u64::from(layer.0) << 40) ^ (u64::from(expert.0) << 16) ^ tensor as u64;
    mix(name.wrapping_add(0x9e37_79b9_7f4a_7c15))
}

/// The 64-bit finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection, so that no two words of one tensor agree
/// by accident of the mixing.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Bytes of a word of the pattern.
const WORD: usize = size_of::<u64>();

/// The word at a position that is a multiple of [`WORD`].
#[inline]
fn word(seed: u64, position: usize) -> [u8; WORD] {
    mix(seed.wrapping_add((position / WORD) as u64)).to_le_bytes()
}

/// How `len` bytes at `offset` divide: bytes up to the next whole word (none if it begins with one), whole words in
/// bytes; what is left is the tail.
fn cut(offset: usize, len: usize) -> (usize, usize) {
    let head = (offset.next_multiple_of(WORD) - offset).min(len);
    (head, (len - head) / WORD * WORD)
}

/// Part of a word, for heads and tails: the pattern from `position` on, at most to the end of its word.
fn part(seed: u64, position: usize, len: usize) -> ([u8; WORD], std::ops::Range<usize>) {
    let from = position % WORD;
    (word(seed, position - from), from..from + len)
}

/// Writes the expected bytes of an expert's tensor from `offset` on, where `offset` is the position in the tensor, rows
/// counted without gaps.
pub fn fill(layer: LayerId, expert: ExpertId, tensor: usize, offset: usize, bytes: &mut [u8]) {
    let seed = seed(layer, expert, tensor);
    let (head_len, body_len) = cut(offset, bytes.len());
    let (head, rest) = bytes.split_at_mut(head_len);
    let (body, tail) = rest.split_at_mut(body_len);
    let begin = offset + head_len;
    for (at, out) in body.chunks_exact_mut(WORD).enumerate() {
        out.copy_from_slice(&word(seed, begin + at * WORD));
    }
    for (position, out) in [(offset, head), (begin + body_len, tail)] {
        let (word, range) = part(seed, position, out.len());
        out.copy_from_slice(&word[range]);
    }
}

/// Number of bytes that differ from what is expected of an expert's tensor from `offset` on.
pub fn count_wrong(layer: LayerId, expert: ExpertId, tensor: usize, offset: usize, bytes: &[u8]) -> u64 {
    let seed = seed(layer, expert, tensor);
    let (head_len, body_len) = cut(offset, bytes.len());
    let (head, rest) = bytes.split_at(head_len);
    let (body, tail) = rest.split_at(body_len);
    let begin = offset + head_len;
    let differ = |found: &[u8], word: &[u8]| found.iter().zip(word).filter(|(a, b)| a != b).count() as u64;
    let mut wrong = 0;
    for (at, found) in body.chunks_exact(WORD).enumerate() {
        let word = word(seed, begin + at * WORD);
        if found != word {
            wrong += differ(found, &word);
        }
    }
    for (position, found) in [(offset, head), (begin + body_len, tail)] {
        let (word, range) = part(seed, position, found.len());
        wrong += differ(found, &word[range]);
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_a_tensor_is_checked_alike() {
        let (layer, expert) = (LayerId(3), ExpertId(200));
        let mut whole = vec![0u8; 101];
        fill(layer, expert, 1, 0, &mut whole);
        for cut in 0..whole.len() {
            let mut again = [0u8; 101];
            fill(layer, expert, 1, 0, &mut again[..cut]);
            fill(layer, expert, 1, cut, &mut again[cut..]);
            assert_eq!(again[..], whole[..]);
            assert_eq!(count_wrong(layer, expert, 1, 0, &whole[..cut]), 0);
            assert_eq!(count_wrong(layer, expert, 1, cut, &whole[cut..]), 0);
        }
        whole[50] ^= 1;
        assert_eq!(count_wrong(layer, expert, 1, 0, &whole), 1);
    }

    #[test]
    fn the_bytes_are_fixed() {
        let mut bytes = [0u8; 11];
        fill(LayerId(1), ExpertId(2), 3, 6, &mut bytes);
        let seed = mix(((1u64 << 40) ^ (2 << 16) ^ 3).wrapping_add(0x9e37_79b9_7f4a_7c15));
        let word = |at: u64| mix(seed.wrapping_add(at)).to_le_bytes();
        let expected = [&word(0)[6..], &word(1)[..], &word(2)[..1]].concat();
        assert_eq!(bytes[..], expected[..]);
    }

    #[test]
    fn every_wrong_byte_counts() {
        let mut bytes = [0u8; 37];
        for at in 0..bytes.len() {
            fill(LayerId(0), ExpertId(0), 0, 5, &mut bytes);
            bytes[at] ^= 0x80;
            assert_eq!(count_wrong(LayerId(0), ExpertId(0), 0, 5, &bytes), 1, "byte {at}");
        }
    }

    #[test]
    fn names_give_different_bytes() {
        let bytes = |layer, expert, tensor| {
            let mut out = vec![0u8; 64];
            fill(LayerId(layer), ExpertId(expert), tensor, 0, &mut out);
            out
        };
        let all = [bytes(0, 0, 0), bytes(0, 0, 1), bytes(0, 1, 0), bytes(1, 0, 0)];
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert!(a.iter().zip(b).filter(|(x, y)| x == y).count() < 16);
            }
        }
    }
}
