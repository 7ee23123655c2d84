//! The maps of a layer set in device memory, at addresses that never change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys;
use eplb_comm::kernels::RowCopy;
use eplb_comm::{CommError, FenceState};
use eplb_core::RankId;

use crate::call::check;
use crate::context::Context;
use crate::error::CudaError;
use crate::event::{CudaFence, Events};
use crate::pool::DeviceBlock;
use crate::spare::{Spare, Spares};
use crate::stream::CudaStream;

/// Changes of maps that may be on their way at a time: five that a wave may need, as many of the wave before, and of an abort.
const SPARES: usize = 12;
/// Longest wait for a change to leave the device, when all are under way.
const PATIENCE: Duration = Duration::from_secs(10);
/// Every map begins at a multiple of this many bytes.
const ALIGN: usize = 256;

/// Shape of a layer set's maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapShape {
    /// `L`.
    pub layers: usize,
    /// `E`.
    pub experts: usize,
    /// `P`, over all ranks.
    pub slots: usize,
    /// `C`, most replicas of an expert.
    pub columns: usize,
}

/// Entries of the maps, in C order.
#[derive(Debug, Clone, Copy)]
pub struct MapEntries<'a> {
    /// `[L, P]`.
    pub phy2log: &'a [i32],
    /// `[L, P]`.
    pub share: &'a [f32],
    /// `[L, E]`.
    pub logcnt: &'a [i32],
    /// `[L, E, C]`.
    pub log2phy: &'a [i32],
}

/// Where the maps lie on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapAddresses {
    /// int32 `[L, P]`.
    pub phy2log: u64,
    /// float32 `[L, P]`.
    pub share: u64,
    /// int32 `[L, E]`.
    pub logcnt: u64,
    /// int32 `[L, E, C]`.
    pub log2phy: u64,
}

impl MapShape {
    /// Entries of each map, in the order in which they lie.
    fn entries(&self) -> [usize; 4] {
        let Self { layers, experts, slots, columns } = *self;
        [layers * slots, layers * slots, layers * experts, layers * experts * columns]
    }

    /// First byte of each map, and the bytes of all.
    fn offsets(&self) -> ([usize; 4], usize) {
        let (mut offsets, mut at) = ([0; 4], 0);
        for (offset, entries) in offsets.iter_mut().zip(self.entries()) {
            *offset = at;
            at += (entries * 4).next_multiple_of(ALIGN);
        }
        (offsets, at)
    }
}

/// The maps in force on a device, and those that will be, which travel there ahead of time. A change is one copy on the device, in the order of
/// the stream that it is asked of; so a pass finds all maps of one version, and a captured graph finds today's.
#[derive(Debug)]
pub struct MapBlock {
    shape: MapShape,
    rank: RankId,
    force: DeviceBlock,
    uploads: Arc<CudaStream>,
    events: Arc<Events>,
    spares: Spares,
}

/// Maps that are on the device, or on their way there, and not in force yet.
#[derive(Debug)]
pub struct Upload {
    /// Taken out of the pool; given back by the drop.
    spare: Option<Spare>,
    arrived: Arc<CudaFence>,
    block: Arc<MapBlock>,
}

impl MapBlock {
    /// Takes all the memory that maps will need, on the device and pinned, and puts the first ones in force; waits for that. For start-up.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(
        context: &Arc<Context>,
        rank: RankId,
        shape: MapShape,
        first: &MapEntries<'_>,
    ) -> Result<Arc<Self>, CudaError> {
        let (_, bytes) = shape.offsets();
        let block = Arc::new(Self {
            shape,
            rank,
            force: DeviceBlock::new(context, bytes)?,
            uploads: CudaStream::new(context, 0)?,
            events: Events::new(context, 2 * SPARES)?,
            spares: Spares::new(context, SPARES, bytes)?,
        });
        block.write(&block.uploads, first)?;
        block.uploads.settle()?;
        Ok(block)
    }

    /// Where the maps in force lie.
    pub fn addresses(&self) -> MapAddresses {
        let ([phy2log, share, logcnt, log2phy], _) = self.shape.offsets();
        let at = |offset: usize| self.force.base() + offset as u64;
        MapAddresses { phy2log: at(phy2log), share: at(share), logcnt: at(logcnt), log2phy: at(log2phy) }
    }

    /// Their shape.
    pub fn shape(&self) -> MapShape {
        self.shape
    }

    fn fill(&self, spare: &mut Spare, entries: &MapEntries<'_>) {
        let (offsets, _) = self.shape.offsets();
        let bytes = spare.host.as_mut_slice();
        let MapEntries { phy2log, share, logcnt, log2phy } = *entries;
        for (at, words) in [(offsets[0], phy2log), (offsets[2], logcnt), (offsets[3], log2phy)] {
            for (place, word) in bytes[at..].chunks_exact_mut(4).zip(words) {
                place.copy_from_slice(&word.to_ne_bytes());
            }
        }
        for (place, part) in bytes[offsets[1]..].chunks_exact_mut(4).zip(share) {
            place.copy_from_slice(&part.to_ne_bytes());
        }
    }

    /// Sends maps to the device ahead of time, on a stream of ours. `None`: there is no room for more at a time.
    ///
    /// # Errors
    /// The driver refused.
    pub fn upload(self: &Arc<Self>, entries: &MapEntries<'_>) -> Result<Option<Upload>, CudaError> {
        let Some(mut spare) = self.spares.take()? else { return Ok(None) };
        self.fill(&mut spare, entries);
        let sent = self.send(&spare, spare.device.base(), &self.uploads);
        let arrived = sent.and_then(|()| self.events.record(&self.uploads, self.rank));
        match arrived {
            Ok(arrived) => {
                spare.used = Some(arrived.clone());
                Ok(Some(Upload { spare: Some(spare), arrived, block: self.clone() }))
            }
            // Whether the copy was enqueued is not known: the spare is never freed.
            Err(error) => {
                std::mem::forget(spare);
                Err(error)
            }
        }
    }

    fn send(&self, spare: &Spare, to: u64, stream: &CudaStream) -> Result<(), CudaError> {
        // SAFETY: both blocks are of the size of the maps and live until the fence that the caller records behind this has passed; the
        // host writes neither before.
        unsafe { stream.to_device(spare.host.base(), to, spare.device.bytes()) }
    }

    /// Puts maps in force, in the order of `stream`: those that were sent ahead. The fence behind it.
    ///
    /// # Errors
    /// The driver refused.
    pub fn switch(&self, stream: &CudaStream, mut upload: Upload) -> Result<Arc<CudaFence>, CudaError> {
        upload.arrived.order(stream)?;
        let arrived = upload.arrived.clone();
        let Some(spare) = upload.spare.take() else { return Ok(arrived) };
        let copied = {
            let _entered = stream.context().enter()?;
            // SAFETY: both blocks are of one size and live until the fence below has passed; what was sent is there by the order above.
            check("cuMemcpyAsync", unsafe {
                sys::cuMemcpyAsync(self.force.base(), spare.device.base(), self.force.bytes(), stream.raw())
            })
        };
        let fence = self.give_back(spare, stream)?;
        copied.map(|()| fence)
    }

    /// Keeps a spare that work on `stream` uses until that has run.
    fn give_back(&self, mut spare: Spare, stream: &CudaStream) -> Result<Arc<CudaFence>, CudaError> {
        match self.events.record(stream, self.rank) {
            Ok(used) => {
                spare.used = Some(used.clone());
                self.spares.put(spare);
                Ok(used)
            }
            // When its use ends cannot be known: it is never freed.
            Err(error) => {
                std::mem::forget(spare);
                Err(error)
            }
        }
    }

    /// Puts maps in force, in the order of `stream`, that were not sent ahead; the fence behind it. Waits for room only where twelve changes are
    /// under way.
    ///
    /// # Errors
    /// The driver refused, or the device is stuck.
    pub fn write(&self, stream: &CudaStream, entries: &MapEntries<'_>) -> Result<Arc<CudaFence>, CudaError> {
        let start = Instant::now();
        let mut spare = loop {
            if let Some(spare) = self.spares.take()? {
                break spare;
            }
            if start.elapsed() > PATIENCE {
                let what = "an earlier change of maps on the device".into();
                return Err(CommError::Timeout { rank: self.rank, what, waited: start.elapsed() }.into());
            }
            std::thread::yield_now();
        };
        self.fill(&mut spare, entries);
        let sent = self.send(&spare, self.force.base(), stream);
        let fence = self.give_back(spare, stream)?;
        sent.map(|()| fence)
    }

    /// The stream on which what will be needed travels.
    pub(crate) fn uploads(&self) -> &Arc<CudaStream> {
        &self.uploads
    }

    /// Whose maps these are.
    pub(crate) fn rank(&self) -> RankId {
        self.rank
    }
}

impl Upload {
    /// Looks whether the maps have come, so that a step need not make its stream wait for them.
    ///
    /// # Errors
    /// The device is lost.
    pub fn look(&self) -> Result<bool, CudaError> {
        Ok(self.arrived.poll()?)
    }

    /// What is enqueued on `stream` from now on finds the maps on the device.
    pub(crate) fn order(&self, stream: &CudaStream) -> Result<(), CudaError> {
        self.arrived.order(stream)
    }

    /// What puts these maps in force: one copy, which may be part of a launch.
    pub(crate) fn copy(&self) -> Option<RowCopy> {
        let from = self.spare.as_ref()?.device.base();
        Some(RowCopy::run(from, self.block.force.base(), self.block.force.bytes() as u64))
    }

    /// What [`Upload::copy`] says was enqueued, and is over behind `used`.
    pub(crate) fn was_used(mut self, used: &Arc<CudaFence>) {
        if let Some(mut spare) = self.spare.take() {
            spare.used = Some(used.clone());
            self.block.spares.put(spare);
        }
    }

    /// Where they lie, to tell them from others.
    pub(crate) fn base(&self) -> u64 {
        self.spare.as_ref().map_or(0, |spare| spare.device.base())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(spare) = self.spare.take() {
            self.block.spares.put(spare);
        }
    }
}

impl Drop for MapBlock {
    fn drop(&mut self) {
        // The blocks go with this: what is on its way must have arrived. A device that is lost says so at once.
        self.spares.settle(self.rank, "the last change of maps", PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lie_apart_and_aligned() {
        let shape = MapShape { layers: 3, experts: 5, slots: 9, columns: 2 };
        let (offsets, bytes) = shape.offsets();
        assert_eq!((offsets, bytes), ([0, 256, 512, 768], 1024));
        let wide = MapShape { layers: 58, experts: 256, slots: 288, columns: 32 };
        let (offsets, bytes) = wide.offsets();
        for (at, entries) in wide.entries().into_iter().enumerate() {
            let end = offsets.get(at + 1).copied().unwrap_or(bytes);
            assert!(offsets[at] % ALIGN == 0 && offsets[at] + entries * 4 <= end);
        }
    }
}
