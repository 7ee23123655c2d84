//! The streams on which pulls run.

use std::sync::Arc;

use eplb_comm::{CommError, Fence, Place};
use eplb_core::Transfer;
use eplb_cuda::{CudaError, CudaStream, DeviceMemory, Events};

use crate::options::Options;
use crate::pulls::Pulls;

/// Events made at start-up: as many waves are rarely open at a time.
const EVENTS: usize = 64;

/// Pulls into one rank's memory.
#[derive(Debug)]
pub(crate) struct Engine {
    memory: Arc<DeviceMemory>,
    /// Memory of each rank; it lives until every copy has run.
    sources: Vec<Arc<DeviceMemory>>,
    /// The first is for copies inside the rank, the others are divided over the sources.
    streams: Vec<Arc<CudaStream>>,
    events: Arc<Events>,
}

impl Engine {
    pub(crate) fn new(
        memory: Arc<DeviceMemory>,
        sources: Vec<Arc<DeviceMemory>>,
        options: &Options,
    ) -> Result<Self, CudaError> {
        let context = memory.context();
        let count = 1 + options.streams.clamp(1, sources.len().max(1));
        let streams = (0..count)
            .map(|_| CudaStream::new(context, options.stream_priority))
            .collect::<Result<Vec<_>, _>>()?;
        let events = Events::new(context, EVENTS.max(4 * count))?;
        Ok(Self { memory, sources, streams, events })
    }

    fn stream_of(&self, source: usize) -> usize {
        let me = self.memory.rank().index();
        if source == me { 0 } else { 1 + (source + self.sources.len() - me) % (self.streams.len() - 1) }
    }
}

impl Pulls for Engine {
    fn pull(&self, transfer: &Transfer) -> Result<(), CommError> {
        let (rank, source) = (self.memory.rank(), transfer.source.index());
        let stream = &self.streams[self.stream_of(source)];
        let (from, to) = (Place::source(transfer), Place::landing(transfer));
        for tensor in 0..eplb_comm::Memory::layout(&*self.memory).layer(transfer.layer).tensors().len() {
            let (from, to) = (self.sources[source].rows(from, tensor)?, self.memory.rows(to, tensor)?);
            // SAFETY: both places lie in memories that this object keeps until its streams are quiet; layouts of ranks are
            // alike in rows and row bytes (checked by `connect`). They are different places, which do not overlap. That
            // nobody writes the source, or uses the destination, meanwhile is the order of the caller.
            unsafe { stream.copy(from, to) }.map_err(|error| error.at(rank))?;
        }
        Ok(())
    }

    fn bytes(&self, transfer: &Transfer) -> u64 {
        eplb_comm::Memory::layout(&*self.memory).layer(transfer.layer).expert_bytes() as u64
    }

    fn fences(&self) -> Result<Vec<Fence>, CommError> {
        let rank = self.memory.rank();
        let record = |stream: &Arc<CudaStream>| {
            self.events
                .record(stream, rank)
                .map(|fence| fence.fence())
                .map_err(|error: CudaError| error.at(rank))
        };
        self.streams.iter().map(record).collect()
    }
}
