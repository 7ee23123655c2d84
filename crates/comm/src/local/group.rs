//! A group of ranks in one process.

use std::sync::Arc;

use eplb_core::{CoreError, RankId};

use super::communicator::LocalCommunicator;
use super::pool::Pool;
use crate::error::CommError;
use crate::host::HostMemory;
use crate::memory::Memory;

/// Makes the communicators of ranks that share a process.
///
/// Each rank *pulls*: its `submit` enqueues the transfers whose destination it is, and threads of the group copy straight
/// from the source rank's memory. `copy_threads` threads (at least one) are started here. A group of one rank starts
/// them at its first wave that has a transfer, so that a single rank costs no thread. All of them end when the last
/// communicator is dropped.
#[derive(Debug)]
pub struct LocalGroup;

impl LocalGroup {
    /// One communicator per memory, in order of rank.
    ///
    /// # Errors
    /// `memories[r]` is not that of rank `r`, two ranks own one slot, the layouts differ in tensors, rows or row bytes
    /// (pitches and strides may differ), or the system gave no threads.
    #[allow(clippy::new_ret_no_self)] // There is nothing to hold: the communicators are the group.
    pub fn new(
        memories: Vec<Arc<HostMemory>>,
        copy_threads: usize,
    ) -> Result<Vec<LocalCommunicator>, CommError> {
        check(&memories)?;
        let ranks = memories.len();
        let pool = Arc::new(Pool::new(memories, copy_threads.max(1)));
        // Made first, so that their drop ends the threads if one of them cannot be started.
        let communicators: Vec<_> =
            (0..ranks).map(|rank| LocalCommunicator::new(pool.clone(), RankId::at(rank))).collect();
        if ranks > 1 {
            pool.start_threads()?;
        }
        Ok(communicators)
    }
}

fn check(memories: &[Arc<HostMemory>]) -> Result<(), CommError> {
    let fail = |reason: String| Err(CommError::Core(CoreError::Topology(reason)));
    for (rank, memory) in memories.iter().enumerate() {
        if memory.rank().index() != rank {
            return fail(format!(
                "memory {rank} of the group is that of {}; give them in order of rank",
                memory.rank()
            ));
        }
        if memory.layout().hash64() != memories[0].layout().hash64() {
            return fail(format!("rank {rank} has other tensors, rows or row bytes than rank 0"));
        }
    }
    let mut owned: Vec<_> =
        memories.iter().map(|m| (m.slots(), m.rank())).filter(|(slots, _)| !slots.is_empty()).collect();
    owned.sort_unstable_by_key(|(slots, _)| (slots.start, slots.end));
    match owned.windows(2).find(|pair| pair[1].0.start < pair[0].0.end) {
        Some(pair) => fail(format!(
            "{} owns slots {:?} and {} owns slots {:?}; a slot has one owner",
            pair[0].1, pair[0].0, pair[1].1, pair[1].0
        )),
        None => Ok(()),
    }
}
