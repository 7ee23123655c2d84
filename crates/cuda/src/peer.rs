//! Copies between the devices of one process.

use std::sync::Arc;
use std::time::Instant;

use eplb_comm::{CommError, Memory, Place};

use crate::context::Context;
use crate::error::CudaError;
use crate::event::Events;
use crate::memory::DeviceMemory;
use crate::stream::CudaStream;

/// Pulls experts from the memory of other devices of this process into one rank's, over streams of its own per source, so that
/// all links are busy at once: what they give with nothing around them. Contexts must have been let reach each other ([`crate::Probe::contexts`]).
#[derive(Debug)]
pub struct Puller {
    memory: Arc<DeviceMemory>,
    /// By rank; they live until every copy has run.
    sources: Vec<Arc<DeviceMemory>>,
    /// As many for each source: those of this rank's context, and those of the contexts that the sources' memory belongs to.
    queues: [Vec<Queue>; 2],
    per_source: usize,
    /// Of the streams of each source, how many are used, which kind of them, and which is next.
    used: usize,
    at_source: bool,
    /// One of this rank's streams for all sources.
    alone: bool,
    /// The tensors of an expert in one batch.
    together: bool,
    next: usize,
}

/// A stream with events of its context.
#[derive(Debug)]
struct Queue {
    stream: Arc<CudaStream>,
    events: Arc<Events>,
}

impl Queue {
    fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        Ok(Self { stream: CudaStream::new(context, 0)?, events: Events::new(context, 1)? })
    }
}

impl Puller {
    /// Pulls into `memory` from any of `sources`, which are ordered by rank, over `per_source` streams from each.
    ///
    /// # Errors
    /// No stream or event.
    pub fn new(
        memory: Arc<DeviceMemory>,
        sources: Vec<Arc<DeviceMemory>>,
        per_source: usize,
    ) -> Result<Self, CudaError> {
        let per_source = per_source.max(1);
        let queues = |at_source: bool| {
            let of = |source: &Arc<DeviceMemory>| {
                let context = if at_source { source.context() } else { memory.context() };
                (0..per_source).map(|_| Queue::new(context)).collect::<Result<Vec<_>, _>>()
            };
            sources.iter().map(of).collect::<Result<Vec<_>, _>>().map(|queues| queues.into_iter().flatten())
        };
        let queues = [queues(false)?.collect(), queues(true)?.collect()];
        Ok(Self {
            memory,
            sources,
            queues,
            per_source,
            used: per_source,
            at_source: false,
            alone: false,
            together: false,
            next: 0,
        })
    }

    /// Streams of each source.
    pub fn per_source(&self) -> usize {
        self.per_source
    }

    /// Uses so many of the streams of each source from now on; at least one, and no more than there are. `at_source`: those of the context that
    /// its memory belongs to, so that in one process the source's copy engines carry the bytes.
    pub fn use_streams(&mut self, per_source: usize, at_source: bool) {
        (self.used, self.at_source, self.alone) = (per_source.clamp(1, self.per_source), at_source, false);
    }

    /// Uses one stream of this rank's context for all sources from now on.
    pub fn use_one_stream(&mut self) {
        (self.used, self.at_source, self.alone) = (1, false, true);
    }

    /// Whether the tensors of an expert are copied as one batch from now on, where the driver makes batches.
    pub fn use_batches(&mut self, together: bool) {
        self.together = together;
    }

    /// Ranks whose memory it reaches.
    pub fn ranks(&self) -> usize {
        self.sources.len()
    }

    /// The memory that it pulls into.
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// Enqueues the copy of one expert from a place of rank `source`.
    ///
    /// # Errors
    /// There is no such rank or place, the places differ in shape, or the driver refused.
    pub fn pull(&mut self, source: usize, from: Place, to: Place) -> Result<(), CommError> {
        let rank = self.memory.rank();
        let Some(memory) = self.sources.get(source) else {
            let reason = format!("there are ranks 0..{}", self.sources.len());
            return Err(CommError::NoSuchPlace { rank: eplb_core::RankId::at(source), place: from, reason });
        };
        let (Place::Slot { layer, .. } | Place::Staging { layer, .. }) = to;
        self.memory.extent().locate(self.memory.layout(), to)?;
        let number = if self.alone { 0 } else { source * self.per_source + self.next % self.used };
        let stream = &self.queues[usize::from(self.at_source)][number].stream;
        self.next = self.next.wrapping_add(1);
        let mut copies = Vec::new();
        for tensor in 0..self.memory.layout().layer(layer).tensors().len() {
            let (from, to) = (memory.rows(from, tensor)?, self.memory.rows(to, tensor)?);
            if (from.rows, from.row_bytes) != (to.rows, to.row_bytes) {
                let reason = "its tensors have another shape there".into();
                return Err(CommError::NoSuchPlace {
                    rank,
                    place: Place::slot(layer, Default::default()),
                    reason,
                });
            }
            copies.push((from, to));
        }
        for copies in copies.chunks(if self.together { copies.len().max(1) } else { 1 }) {
            // SAFETY: both places lie in memories that this object keeps alive until it has waited for its streams, and
            // have one shape. They belong to different ranks or are different places, so they do not overlap.
            unsafe { stream.copy_together(copies) }.map_err(|error| error.at(rank))?;
        }
        Ok(())
    }

    /// Waits until all copies have run.
    ///
    /// # Errors
    /// One failed, or the deadline passed.
    pub fn finish(&mut self, deadline: Instant) -> Result<(), CommError> {
        let rank = self.memory.rank();
        // All are recorded before the first is waited for; an error leaves the rest to the drop.
        let record = |queue: &Queue| queue.events.record(&queue.stream, rank).map_err(|error| error.at(rank));
        let fences = self.queues.iter().flatten().map(record).collect::<Result<Vec<_>, _>>()?;
        fences.into_iter().try_for_each(|fence| fence.fence().wait(rank, "copies between devices", deadline))
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        // The memories must outlive the copies. A device that is lost says so at once.
        for queue in self.queues.iter().flatten() {
            let _ = queue.stream.settle();
        }
    }
}
