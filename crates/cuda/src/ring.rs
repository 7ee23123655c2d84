//! Counts of single passes on their way from the device to the host.

use std::collections::VecDeque;
use std::sync::Arc;

use eplb_comm::FenceState;
use eplb_core::RankId;

use crate::context::Context;
use crate::error::CudaError;
use crate::event::{CudaFence, Events};
use crate::pool::PinnedBlock;
use crate::stream::CudaStream;

/// A few blocks of pinned memory, each of which takes what one pass counted. Whoever enqueues never waits: without a free block the counts of a pass
/// are left out. `T` goes with them, such as the maps that they were counted under.
#[derive(Debug)]
pub struct Ring<T> {
    rank: RankId,
    events: Arc<Events>,
    free: Vec<PinnedBlock>,
    under_way: VecDeque<(PinnedBlock, Arc<CudaFence>, T)>,
}

/// What a pass counted, on the host; goes back to its ring when it was read.
#[derive(Debug)]
pub struct Arrived<T> {
    block: PinnedBlock,
    /// What went with it.
    pub of: T,
}

impl<T> Arrived<T> {
    /// The bytes that were copied, and whatever the block held behind them.
    pub fn bytes(&self) -> &[u8] {
        self.block.as_slice()
    }
}

impl<T> Ring<T> {
    /// `blocks` blocks of `bytes` bytes each. Takes memory: for start-up.
    ///
    /// # Errors
    /// The system has no room.
    pub fn new(context: &Arc<Context>, rank: RankId, blocks: usize, bytes: usize) -> Result<Self, CudaError> {
        let free = (0..blocks).map(|_| PinnedBlock::new(context, bytes)).collect::<Result<_, _>>()?;
        let events = Events::new(context, blocks)?;
        Ok(Self { rank, events, free, under_way: VecDeque::with_capacity(blocks) })
    }

    /// Enqueues a copy behind what the stream has to do. False: all blocks are under way, and nothing was enqueued.
    ///
    /// # Errors
    /// The driver refused, or more bytes than a block has.
    ///
    /// # Safety
    /// `from` is `bytes` bytes of memory of the stream's device, live and written by nothing that is not ordered with the copy until that has run.
    pub unsafe fn copy(
        &mut self,
        stream: &CudaStream,
        from: u64,
        bytes: usize,
        of: T,
    ) -> Result<bool, CudaError> {
        let Some(block) = self.free.pop() else { return Ok(false) };
        if bytes > block.bytes() {
            let most = block.bytes();
            self.free.push(block);
            return Err(CudaError::Address(format!("counts of {bytes} bytes: at most {most} have room")));
        }
        // SAFETY: the block is large enough, lies in `under_way` until its fence has passed, and is not read before; the rest is passed on.
        let enqueued = unsafe { stream.to_host(from, block.base(), bytes) };
        if let Err(error) = enqueued {
            self.free.push(block);
            return Err(error);
        }
        match self.events.record(stream, self.rank) {
            Ok(fence) => self.under_way.push_back((block, fence, of)),
            // When the copy ends cannot be known: the block is never freed.
            Err(error) => {
                std::mem::forget(block);
                return Err(error);
            }
        }
        Ok(true)
    }

    /// The oldest counts that have arrived and were not taken yet.
    ///
    /// # Errors
    /// A copy failed.
    pub fn take(&mut self) -> Result<Option<Arrived<T>>, CudaError> {
        // On different streams a later copy may arrive first.
        let mut found = None;
        for (at, (_, fence, _)) in self.under_way.iter().enumerate() {
            if fence.poll()? {
                found = Some(at);
                break;
            }
        }
        let taken = found.and_then(|at| self.under_way.remove(at));
        Ok(taken.map(|(block, _, of)| Arrived { block, of }))
    }

    /// Gives a block back.
    pub fn give_back(&mut self, arrived: Arrived<T>) {
        self.free.push(arrived.block);
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // The streams are the server's: their work is not waited for here, and blocks that it still writes are never freed.
        for (block, fence, _) in self.under_way.drain(..) {
            if !matches!(fence.poll(), Ok(true)) {
                std::mem::forget(block);
            }
        }
    }
}
