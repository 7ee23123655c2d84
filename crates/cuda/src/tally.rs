//! Sums of what the router chose, kept on the device.

use std::sync::Arc;

use eplb_comm::FenceState;
use eplb_core::RankId;

use crate::context::Context;
use crate::error::CudaError;
use crate::event::{CudaFence, Events};
use crate::kernels::{DeviceChoices, DeviceCounts, DeviceMaps, IdType, Kernels};
use crate::pool::{DeviceBlock, PinnedBlock};
use crate::stream::CudaStream;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TallyShape {
    /// Kinds of passes.
    pub tags: usize,
    /// `L`.
    pub layers: usize,
    /// `E`.
    pub experts: usize,
}

impl TallyShape {
    fn sums(&self) -> usize {
        self.tags * self.layers * self.experts
    }
}

/// Sums at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tallied {
    /// `[tags, L, E]`, in C order.
    pub sums: Vec<u64>,
    /// Ids out of range, choices of a slot that holds nothing.
    pub faults: [u64; 2],
}

/// Where the sums lie on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TallyAddresses {
    /// uint64 `[tags, L, E]`; they only grow.
    pub loads: u64,
    /// uint64 `[2]`: ids out of range, choices of a slot that holds nothing.
    pub faults: u64,
    /// An int32: the tag of passes that name none, 0 at first. Whoever launches writes it in the order of the stream.
    pub tag: u64,
}

/// Sums of choices on a device. Passes add to them there; now and then all are copied to the host, by a stream of ours that waits for no pass: as
/// they only grow, any moment will do.
#[derive(Debug)]
pub struct Tally {
    rank: RankId,
    shape: TallyShape,
    /// The sums, and behind them the faults.
    sums: DeviceBlock,
    /// The server's tag, and behind it every tag by its number.
    tags: DeviceBlock,
    host: PinnedBlock,
    stream: Arc<CudaStream>,
    events: Arc<Events>,
    copied: Option<Arc<CudaFence>>,
}

impl Tally {
    /// All sums 0. Takes memory and waits for the device: for start-up.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(context: &Arc<Context>, rank: RankId, shape: TallyShape) -> Result<Self, CudaError> {
        let bytes = 8 * (shape.sums() + 2);
        let words = 4 * (1 + shape.tags);
        let tally = Self {
            rank,
            shape,
            sums: DeviceBlock::new(context, bytes)?,
            tags: DeviceBlock::new(context, words)?,
            host: PinnedBlock::new(context, bytes)?,
            stream: CudaStream::new(context, 0)?,
            events: Events::new(context, 4)?,
            copied: None,
        };
        let mut start = PinnedBlock::new(context, words)?;
        for (tag, word) in start.as_mut_slice()[4..words].chunks_exact_mut(4).enumerate() {
            word.copy_from_slice(&(tag as i32).to_ne_bytes());
        }
        // SAFETY: all blocks live until `settle` has waited for the copies; pinned memory is zeroed when it is taken.
        unsafe {
            tally.stream.to_device(tally.host.base(), tally.sums.base(), bytes)?;
            tally.stream.to_device(start.base(), tally.tags.base(), words)?;
        }
        tally.stream.settle()?;
        Ok(tally)
    }

    /// Where the sums lie.
    pub fn addresses(&self) -> TallyAddresses {
        let loads = self.sums.base();
        TallyAddresses { loads, faults: loads + 8 * self.shape.sums() as u64, tag: self.tags.base() }
    }

    /// Their shape.
    pub fn shape(&self) -> TallyShape {
        self.shape
    }

    /// Enqueues the counting of choices in a layer, of passes of kind `tag`. With a map (`phy2log` of the layer on the device, and its slots) ids are
    /// slots. One launch; may be captured.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Panics
    /// A layer or tag that there is not.
    ///
    /// # Safety
    /// As for [`Kernels::record`].
    pub unsafe fn record(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        (layer, tag): (usize, usize),
        (kind, choices): (IdType, &DeviceChoices),
        map: Option<(u64, u32)>,
    ) -> Result<(), CudaError> {
        let counts = self.counts((layer, tag), map);
        // SAFETY: the sums are as large as `counts` says and live as long as this; the rest is passed on to the caller.
        unsafe { kernels.record(stream, kind, choices, &counts) }
    }

    /// As [`Tally::record`], for choices of experts that become slots in the same launch. Without a tag nothing is counted.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Panics
    /// A layer or tag that there is not.
    ///
    /// # Safety
    /// As for [`Kernels::dispatch`].
    pub unsafe fn dispatch(
        &self,
        kernels: &Kernels,
        stream: &CudaStream,
        (layer, tag): (usize, Option<usize>),
        (kind, choices): (IdType, &DeviceChoices),
        maps: &DeviceMaps,
    ) -> Result<(), CudaError> {
        let mut counts = self.counts((layer, tag.unwrap_or(0)), None);
        if tag.is_none() {
            counts.loads = 0;
        }
        // SAFETY: as in `record`.
        unsafe { kernels.dispatch(stream, kind, choices, &counts, maps) }
    }

    /// Where the choices of a layer are counted; with a map they are of slots.
    fn counts(&self, (layer, tag): (usize, usize), map: Option<(u64, u32)>) -> DeviceCounts {
        let TallyShape { tags, layers, experts } = self.shape;
        assert!(layer < layers && tag < tags, "layer {layer} of {layers}, tag {tag} of {tags}");
        let addresses = self.addresses();
        let (phy2log, slots) = map.unwrap_or_default();
        DeviceCounts {
            loads: addresses.loads + 8 * (layer * experts) as u64,
            tag_stride: (layers * experts) as u64,
            tag: addresses.tag + 4 * (1 + tag) as u64,
            faults: addresses.faults,
            phy2log,
            tags: tags as u32,
            experts: experts as u32,
            slots,
            unused: 0,
        }
    }

    /// Begins to copy the sums to the host, unless that is under way.
    ///
    /// # Errors
    /// The driver refused.
    pub fn begin_copy(&mut self) -> Result<(), CudaError> {
        if self.copied.is_none() {
            // SAFETY: both blocks are of one size and live as long as this, which waits for the copy in its drop; the host reads its one only
            // behind the fence.
            unsafe { self.stream.to_host(self.sums.base(), self.host.base(), self.sums.bytes()) }?;
            self.copied = Some(self.events.record(&self.stream, self.rank)?);
        }
        Ok(())
    }

    /// What the last copy brought, once when it has arrived.
    ///
    /// # Errors
    /// The copy failed.
    pub fn take_copy(&mut self) -> Result<Option<Tallied>, CudaError> {
        let Some(copied) = &self.copied else { return Ok(None) };
        if !copied.poll()? {
            return Ok(None);
        }
        self.copied = None;
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let mut sums: Vec<u64> = self.host.as_slice().chunks_exact(8).map(number).collect();
        let faults = sums.split_off(self.shape.sums());
        Ok(Some(Tallied { sums, faults: [faults[0], faults[1]] }))
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        // A device that is lost says so at once.
        let _ = self.stream.settle();
    }
}
