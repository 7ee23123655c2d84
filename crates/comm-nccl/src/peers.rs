//! What ranks tell each other before the first wave.

use std::sync::Arc;

use eplb_comm::{CommError, Extent, Memory, Place};
use eplb_core::{Landing, LayerId, ModelLayout, RankId, Transfer};
use eplb_cuda::DeviceMemory;

use crate::error::NcclCommError;

/// A rank's memory, as far as the others must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) extent: Extent,
    /// `[layer][tensor]`: whether rows have gaps there.
    gaps: Vec<Vec<bool>>,
}

/// All ranks, in their order.
#[derive(Debug)]
pub(crate) struct Peers {
    layout: Arc<ModelLayout>,
    ranks: Vec<Peer>,
}

fn shapes(layout: &ModelLayout) -> impl Iterator<Item = usize> {
    (0..layout.layers()).map(|layer| layout.layer(LayerId::at(layer)).tensors().len())
}

/// What this rank tells: hash of the layout, slots, staging, and one byte per tensor that says whether it has gaps.
pub(crate) fn hello(memory: &DeviceMemory) -> Vec<u8> {
    let (layout, extent) = (memory.layout(), memory.extent());
    let numbers =
        [layout.hash64(), extent.slots.start as u64, extent.slots.end as u64, extent.staging_bytes as u64];
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    for layer in 0..layout.layers() {
        let tensors = layout.layer(LayerId::at(layer)).tensors();
        bytes.extend(
            tensors.iter().map(|tensor| u8::from(tensor.rows > 1 && tensor.pitch != tensor.row_bytes)),
        );
    }
    bytes
}

impl Peers {
    /// Reads what every rank told.
    pub(crate) fn read(layout: &Arc<ModelLayout>, told: &[Vec<u8>]) -> Result<Self, NcclCommError> {
        let ours = layout.hash64();
        let mut ranks = Vec::new();
        for (rank, bytes) in told.iter().enumerate() {
            let rank = RankId::at(rank);
            let fail = |reason: String| NcclCommError::Peer { rank, reason };
            let number = |at: usize| -> Result<u64, NcclCommError> {
                bytes
                    .get(8 * at..8 * at + 8)
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(u64::from_le_bytes)
                    .ok_or_else(|| fail("it told too little; is every rank of the same version?".into()))
            };
            let theirs = number(0)?;
            if theirs != ours {
                return Err(fail(format!(
                    "its layout of tensors is {theirs:016x}, ours is {ours:016x}: register the same tensors, in the same \
                     order, on every rank"
                )));
            }
            let index = |at: usize| number(at).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
            let extent = Extent { rank, slots: index(1)?..index(2)?, staging_bytes: index(3)? };
            let mut flags = bytes[32..].iter();
            let gaps = shapes(layout)
                .map(|tensors| flags.by_ref().take(tensors).map(|&flag| flag != 0).collect::<Vec<_>>())
                .collect();
            ranks.push(Peer { extent, gaps });
        }
        Ok(Self { layout: layout.clone(), ranks })
    }

    /// Ranks of one layout and of as many slots and no staging, for tests.
    #[cfg(test)]
    pub(crate) fn of(layout: Arc<ModelLayout>, slots: usize, gaps: &[Vec<Vec<bool>>]) -> Self {
        let peer = |(rank, gaps): (usize, &Vec<Vec<bool>>)| Peer {
            extent: Extent {
                rank: RankId::at(rank),
                slots: rank * slots..(rank + 1) * slots,
                staging_bytes: 0,
            },
            gaps: gaps.clone(),
        };
        Self { layout, ranks: gaps.iter().enumerate().map(peer).collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.ranks.len()
    }

    pub(crate) fn layout(&self) -> &Arc<ModelLayout> {
        &self.layout
    }

    /// Whether rows of a tensor have gaps on either side of a transfer.
    pub(crate) fn has_gaps(&self, transfer: &Transfer, tensor: usize) -> bool {
        let gap = |rank: RankId| self.ranks[rank.index()].gaps[transfer.layer.index()][tensor];
        // Staging has none, but what is cut must be the same whatever the landing.
        gap(transfer.source) || gap(transfer.dest)
    }

    /// Whether any rank has rows with gaps.
    pub(crate) fn any_gaps(&self) -> bool {
        self.ranks.iter().any(|peer| peer.gaps.iter().flatten().any(|&gap| gap))
    }

    /// Whether any layer has several tensors of fewer bytes, so that they are gathered.
    pub(crate) fn any_below(&self, bytes: usize) -> bool {
        (0..self.layout.layers()).any(|layer| {
            let tensors = self.layout.layer(LayerId::at(layer)).tensors();
            tensors.iter().filter(|tensor| tensor.rows * tensor.row_bytes < bytes).count() > 1
        })
    }

    /// Checks that every rank and place that a wave names exists, on all ranks alike.
    pub(crate) fn check(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        let extent = |rank: RankId, place: Place| {
            self.ranks.get(rank.index()).map(|peer| &peer.extent).ok_or_else(|| CommError::NoSuchPlace {
                rank,
                place,
                reason: format!("the communicator has ranks 0..{}", self.ranks.len()),
            })
        };
        for transfer in transfers {
            let source = Place::source(transfer);
            extent(transfer.source, source)?.locate(&self.layout, source)?;
            let slot = Place::slot(transfer.layer, transfer.dest_slot);
            let dest = extent(transfer.dest, slot)?;
            dest.locate(&self.layout, slot)?;
            if let Landing::Staged { .. } = transfer.landing {
                dest.locate(&self.layout, Place::landing(transfer))?;
            }
        }
        Ok(())
    }
}
