//! Commits that are laid out on the device before their step comes: the step makes one launch of the copies and of the change of maps.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys;
use eplb_comm::FenceState;
use eplb_comm::kernels::{RowCopy, number_units};
use eplb_core::SlotCommit;

use crate::batch::{ENTRIES, entry};
use crate::call::check;
use crate::compute::copies;
use crate::error::CudaError;
use crate::event::{CudaFence, Events};
use crate::kernels::{DeviceList, Kernels};
use crate::maps::{MapBlock, Upload};
use crate::memory::DeviceMemory;
use crate::spare::{Spare, Spares};
use crate::stream::CudaStream;

/// Commits that may be laid out, or launched and not over, at a time.
const LISTS: usize = 6;
/// Longest wait for the last launch when all ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Room for the lists of commits to come, all taken at start-up.
#[derive(Debug)]
pub struct CommitLists {
    kernels: Arc<Kernels>,
    block: Arc<MapBlock>,
    events: Arc<Events>,
    spares: Spares,
}

/// A commit that is on the device, or on its way there: copies of slots, and for each map that may be put in force with it the same copies and
/// that of the map.
#[derive(Debug)]
pub struct CommitList {
    commits: Vec<SlotCommit>,
    lists: Arc<CommitLists>,
    /// Taken out of the pool; given back by the drop.
    spare: Option<Spare>,
    arrived: Arc<CudaFence>,
    plain: DeviceList,
    /// By where the maps lie that were sent ahead.
    with_maps: Vec<(u64, DeviceList)>,
}

impl CommitLists {
    /// Takes memory for lists, on the host and on the device.
    ///
    /// # Errors
    /// There is no room.
    pub fn new(
        memory: &DeviceMemory,
        block: &Arc<MapBlock>,
        kernels: Arc<Kernels>,
    ) -> Result<Arc<Self>, CudaError> {
        let context = memory.context();
        let spares = Spares::new(context, LISTS, ENTRIES * RowCopy::BYTES)?;
        let events = Events::new(context, 2 * LISTS)?;
        Ok(Arc::new(Self { kernels, block: block.clone(), events, spares }))
    }

    /// Sends a commit ahead, with the maps that may be put in force together with it. `None`: it is too large, its copies have an order
    /// among themselves, or there is no room for more at a time; then it is made when it is due.
    ///
    /// # Errors
    /// A place that does not exist, or the driver refused.
    pub fn lay_out(
        self: &Arc<Self>,
        memory: &DeviceMemory,
        commits: Vec<SlotCommit>,
        maps: &[&Upload],
    ) -> Result<Option<CommitList>, CudaError> {
        let (copies, apart) = copies(memory, &commits)?;
        let maps: Vec<(u64, RowCopy)> =
            maps.iter().filter_map(|upload| Some((upload.base(), upload.copy()?))).collect();
        if !apart || (copies.len() + 1) * (maps.len() + 1) > ENTRIES {
            return Ok(None);
        }
        let Some(mut spare) = self.spares.take()? else { return Ok(None) };
        let slots: Vec<RowCopy> = copies.into_iter().map(|(from, to)| entry(from, to)).collect();
        let mut bytes = 0;
        let mut write = |map: Option<RowCopy>| {
            let mut entries = slots.clone();
            entries.extend(map);
            let units = number_units(&mut entries);
            let list = DeviceList {
                entries: spare.device.base() + bytes as u64,
                count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
                units,
            };
            let places = spare.host.as_mut_slice()[bytes..].chunks_exact_mut(RowCopy::BYTES);
            for (place, entry) in places.zip(&entries) {
                place.copy_from_slice(&entry.to_bytes());
            }
            bytes += entries.len() * RowCopy::BYTES;
            list
        };
        let plain = write(None);
        let with_maps = maps.into_iter().map(|(base, map)| (base, write(Some(map)))).collect();
        match self.send(&spare, bytes) {
            Ok(arrived) => {
                spare.used = Some(arrived.clone());
                let (lists, spare) = (self.clone(), Some(spare));
                Ok(Some(CommitList { commits, lists, spare, arrived, plain, with_maps }))
            }
            // Whether the copy was enqueued is not known: the spare is never freed.
            Err(error) => {
                std::mem::forget(spare);
                Err(error)
            }
        }
    }

    /// Behind the maps that were sent ahead before.
    fn send(&self, spare: &Spare, bytes: usize) -> Result<Arc<CudaFence>, CudaError> {
        let uploads = self.block.uploads();
        if bytes > 0 {
            let _entered = uploads.context().enter()?;
            // SAFETY: both blocks are as large and live until the fence below has passed; the host writes its one no more before.
            check("cuMemcpyHtoDAsync", unsafe {
                sys::cuMemcpyHtoDAsync_v2(spare.device.base(), spare.host.base().cast(), bytes, uploads.raw())
            })?;
        }
        self.events.record(uploads, self.block.rank())
    }
}

impl CommitList {
    /// Whether these are the commits that were laid out.
    pub fn is_of(&self, commits: &[SlotCommit]) -> bool {
        self.commits == commits
    }

    /// Looks whether it has come, so that a step need not make its stream wait for it.
    ///
    /// # Errors
    /// The device is lost.
    pub fn look(&self) -> Result<bool, CudaError> {
        Ok(self.arrived.poll()?)
    }

    /// Whether maps that were sent ahead can be put in force by the same launch.
    pub(crate) fn has(&self, upload: &Upload) -> bool {
        self.with_maps.iter().any(|&(base, _)| base == upload.base())
    }

    /// Enqueues the copies, and the change to `upload`, if it is one of those that were laid out; the fence behind it.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// As for [`CudaStream::copy`](crate::CudaStream::copy), for every copy of the commits; nobody reads the maps in force meanwhile.
    pub(crate) unsafe fn launch(
        mut self,
        stream: &CudaStream,
        upload: Option<Upload>,
    ) -> Result<Arc<CudaFence>, CudaError> {
        self.arrived.order(stream)?;
        if let Some(upload) = &upload {
            upload.order(stream)?;
        }
        let with = upload.as_ref().and_then(|upload| {
            self.with_maps.iter().find_map(|&(base, list)| (base == upload.base()).then_some(list))
        });
        let lists = self.lists.clone();
        // SAFETY: the list is on the device by the order above; the maps that it names are held by `upload` and their block until the fence
        // below has passed; the rest is passed on to the caller.
        let launched = unsafe { lists.kernels.commit(stream, with.unwrap_or(self.plain), 0, 0) };
        let spare = self.spare.take();
        match lists.events.record(stream, lists.block.rank()) {
            Ok(fence) => {
                if let Some(mut spare) = spare {
                    spare.used = Some(fence.clone());
                    lists.spares.put(spare);
                }
                if let Some(upload) = upload {
                    upload.was_used(&fence);
                }
                launched.map(|()| fence)
            }
            // When its use ends cannot be known: neither is ever freed.
            Err(error) => {
                std::mem::forget(spare);
                std::mem::forget(upload);
                Err(error)
            }
        }
    }
}

impl Drop for CommitList {
    fn drop(&mut self) {
        if let Some(spare) = self.spare.take() {
            self.lists.spares.put(spare);
        }
    }
}

impl Drop for CommitLists {
    fn drop(&mut self) {
        // The blocks go with this: what is on its way must have arrived, and what reads it must be over.
        self.spares.settle(self.block.rank(), "the last commit", PATIENCE);
    }
}
