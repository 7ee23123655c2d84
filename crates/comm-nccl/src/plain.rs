//! Sends with nothing around them, for benches: what NCCL gives between the pairs of a plan.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::{Group, PrefixStore};
use eplb_comm::{CommError, Memory, Place};
use eplb_core::{LayerId, ModelLayout, RankId, Transfer};
use eplb_cuda::{CudaStream, DeviceMemory, Events};
use nccl_rs::Comm;

use crate::connect::{Rendezvous, begin};
use crate::cut::{self, Limits};
use crate::error::{NcclCommError, foreign};
use crate::options::{Backend, Options};
use crate::peers::{Peers, hello};

/// A rank that sends and receives experts as fast as NCCL does it: no agreement, no packing, no commits.
#[derive(Debug)]
pub struct Sends {
    comm: Comm,
    memory: Arc<DeviceMemory>,
    peers: Peers,
    stream: Arc<CudaStream>,
    events: Arc<Events>,
    limits: Limits,
}

/// The tensor of a layer with the most bytes.
fn widest(layout: &ModelLayout, layer: LayerId) -> (usize, usize) {
    let tensors = layout.layer(layer).tensors().iter().map(|tensor| tensor.rows * tensor.row_bytes);
    tensors.enumerate().max_by_key(|&(number, bytes)| (bytes, std::cmp::Reverse(number))).unwrap_or((0, 0))
}

/// Whether what is gathered of an expert is no longer than its widest tensor, in every layer.
fn gathers(layout: &ModelLayout, below: usize) -> bool {
    (0..layout.layers()).map(LayerId::at).all(|layer| {
        let tensors = layout.layer(layer).tensors().iter().map(|tensor| tensor.rows * tensor.row_bytes);
        let gathered: usize =
            tensors.filter(|&bytes| bytes < below).map(|bytes| bytes + cut::PART_ALIGN).sum();
        gathered <= widest(layout, layer).1
    })
}

impl Sends {
    /// Makes a communicator for nothing else. Every rank calls it with the same rendezvous, of at least two ranks.
    ///
    /// # Errors
    /// As [`connect`](crate::connect()); and rows have gaps on some rank, which would have to be packed.
    pub fn connect(
        backend: Backend,
        memory: Arc<DeviceMemory>,
        rendezvous: &Rendezvous,
        options: &Options,
        deadline: Instant,
    ) -> Result<Self, NcclCommError> {
        let (rank, context) = (memory.rank(), memory.context().clone());
        let members: Vec<RankId> = (0..rendezvous.size).map(RankId::at).collect();
        let corner =
            PrefixStore::new(rendezvous.store.clone(), &format!("nccl-plain/{}/", rendezvous.epoch))?;
        let mut group = Group::new(Arc::new(corner), rendezvous.epoch, rank, &members)?;
        let told = group.all_gather("memory", &hello(&memory), deadline)?;
        let peers = Peers::read(memory.layout(), &told)?;
        if peers.any_gaps() {
            let reason = "rows with gaps are not sent plainly".into();
            return Err(NcclCommError::Peer { rank, reason });
        }
        let stream = CudaStream::new(&context, options.stream_priority)?;
        let events = Events::new(&context, 2)?;
        let _entered = context.enter()?;
        let comm = begin(backend, &mut group, &options.config, &context, deadline)?;
        let gather_below =
            if gathers(memory.layout(), options.gather_below) { options.gather_below } else { 0 };
        let limits = Limits { operations: options.operations.max(1), pack_bytes: usize::MAX, gather_below };
        Ok(Self { comm, memory, peers, stream, events, limits })
    }

    /// Carries as many bytes between the same ranks in as many messages as a wave of these transfers would, which are the same on all ranks;
    /// how long it took. Which bytes end up in the places of the transfers is left open: what would be gathered is taken from the widest
    /// tensor, and places may meet.
    ///
    /// # Errors
    /// NCCL or the device failed, or the deadline passed.
    pub fn carry(&mut self, transfers: &[Transfer], deadline: Instant) -> Result<Duration, NcclCommError> {
        let rank = self.memory.rank();
        let nccl = |error| foreign(error, rank);
        let groups = cut::groups(&self.peers, transfers, self.limits);
        let _entered = self.memory.context().enter()?;
        let library = self.comm.library().clone();
        let start = Instant::now();
        for messages in &groups {
            let group = nccl_rs::Group::start(&library)?;
            for message in messages {
                let transfer = &transfers[message.transfer];
                let place = match (transfer.source == rank, transfer.dest == rank) {
                    (true, _) => Place::source(transfer),
                    (false, true) => Place::landing(transfer),
                    (false, false) => continue,
                };
                // As long as all that is gathered, so it is long enough.
                let tensor = match message.packed {
                    true => widest(self.memory.layout(), transfer.layer).0,
                    false => message.parts[0].tensor,
                };
                let run = self.memory.rows(place, tensor)?;
                let stream = self.stream.as_raw();
                let sent = if transfer.source == rank {
                    // SAFETY: a place of this rank's memory, which lives, and so does the stream; which bytes others see in it
                    // meanwhile is left open, as said above. The wait below outlasts the operations, or aborts them.
                    unsafe { self.comm.send(&group, run.base, message.bytes, transfer.dest.index(), stream) }
                } else {
                    // SAFETY: as above.
                    unsafe {
                        self.comm.recv(&group, run.base, message.bytes, transfer.source.index(), stream)
                    }
                };
                sent.map_err(nccl)?;
            }
            group.end()?;
            self.comm.wait("plain sends", deadline)?;
        }
        let fence = self.events.record(&self.stream, rank)?.fence();
        while !fence.poll()? {
            if Instant::now() > deadline {
                let what = "plain sends".into();
                return Err(CommError::Timeout { rank, what, waited: start.elapsed() }.into());
            }
            std::hint::spin_loop();
        }
        Ok(start.elapsed())
    }
}
