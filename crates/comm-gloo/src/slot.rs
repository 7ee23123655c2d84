//! Slot numbers: what matches a send with its receive.
//!
//! Gloo puts the bytes of a send where the receive of the same slot said, and its own thread ends the process if they are more than fit.
//! So two messages that are not the same must never share a slot: not those of different waves, of different generations, or of ranks
//! that believe in different waves. A slot is a 64-bit hash of all that makes a message the one that it is; who disagrees in any of it
//! waits until its deadline and says so.

use eplb_core::{Landing, Transfer};
use xxhash_rust::xxh3::Xxh3;

/// What all messages of one wave share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WaveId {
    /// Generation of the context.
    pub generation: u64,
    /// Number of the wave since the context was made.
    pub sequence: u64,
    /// Hash of its transfers, [`wave_hash`].
    pub hash: u64,
}

impl WaveId {
    /// Slot of a message: `transfer` counts the wave's transfers, `message` those of the expert.
    pub fn slot(&self, transfer: usize, message: usize) -> u64 {
        let mut hasher = Xxh3::new();
        for number in [self.generation, self.sequence, self.hash, transfer as u64, message as u64] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.digest()
    }
}

/// Hash of a wave's transfers in their order.
pub fn wave_hash(transfers: &[Transfer]) -> u64 {
    let mut hasher = Xxh3::new();
    for t in transfers {
        let landing = match t.landing {
            Landing::InPlace => u64::MAX,
            Landing::Staged { offset } => offset as u64,
        };
        for number in [t.layer.0, t.expert.0, t.source.0, t.source_slot.0, t.dest.0, t.dest_slot.0] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&landing.to_le_bytes());
    }
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use eplb_core::{ExpertId, LayerId, RankId, SlotId};
    use std::collections::HashSet;

    fn transfer(dest_slot: u32) -> Transfer {
        Transfer {
            layer: LayerId(1),
            expert: ExpertId(2),
            source: RankId(0),
            source_slot: SlotId(3),
            dest: RankId(1),
            dest_slot: SlotId(dest_slot),
            landing: Landing::InPlace,
        }
    }

    #[test]
    fn no_two_messages_share_a_slot() {
        let mut slots = HashSet::new();
        for generation in 0..4 {
            for sequence in 0..4 {
                for dest_slot in 0..4 {
                    let id = WaveId { generation, sequence, hash: wave_hash(&[transfer(dest_slot)]) };
                    for transfer in 0..16 {
                        assert!((0..16).all(|message| slots.insert(id.slot(transfer, message))));
                    }
                }
            }
        }
    }

    #[test]
    fn the_hash_sees_every_field() {
        let base = transfer(5);
        let all = [
            base,
            Transfer { layer: LayerId(9), ..base },
            Transfer { expert: ExpertId(9), ..base },
            Transfer { source: RankId(9), ..base },
            Transfer { source_slot: SlotId(9), ..base },
            Transfer { dest: RankId(9), ..base },
            Transfer { dest_slot: SlotId(9), ..base },
            Transfer { landing: Landing::Staged { offset: 0 }, ..base },
            Transfer { landing: Landing::Staged { offset: 16 }, ..base },
        ];
        let hashes: HashSet<u64> = all.iter().map(|t| wave_hash(std::slice::from_ref(t))).collect();
        assert_eq!(hashes.len(), all.len());
        assert_ne!(wave_hash(&[base, all[1]]), wave_hash(&[all[1], base]));
    }
}
