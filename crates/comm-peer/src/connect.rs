//! Making the communicators of ranks that are threads of one process.

use std::sync::Arc;

use eplb_comm::{CommError, Memory};
use eplb_core::RankId;
use eplb_cuda::DeviceMemory;

use crate::communicator::{PeerCommunicator, extent};
use crate::engine::Engine;
use crate::options::Options;
use crate::shared::Shared;
use crate::words::{Own, Words};

/// Communicators for ranks of one process, one per memory and in their order; each is then driven by a thread of its own.
/// The memories' contexts must have been let reach each other ([`eplb_cuda::Probe::contexts`]).
///
/// # Errors
/// Memories that are not ordered by rank or whose layouts differ; no stream, event or thread.
pub fn connect(
    memories: &[Arc<DeviceMemory>],
    options: &Options,
) -> Result<Vec<PeerCommunicator>, CommError> {
    let words = Words::new(memories.len());
    let extents: Vec<_> = memories.iter().map(|memory| extent(memory)).collect();
    let mut made = Vec::new();
    for (at, memory) in memories.iter().enumerate() {
        let rank = RankId::at(at);
        let foreign =
            |call: &str, detail: String| CommError::Foreign { rank, call: call.into(), code: -1, detail };
        let (ours, theirs) = (memories[0].layout().hash64(), memory.layout().hash64());
        if memory.rank() != rank || ours != theirs {
            return Err(foreign(
                "connecting peers",
                format!(
                    "memory {at} belongs to {} with layout {theirs:016x}; expected {rank} with layout {ours:016x}: give the \
                     memories in the order of their ranks, with the same tensors on each",
                    memory.rank()
                ),
            ));
        }
        let engine =
            Engine::new(memory.clone(), memories.to_vec(), options).map_err(|error| error.at(rank))?;
        let words = Own { words: words.clone(), rank: at };
        let shared = Shared::new(rank, Box::new(engine), Box::new(words), options.manner(memories.len()));
        made.push(PeerCommunicator::start("peer", rank, memory.layout().clone(), extents.clone(), shared)?);
    }
    Ok(made)
}
