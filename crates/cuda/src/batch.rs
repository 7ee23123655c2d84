//! Many copies of rows as one launch: those of a commit, and of a message that is gathered or scattered.

use std::sync::Arc;

use cudarc::driver::sys;
use eplb_comm::kernels::{RowCopy, number_units};
use eplb_core::RankId;

use crate::call::check;
use crate::copy::Rows;
use crate::error::CudaError;
use crate::event::{CudaFence, Events};
use crate::kernels::{DeviceList, Kernels};
use crate::pool::{DeviceBlock, PinnedBlock};
use crate::stream::CudaStream;

/// Most entries of a list: tensors of the slots of a commit.
pub(crate) const ENTRIES: usize = 4096;

/// Lists that may be on their way at a time.
const LISTS: usize = 4;

/// Lists of copies that travel to the device ahead of the launch that reads them, all taken at start-up. For one stream.
#[derive(Debug)]
pub struct RowCopies {
    kernels: Arc<Kernels>,
    lists: Vec<List>,
    next: usize,
}

#[derive(Debug)]
struct List {
    host: PinnedBlock,
    device: DeviceBlock,
    /// Behind the last launch that read it.
    read: Option<Arc<CudaFence>>,
}

impl RowCopies {
    /// Device memory that it takes.
    pub const DEVICE_BYTES: usize = LISTS * ENTRIES * RowCopy::BYTES;

    /// Takes memory for lists, on the host and on the device.
    ///
    /// # Errors
    /// There is no room.
    pub fn new(stream: &CudaStream, kernels: Arc<Kernels>) -> Result<Self, CudaError> {
        let context = stream.context();
        let bytes = ENTRIES * RowCopy::BYTES;
        let list = || -> Result<List, CudaError> {
            Ok(List {
                host: PinnedBlock::new(context, bytes)?,
                device: DeviceBlock::new(context, bytes)?,
                read: None,
            })
        };
        Ok(Self { kernels, lists: (0..LISTS).map(|_| list()).collect::<Result<_, _>>()?, next: 0 })
    }

    /// Enqueues copies as one launch; the fence behind it. `None`, with nothing enqueued: there are too many, or all lists are on their way. It never waits.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// As for [`CudaStream::copy`], for every pair; and no copy writes what another reads or writes.
    pub unsafe fn enqueue(
        &mut self,
        stream: &CudaStream,
        events: &Arc<Events>,
        rank: RankId,
        copies: &[(Rows, Rows)],
    ) -> Result<Option<Arc<CudaFence>>, CudaError> {
        let list = &mut self.lists[self.next];
        let is_read = match &list.read {
            Some(fence) => eplb_comm::FenceState::poll(&**fence)?,
            None => true,
        };
        if copies.len() > ENTRIES || !is_read {
            return Ok(None);
        }
        let mut entries: Vec<RowCopy> = copies.iter().map(|(from, to)| entry(*from, *to)).collect();
        let units = number_units(&mut entries);
        let bytes = entries.len() * RowCopy::BYTES;
        for (place, entry) in list.host.as_mut_slice().chunks_exact_mut(RowCopy::BYTES).zip(&entries) {
            place.copy_from_slice(&entry.to_bytes());
        }
        {
            let _entered = stream.context().enter()?;
            // SAFETY: both blocks are as large and live in `self`; the host does not write its one before the fence below has
            // passed, which is behind this copy.
            check("cuMemcpyHtoDAsync", unsafe {
                sys::cuMemcpyHtoDAsync_v2(list.device.base(), list.host.base().cast(), bytes, stream.raw())
            })?;
        }
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let rows = DeviceList { entries: list.device.base(), count, units };
        // SAFETY: the list is on the device before the launch by the order of the stream; the rest is passed on to the caller.
        let launched = unsafe { self.kernels.commit(stream, rows, 0, 0) };
        // Recorded whatever the launch said: the copy of the list is on its way.
        let fence = events.record(stream, rank)?;
        list.read = Some(fence.clone());
        self.next = (self.next + 1) % self.lists.len();
        launched.map(|()| Some(fence))
    }
}

/// One copy, as an entry of a list.
pub(crate) fn entry(from: Rows, to: Rows) -> RowCopy {
    let number = |n: usize| n as u64;
    if from.is_gapless() && to.is_gapless() {
        return RowCopy::run(from.base, to.base, number(from.bytes()));
    }
    RowCopy {
        source: from.base,
        dest: to.base,
        rows: number(from.rows),
        row_bytes: number(from.row_bytes),
        source_pitch: number(from.pitch),
        dest_pitch: number(to.pitch),
        first_unit: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_kept_and_runs_are_runs() {
        let gapless = Rows { base: 1000, rows: 3, row_bytes: 8, pitch: 8 };
        assert_eq!(entry(gapless, gapless.packed_at(5000)), RowCopy::run(1000, 5000, 24));
        let pitched = Rows { base: 1000, rows: 3, row_bytes: 8, pitch: 32 };
        let copy = entry(pitched, pitched.packed_at(5000));
        assert_eq!((copy.source_pitch, copy.dest_pitch, copy.rows, copy.bytes()), (32, 8, 3, 24));
    }
}
