//! The streams on which pulls run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use eplb_comm::{CommError, Fence, Place};
use eplb_core::Transfer;
use eplb_cuda::{CudaError, CudaStream, DeviceMemory, Events};

use crate::options::Options;
use crate::order::{source_after_source, sources_in_turn};
use crate::pulls::{Pulled, Pulls};

/// Events of each queue made at start-up: as many waves are rarely open at a time.
const EVENTS: usize = 16;

/// Most streams: queues are told apart by the bits of a word.
const MOST: usize = 64;

/// A stream with events of its context.
#[derive(Debug)]
struct Queue {
    stream: Arc<CudaStream>,
    events: Arc<Events>,
}

/// Pulls into one rank's memory.
///
/// What crosses a link runs on a stream of the context that the source's memory belongs to. Memory opened from another process belongs to this
/// rank's own. Of ranks of one process it is the source's device, whose copy engines then carry the bytes: by two thirds faster than the receiver's
/// where all ranks pull from all. It is still the receiver that enqueues the copy and sees the event behind it, so that nothing else changes.
#[derive(Debug)]
pub(crate) struct Engine {
    memory: Arc<DeviceMemory>,
    /// Memory of each rank; it lives until every copy has run.
    sources: Vec<Arc<DeviceMemory>>,
    /// The first is for copies inside the rank. Where sources' copy engines carry the bytes, the others belong to the sources, as many to each, as
    /// far as they go round; else all sources share them.
    queues: Vec<Queue>,
    /// Whether sources have queues of their own.
    apart: bool,
    per_source: usize,
    /// Which queue of its source's, or of all, the next pull takes; by source, or at this rank's place.
    turns: Vec<AtomicUsize>,
}

impl Engine {
    pub(crate) fn new(
        memory: Arc<DeviceMemory>,
        sources: Vec<Arc<DeviceMemory>>,
        options: &Options,
    ) -> Result<Self, CudaError> {
        let (ranks, me) = (sources.len().max(1), memory.rank().index());
        let others = (ranks - 1).max(1);
        let per_source = options.streams.clamp(1, ((MOST - 1) / others).max(1));
        let apart = sources.iter().any(|source| !Arc::ptr_eq(source.context(), memory.context()));
        let count = if apart { (1 + per_source * others).min(MOST) } else { 1 + per_source };
        let queue = |number: usize| {
            let source =
                number.checked_sub(1).filter(|_| apart).map(|behind| (me + 1 + behind / per_source) % ranks);
            let context = source.map_or(memory.context(), |source| sources[source].context());
            let stream = CudaStream::new(context, options.stream_priority)?;
            Ok(Queue { stream, events: Events::new(context, EVENTS)? })
        };
        let queues = (0..count).map(queue).collect::<Result<Vec<_>, CudaError>>()?;
        let turns = sources.iter().map(|_| AtomicUsize::new(0)).collect();
        Ok(Self { memory, sources, queues, apart, per_source, turns })
    }

    /// The queue of the next pull from a source.
    fn queue_of(&self, source: usize) -> usize {
        let me = self.memory.rank().index();
        if source == me {
            return 0;
        }
        let turn = self.turns[if self.apart { source } else { me }].fetch_add(1, Ordering::Relaxed)
            % self.per_source;
        if !self.apart {
            return 1 + turn;
        }
        let other = (source + self.sources.len() - me) % self.sources.len() - 1;
        1 + (other * self.per_source + turn) % (self.queues.len() - 1)
    }
}

impl Pulls for Engine {
    fn begin(&self) {
        // A driver that refuses makes captures of the server fail while waves move, no more.
        let _ = eplb_cuda::keep_out_of_captures();
    }

    fn pull(&self, transfer: &Transfer, fenced: bool) -> Result<Pulled, CommError> {
        let (rank, source) = (self.memory.rank(), transfer.source.index());
        let number = self.queue_of(source);
        let queue = &self.queues[number];
        let stream = &queue.stream;
        let (from, to) = (Place::source(transfer), Place::landing(transfer));
        let layout = eplb_comm::Memory::layout(&*self.memory).layer(transfer.layer);
        let rows = |tensor| Ok((self.sources[source].rows(from, tensor)?, self.memory.rows(to, tensor)?));
        let copies = (0..layout.tensors().len()).map(rows).collect::<Result<Vec<_>, CommError>>()?;
        // SAFETY: all places lie in memories that this object keeps until its streams are quiet; layouts of ranks are alike in rows and row bytes
        // (checked by `connect`). They are different places, which do not overlap. That nobody writes the source, or uses the destination,
        // meanwhile is the order of the caller.
        unsafe { stream.copy_together(&copies) }.map_err(|error| error.at(rank))?;
        let behind = fenced.then(|| queue.events.record(stream, rank)).transpose();
        let behind = behind.map_err(|error| error.at(rank))?.map(|fence| fence.fence());
        Ok(Pulled { queue: number, behind })
    }

    fn arrange(&self, pulls: Vec<Transfer>) -> Vec<Transfer> {
        let (me, ranks) = (self.memory.rank().index(), self.sources.len());
        if self.apart { sources_in_turn(pulls, me, ranks) } else { source_after_source(pulls, me, ranks) }
    }

    fn bytes(&self, transfer: &Transfer) -> u64 {
        eplb_comm::Memory::layout(&*self.memory).layer(transfer.layer).expert_bytes() as u64
    }

    fn fences(&self, queues: u64) -> Result<Vec<Fence>, CommError> {
        let rank = self.memory.rank();
        let record = |queue: &Queue| {
            let recorded = queue.events.record(&queue.stream, rank);
            recorded.map(|fence| fence.fence()).map_err(|error: CudaError| error.at(rank))
        };
        let wanted = self.queues.iter().enumerate().filter(|(number, _)| queues >> number & 1 == 1);
        wanted.map(|(_, queue)| record(queue)).collect()
    }
}
