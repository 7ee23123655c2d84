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

/// Calls `visit(position, byte)` chunk by chunk: `offset` is the position of `bytes` in the tensor of the expert,
/// counted without gaps between rows.
fn words(
    layer: LayerId,
    expert: ExpertId,
    tensor: usize,
    offset: usize,
    len: usize,
    mut visit: impl FnMut(usize, &[u8]),
) {
    let seed = seed(layer, expert, tensor);
    let mut at = 0;
    while at < len {
        let position = offset + at;
        let word = mix(seed.wrapping_add((position / 8) as u64)).to_le_bytes();
        let from = position % 8;
        let take = (8 - from).min(len - at);
        visit(at, &word[from..from + take]);
        at += take;
    }
}

/// Writes the expected bytes of an expert's tensor from `offset` on, rows without gaps.
pub fn fill(layer: LayerId, expert: ExpertId, tensor: usize, offset: usize, bytes: &mut [u8]) {
    let len = bytes.len();
    words(layer, expert, tensor, offset, len, |at, word| bytes[at..at + word.len()].copy_from_slice(word));
}

/// Number of bytes that differ from what is expected of an expert's tensor from `offset` on.
pub fn count_wrong(layer: LayerId, expert: ExpertId, tensor: usize, offset: usize, bytes: &[u8]) -> u64 {
    let mut wrong = 0u64;
    words(layer, expert, tensor, offset, bytes.len(), |at, word| {
        let found = &bytes[at..at + word.len()];
        if found != word {
            wrong += found.iter().zip(word).filter(|(a, b)| a != b).count() as u64;
        }
    });
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
            assert_eq!(count_wrong(layer, expert, 1, 0, &whole[..cut]), 0);
            assert_eq!(count_wrong(layer, expert, 1, cut, &whole[cut..]), 0);
        }
        whole[50] ^= 1;
        assert_eq!(count_wrong(layer, expert, 1, 0, &whole), 1);
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
