//! The slots of another process.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use eplb_core::{ExpertId, LayerId, ModelLayout, RankId};

use super::map::Spots;
use super::segment::{ForeignSegment, SegmentError};
use crate::error::CommError;
use crate::host::content::{Content, Tag};
use crate::host::copy::copy_views;
use crate::host::guards::WriteGuard;
use crate::host::memory::block_bytes;
use crate::host::site::View;
use crate::memory::{Extent, Located, Place};

/// The slots of a rank that is another process, to be read.
///
/// Nobody is kept from writing them meanwhile: the order of the exchange does that. A copy that was overtaken by a write of the owner all
/// the same ends in [`CommError::Conflict`], and what it wrote stays unnamed ([`Content::Unknown`]).
#[derive(Debug)]
pub struct Foreign {
    extent: Extent,
    layout: Arc<ModelLayout>,
    spots: Spots,
    segment: ForeignSegment,
}

impl Foreign {
    /// Opens the memory of `rank`: `layout` and `slots` are the owner's, `spots` what it said of its memory.
    ///
    /// # Errors
    /// The descriptor is not that memory, is that of another start of the rank, or what was said of it does not fit into it.
    pub fn open(
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        spots: Spots,
        file: OwnedFd,
    ) -> Result<Self, SegmentError> {
        let segment = ForeignSegment::open(file, spots.bytes)?;
        spots.check(|offset| segment.load(offset), &rank.to_string())?;
        let outside = |what: String, offset| SegmentError::Outside { what, offset, bytes: spots.bytes };
        let inside = |offset: usize, bytes: usize| segment.mapping().at(offset, bytes).is_some();
        let tags = layout.layers().saturating_mul(slots.len()).saturating_mul(8);
        if !inside(spots.tags, tags) || !spots.tags.is_multiple_of(8) {
            return Err(outside("tags".into(), spots.tags));
        }
        if spots.blocks.len() != layout.layers() {
            return Err(outside(format!("{} layers", layout.layers()), 0));
        }
        for (layer, offsets) in spots.blocks.iter().enumerate() {
            let tensors = layout.layer(LayerId::at(layer)).tensors();
            if offsets.len() != tensors.len() {
                return Err(outside(format!("{} tensors of layer {layer}", tensors.len()), 0));
            }
            for (tensor, &offset) in tensors.iter().zip(offsets) {
                let fits = block_bytes(layer, tensor, slots.len()).is_ok_and(|bytes| inside(offset, bytes));
                if !fits {
                    return Err(outside(
                        format!("{} slots of tensor {:?}", slots.len(), tensor.name),
                        offset,
                    ));
                }
            }
        }
        // Pulls read slots alone, so staging is none of this one's places.
        let extent = Extent { rank, slots, staging_bytes: 0 };
        Ok(Self { extent, layout, spots, segment })
    }

    /// The rank that owns it.
    pub fn rank(&self) -> RankId {
        self.extent.rank
    }

    fn slot(&self, place: Place) -> Result<(LayerId, usize), CommError> {
        match self.extent.locate(&self.layout, place)? {
            Located::Slot { layer, local } => Ok((layer, local)),
            Located::Staging { .. } => Err(CommError::NoSuchPlace {
                rank: self.extent.rank,
                place,
                reason: "others read its slots alone".into(),
            }),
        }
    }

    fn tag(&self, layer: LayerId, local: usize) -> &Tag {
        let at = layer.index() * self.extent.slots.len() + local;
        match self.segment.mapping().word(self.spots.tags + at * 8) {
            Some(word) => Tag::on(word),
            // `open` has seen that the tags of all slots lie inside, and `slot` that this is one of them.
            None => unreachable!("a tag lies in its segment"),
        }
    }

    fn view(&self, layer: LayerId, local: usize, tensor: usize) -> View {
        let shape = &self.layout.layer(layer).tensors()[tensor];
        let offset = self.spots.blocks[layer.index()][tensor] + local * shape.slot_stride;
        // `open` has seen that all slots of the tensor lie inside.
        let base = self.segment.mapping().at(offset, shape.slot_span()).unwrap_or(NonNull::dangling());
        View { base, rows: shape.rows, row_bytes: shape.row_bytes, pitch: shape.pitch }
    }

    /// Copies all tensors of an expert, and names the content of the destination.
    ///
    /// # Errors
    /// There is no such slot, it does not hold the expert, the layers differ in rows or row bytes (nothing was changed then); or the
    /// owner wrote the slot meanwhile.
    pub fn copy(&self, from: Place, dest: &mut WriteGuard, expert: ExpertId) -> Result<(), CommError> {
        self.copy_while(from, dest, expert, &|| ())
    }

    /// `meanwhile` runs between the copy and the last look at the tag: tests let the owner write there.
    fn copy_while(
        &self,
        from: Place,
        dest: &mut WriteGuard,
        expert: ExpertId,
        meanwhile: &dyn Fn(),
    ) -> Result<(), CommError> {
        let rank = self.extent.rank;
        let (layer, local) = self.slot(from)?;
        let tag = self.tag(layer, local);
        let before = tag.get();
        if before.0 != Content::Expert(expert) {
            let found = before.0.to_string();
            return Err(CommError::WrongContent { rank, place: from, found, expected: expert });
        }
        let view = |tensor: usize| self.view(layer, local, tensor);
        // SAFETY: the views lie in a mapping that lives while `self` is borrowed, in another memory than the destination's guard.
        // Another process may write the bytes meanwhile, against the order of the exchange; they are bytes whatever is read, and the
        // comparison below throws them away.
        unsafe { copy_views(self.layout.layer(layer), from, view, dest)? };
        meanwhile();
        // Ordering: the owner changes the tag before it writes (a release fence between), so a copy that read any byte of a later
        // write finds another tag behind this fence.
        fence(Ordering::Acquire);
        if tag.get() != before {
            let found = "its owner wrote it while it was read".into();
            return Err(CommError::Conflict { rank, place: from, wanted: "read", found });
        }
        dest.set_content(Content::Expert(expert));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use eplb_core::{SlotId, TensorLayout};

    use super::*;
    use crate::host::HostMemory;
    use crate::memory::Memory;

    const LAYER: LayerId = LayerId(1);

    fn layout(gap: usize) -> Arc<ModelLayout> {
        let rows = TensorLayout {
            name: "w".into(),
            rows: 3,
            row_bytes: 50,
            pitch: 50 + gap,
            slot_stride: 160 + 3 * gap,
        };
        Arc::new(ModelLayout::new(vec![vec![rows, TensorLayout::contiguous("scale", 7)]; 2]).unwrap())
    }

    fn pair() -> (Arc<HostMemory>, Arc<HostMemory>, Foreign) {
        let owner = HostMemory::shared(RankId(0), layout(0), 0..3, 640).unwrap();
        let reader = HostMemory::new(RankId(1), layout(6), 3..6, 640).unwrap();
        let foreign = open(&owner, owner.spots().unwrap().clone()).unwrap();
        (owner, reader, foreign)
    }

    fn open(owner: &HostMemory, spots: Spots) -> Result<Foreign, SegmentError> {
        let file = owner.segment().unwrap().file().try_clone_to_owned().unwrap();
        Foreign::open(RankId(0), owner.layout().clone(), 0..3, spots, file)
    }

    fn slot(slot: usize) -> Place {
        Place::slot(LAYER, SlotId::at(slot))
    }

    #[test]
    fn experts_arrive_and_are_named() {
        let (owner, reader, foreign) = pair();
        owner.fill(LAYER, SlotId(2), ExpertId(9)).unwrap();
        for to in [slot(4), Place::staged(LAYER, 16)] {
            let mut dest = reader.write(to).unwrap();
            foreign.copy(slot(2), &mut dest, ExpertId(9)).unwrap();
            drop(dest);
            assert_eq!(reader.read(to).unwrap().count_wrong(ExpertId(9)), 0, "{to}");
            assert_eq!(reader.content(to).unwrap().0, Content::Expert(ExpertId(9)));
        }
        // The memory lives while it is open here.
        drop(owner);
        foreign.copy(slot(2), &mut reader.write(slot(3)).unwrap(), ExpertId(9)).unwrap();
        assert_eq!(reader.count_wrong(LAYER, SlotId(3), ExpertId(9)), Ok(0));
    }

    #[test]
    fn what_is_not_there_is_not_read() {
        let (owner, reader, foreign) = pair();
        let mut dest = reader.write(slot(4)).unwrap();
        let error = foreign.copy(slot(2), &mut dest, ExpertId(9)).unwrap_err();
        assert!(matches!(error, CommError::WrongContent { rank: RankId(0), .. }), "{error}");
        owner.fill(LAYER, SlotId(2), ExpertId(8)).unwrap();
        assert!(foreign.copy(slot(2), &mut dest, ExpertId(9)).is_err());
        // Half written.
        owner.write(slot(2)).unwrap().rows_mut(0).next().unwrap()[0] = 1;
        assert!(foreign.copy(slot(2), &mut dest, ExpertId(8)).is_err());
        for place in [slot(3), Place::staged(LAYER, 0)] {
            let error = foreign.copy(place, &mut dest, ExpertId(8)).unwrap_err();
            assert!(matches!(error, CommError::NoSuchPlace { .. }), "{error}");
        }
        assert_eq!(dest.content().0, Content::Empty, "nothing was changed");
    }

    #[test]
    fn a_write_that_overtakes_a_copy_is_noticed() {
        let (owner, reader, foreign) = pair();
        owner.fill(LAYER, SlotId(2), ExpertId(9)).unwrap();
        let mut dest = reader.write(slot(4)).unwrap();
        let mut with = |meanwhile: &dyn Fn()| {
            let copied = foreign.copy_while(slot(2), &mut dest, ExpertId(9), meanwhile);
            (copied, dest.content().0)
        };
        // The same bytes again: they are right, but nobody knows that.
        let (again, content) = with(&|| owner.fill(LAYER, SlotId(2), ExpertId(9)).unwrap());
        assert!(matches!(again, Err(CommError::Conflict { rank: RankId(0), .. })), "{again:?}");
        assert_eq!(content, Content::Unknown);
        let (begun, content) = with(&|| {
            owner.write(slot(2)).unwrap().rows_mut(1).next().unwrap()[0] ^= 1;
        });
        assert!(matches!(begun, Err(CommError::Conflict { .. })) && content == Content::Unknown);
        owner.fill(LAYER, SlotId(2), ExpertId(9)).unwrap();
        // A write elsewhere does not matter.
        let (other, content) = with(&|| owner.fill(LAYER, SlotId(1), ExpertId(3)).unwrap());
        assert_eq!((other, content), (Ok(()), Content::Expert(ExpertId(9))));
    }

    #[test]
    fn memory_of_another_start_is_refused() {
        let (owner, ..) = pair();
        let spots = owner.spots().unwrap().clone();
        let again = HostMemory::shared(RankId(0), layout(0), 0..3, 640).unwrap();
        assert!(matches!(open(&again, spots.clone()), Err(SegmentError::Stale { .. })));
        let with = |change: fn(&mut Spots)| {
            let mut spots = spots.clone();
            change(&mut spots);
            open(&owner, spots).unwrap_err()
        };
        assert!(matches!(with(|spots| spots.bytes += 64), SegmentError::Size { .. }));
        assert!(matches!(with(|spots| spots.tags = spots.bytes - 8), SegmentError::Outside { .. }));
        assert!(matches!(with(|spots| spots.tags += 4), SegmentError::Outside { .. }));
        assert!(matches!(with(|spots| spots.blocks[1][0] = spots.bytes - 100), SegmentError::Outside { .. }));
        assert!(matches!(with(|spots| spots.blocks[0].truncate(1)), SegmentError::Outside { .. }));
        assert!(matches!(with(|spots| spots.blocks.truncate(1)), SegmentError::Outside { .. }));
    }
}
