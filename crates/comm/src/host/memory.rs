//! Slots and staging of one rank in host memory.

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use eplb_core::{CoreError, LayerId, ModelLayout, RankId, TensorLayout};

use super::content::{Content, Generation};
use super::guards::{ReadGuard, WriteGuard};
use super::lock::SlotLock;
use super::plant::CopyFault;
use super::region::Region;
#[cfg(target_os = "linux")]
use super::shared::{Segment, Spots};
use super::staging::StagingBook;
use super::tags::Tags;
use crate::error::CommError;
use crate::memory::{Memory, Place};

/// One rank's slots of every layer and its staging, in host memory; shared by the rank, its stream and the threads
/// that copy for its peers. Nothing is copied on the way: a transfer goes from slot to slot or staging.
///
/// Every access goes through a guard of one [`Place`]: any number of readers or one writer. Guards never wait. An
/// access that is in the way of another is refused with [`CommError::Conflict`] and touches no byte; so a wave
/// whose order was broken, by a bug or by a fault planted in a test, ends in an error with a name and never in a data
/// race.
///
/// Ordering (happens-before): the bytes and the content of a place that a [`WriteGuard`] wrote happen-before every
/// guard of the place that is taken after it was dropped; what a [`ReadGuard`] read happens-before the next write
/// guard. For a slot the two sides are a release and an acquire of the slot's lock word, for staging the mutex around
/// the list of accesses. Different places share nothing and order nothing.
///
/// Each place also carries a tag: its [`Content`] and how often it was written. A copy checks at the source what it
/// was told to find there, and names the content at the destination only after the last byte; a copy that stops half
/// way leaves [`Content::Unknown`].
pub struct HostMemory {
    pub(super) rank: RankId,
    pub(super) layout: Arc<ModelLayout>,
    pub(super) slots: Range<usize>,
    /// `[layer][tensor]`, each all local slots of a tensor.
    pub(super) blocks: Arc<Vec<Vec<Region>>>,
    /// `[layer * local slots + local slot]`.
    pub(super) locks: Arc<Vec<SlotLock>>,
    /// As `locks`.
    pub(super) tags: Arc<Tags>,
    pub(super) staging: Arc<Region>,
    pub(super) staging_bytes: usize,
    /// Where other processes find all of it, if they can.
    #[cfg(target_os = "linux")]
    pub(super) shared: Option<Arc<(Arc<Segment>, Spots)>>,
    pub(super) book: Arc<Mutex<StagingBook>>,
    /// Planted by tests, see [`crate::fault`]; empty otherwise.
    pub(super) faults: Arc<Mutex<Vec<(Place, CopyFault)>>>,
    pub(super) any_fault: Arc<AtomicBool>,
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMemory")
            .field("rank", &self.rank)
            .field("layers", &self.layout.layers())
            .field("slots", &self.slots)
            .field("staging_bytes", &self.staging_bytes)
            .finish_non_exhaustive()
    }
}

/// Bytes that all local slots of a tensor span.
pub(super) fn block_bytes(layer: usize, tensor: &TensorLayout, slots: usize) -> Result<usize, CommError> {
    let Some(gaps) = slots.checked_sub(1) else { return Ok(0) };
    gaps.checked_mul(tensor.slot_stride)
        .and_then(|n| n.checked_add(tensor.slot_span()))
        .filter(|&n| n <= isize::MAX as usize)
        .ok_or_else(|| {
            CommError::Core(CoreError::Layout {
                layer: LayerId::at(layer),
                tensor: tensor.name.clone(),
                reason: format!("{slots} slots are larger than the address space"),
            })
        })
}

impl HostMemory {
    /// Zeroed memory of its own: `slots` (numbered over all ranks) of every layer, and staging. All slots are
    /// [`Content::Empty`].
    ///
    /// # Errors
    /// More bytes than there are.
    pub fn new(
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        staging_bytes: usize,
    ) -> Result<Arc<Self>, CommError> {
        let mut blocks = Vec::with_capacity(layout.layers());
        for layer in 0..layout.layers() {
            let tensors = layout.layer(LayerId::at(layer)).tensors();
            let block = |tensor: &TensorLayout| {
                let bytes = block_bytes(layer, tensor, slots.len())?;
                Region::allocate(bytes).ok_or_else(|| CommError::NoMemory {
                    rank,
                    what: format!("tensor {:?} of {}", tensor.name, LayerId::at(layer)),
                    bytes,
                })
            };
            blocks.push(tensors.iter().map(block).collect::<Result<_, _>>()?);
        }
        Self::assemble(rank, layout, slots, blocks, staging_bytes)
    }

    /// Memory whose slots lie in the server's own tensors: `bases[layer][tensor]` is the address of the first local
    /// slot. Staging is allocated here. All slots are [`Content::Unknown`] until [`HostMemory::declare`].
    ///
    /// # Errors
    /// `bases` has another shape than the layout, or there is no memory for staging.
    ///
    /// # Safety
    /// Until the last clone of the result, renumbered ones included, is dropped:
    /// - each address is valid for reads and writes of `(slots - 1) * slot_stride + slot_span` bytes of its tensor;
    /// - the blocks of different tensors and layers do not overlap, and no other memory is made over them;
    /// - whoever else uses these bytes keeps the order of the engine: it reads a slot only while the map in
    ///   force names it and no commit writes it, and never writes one.
    pub unsafe fn from_raw(
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        bases: &[Vec<NonNull<u8>>],
        staging_bytes: usize,
    ) -> Result<Arc<Self>, CommError> {
        let tensors = |layer: usize| layout.layer(LayerId::at(layer)).tensors();
        let expected: Vec<usize> = (0..layout.layers()).map(|layer| tensors(layer).len()).collect();
        let found: Vec<usize> = bases.iter().map(Vec::len).collect();
        if found != expected {
            let expected = format!("one address per tensor of each layer: {expected:?}");
            return Err(CoreError::Shape { what: "addresses", found, expected }.into());
        }
        let mut blocks = Vec::with_capacity(bases.len());
        for (layer, bases) in bases.iter().enumerate() {
            let mut block = Vec::with_capacity(bases.len());
            for (&base, tensor) in bases.iter().zip(tensors(layer)) {
                let bytes = block_bytes(layer, tensor, slots.len())?;
                // SAFETY: the caller keeps each address valid for the bytes of all local slots while this
                // memory, which owns the region, lives.
                block.push(unsafe { Region::borrow(base, bytes) });
            }
            blocks.push(block);
        }
        let memory = Self::assemble(rank, layout, slots, blocks, staging_bytes)?;
        memory.tags.iter().for_each(|tag| tag.set(Content::Unknown));
        Ok(memory)
    }

    /// As [`HostMemory::new`], in one piece of memory that other processes of the host can open ([`Foreign`](super::Foreign)).
    ///
    /// # Errors
    /// More bytes than there are, or the system shares no memory.
    #[cfg(target_os = "linux")]
    pub fn shared(
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        staging_bytes: usize,
    ) -> Result<Arc<Self>, CommError> {
        let foreign = |call: &str, code: i64, detail: String| CommError::Foreign {
            rank,
            call: call.into(),
            code,
            detail,
        };
        let mut drawn = [0; 16];
        getrandom::fill(&mut drawn).map_err(|error| foreign("getrandom", -1, error.to_string()))?;
        let nonce = u128::from_le_bytes(drawn);
        let nonce = [nonce as u64, (nonce >> 64) as u64];
        let spots = Spots::plan(rank, &layout, slots.len(), staging_bytes, nonce)?;
        let segment = Segment::create(&format!("eplb rank {}", rank.0), spots.bytes)
            .map_err(|error| foreign("memfd_create", i64::from(error.code()), error.to_string()))?;
        spots.mark(&segment);
        let segment = Arc::new(segment);
        let no_memory = || CommError::NoMemory {
            rank,
            what: "slots and staging in one piece".into(),
            bytes: spots.bytes,
        };
        let mut blocks = Vec::with_capacity(layout.layers());
        for (layer, offsets) in spots.blocks.iter().enumerate() {
            let tensors = layout.layer(LayerId::at(layer)).tensors();
            let mut block = Vec::with_capacity(offsets.len());
            for (&offset, tensor) in offsets.iter().zip(tensors) {
                let bytes = block_bytes(layer, tensor, slots.len())?;
                block.push(Region::part(&segment, offset, bytes).ok_or_else(no_memory)?);
            }
            blocks.push(block);
        }
        let staging = Region::part(&segment, spots.staging, staging_bytes).ok_or_else(no_memory)?;
        let count = layout.layers() * slots.len();
        let tags = Tags::shared(segment.clone(), &spots, count).ok_or_else(no_memory)?;
        let mut memory = Self::whole(rank, layout, slots, blocks, staging, staging_bytes, tags);
        memory.shared = Some(Arc::new((segment, spots)));
        Ok(Arc::new(memory))
    }

    /// What other processes open, if they can.
    #[cfg(target_os = "linux")]
    pub fn segment(&self) -> Option<&Segment> {
        self.shared.as_ref().map(|shared| shared.0.as_ref())
    }

    /// Where they find what in it.
    #[cfg(target_os = "linux")]
    pub fn spots(&self) -> Option<&Spots> {
        self.shared.as_ref().map(|shared| &shared.1)
    }

    fn assemble(
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        blocks: Vec<Vec<Region>>,
        staging_bytes: usize,
    ) -> Result<Arc<Self>, CommError> {
        let staging = Region::allocate(staging_bytes).ok_or(CommError::NoMemory {
            rank,
            what: "staging".into(),
            bytes: staging_bytes,
        })?;
        let tags = Tags::private(layout.layers() * slots.len());
        Ok(Arc::new(Self::whole(rank, layout, slots, blocks, staging, staging_bytes, tags)))
    }

    fn whole(
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        blocks: Vec<Vec<Region>>,
        staging: Region,
        staging_bytes: usize,
        tags: Tags,
    ) -> Self {
        let locks: Vec<SlotLock> =
            std::iter::repeat_with(SlotLock::new).take(layout.layers() * slots.len()).collect();
        Self {
            rank,
            layout,
            slots,
            blocks: Arc::new(blocks),
            locks: Arc::new(locks),
            tags: Arc::new(tags),
            staging: Arc::new(staging),
            staging_bytes,
            #[cfg(target_os = "linux")]
            shared: None,
            book: Arc::default(),
            faults: Arc::default(),
            any_fault: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Address of the first local slot of a tensor, for a server that uses memory made by [`HostMemory::new`]; the memory must
    /// outlive its use. Who reads or writes there keeps the order of the engine, as for [`HostMemory::from_raw`].
    pub fn address(&self, layer: LayerId, tensor: usize) -> Option<NonNull<u8>> {
        self.blocks.get(layer.index())?.get(tensor)?.at(0, 0)
    }

    /// The same memory under another number: as that of `rank`, whose first slot is `first_slot`. Addresses, contents and
    /// locks are shared with this one; nothing is copied. For a rank that gets another number when members change.
    pub fn renumbered(&self, rank: RankId, first_slot: usize) -> Arc<Self> {
        Arc::new(Self {
            rank,
            layout: self.layout.clone(),
            slots: first_slot..first_slot + self.slots.len(),
            blocks: self.blocks.clone(),
            locks: self.locks.clone(),
            tags: self.tags.clone(),
            staging: self.staging.clone(),
            staging_bytes: self.staging_bytes,
            #[cfg(target_os = "linux")]
            shared: self.shared.clone(),
            book: self.book.clone(),
            faults: self.faults.clone(),
            any_fault: self.any_fault.clone(),
        })
    }

    /// The rank that owns the memory.
    pub fn rank(&self) -> RankId {
        self.rank
    }

    /// Begins to read a place.
    ///
    /// # Errors
    /// There is no such place, or it is being written.
    pub fn read(self: &Arc<Self>, place: Place) -> Result<ReadGuard, CommError> {
        let site = self.resolve(place)?;
        let conflict = |found| CommError::Conflict { rank: self.rank, place, wanted: "read", found };
        self.enter_read(&site).map_err(conflict)?;
        Ok(ReadGuard::new(self.clone(), place, site))
    }

    /// Begins to write a place. Its content stays as it is until the first write through the guard.
    ///
    /// # Errors
    /// There is no such place, or it is being read or written.
    pub fn write(self: &Arc<Self>, place: Place) -> Result<WriteGuard, CommError> {
        let site = self.resolve(place)?;
        let conflict = |found| CommError::Conflict { rank: self.rank, place, wanted: "written", found };
        self.enter_write(&site).map_err(conflict)?;
        Ok(WriteGuard::new(self.clone(), place, site))
    }

    /// What a place holds and how often it was written, at some moment of the call. Exact for who holds a guard.
    ///
    /// # Errors
    /// There is no such place.
    pub fn content(&self, place: Place) -> Result<(Content, Generation), CommError> {
        Ok(self.content_at(&self.resolve(place)?))
    }

    /// States what a place holds, without writing bytes: after the host loaded weights by itself.
    ///
    /// # Errors
    /// There is no such place, or it is in use.
    pub fn declare(self: &Arc<Self>, place: Place, content: Content) -> Result<(), CommError> {
        let mut guard = self.write(place)?;
        guard.begin();
        guard.set_content(content);
        Ok(())
    }

    /// Checks that a place exists here.
    ///
    /// # Errors
    /// It does not; the reason says what there is.
    pub fn check(&self, place: Place) -> Result<(), CommError> {
        self.resolve(place).map(|_| ())
    }
}

impl Memory for HostMemory {
    fn layout(&self) -> &Arc<ModelLayout> {
        &self.layout
    }

    fn slots(&self) -> Range<usize> {
        self.slots.clone()
    }

    fn staging_bytes(&self) -> usize {
        self.staging_bytes
    }
}
