//! The `local` backend for ranks that are threads of one process and meet as processes do.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use eplb_comm::Communicator;
use eplb_comm::host::HostMemory;
use eplb_comm::local::{LocalCommunicator, LocalGroup};
use eplb_core::RankId;

use super::transport::{Meeting, Transport};
use crate::error::EngineError;

const NAME: &str = "local";

/// Makes `local` communicators for ranks that are threads of one process; all of them share one of these.
#[derive(Debug)]
pub struct LocalTransport {
    copy_threads: usize,
    meetings: Mutex<Meetings>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Meetings {
    came: BTreeMap<RankId, Arc<HostMemory>>,
    /// Made, and not taken yet.
    made: BTreeMap<RankId, LocalCommunicator>,
    failed: BTreeMap<RankId, String>,
}

impl LocalTransport {
    /// A meeting point. `copy_threads` threads copy bytes for each group of communicators.
    pub fn new(copy_threads: usize) -> Arc<Self> {
        Arc::new(Self { copy_threads, meetings: Mutex::default(), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Meetings> {
        // Nothing that is half done is left behind by a panic: the maps are changed by single calls.
        self.meetings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for LocalTransport {
    fn name(&self) -> &'static str {
        NAME
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        let Meeting { rank, world_size, memory, deadline, .. } = meeting;
        let mut meetings = self.lock();
        // What a meeting before left for this rank is of no use any more.
        meetings.made.remove(&rank);
        meetings.failed.remove(&rank);
        meetings.came.insert(rank, memory);
        if meetings.came.len() == world_size {
            let memories: Vec<_> = std::mem::take(&mut meetings.came).into_values().collect();
            match LocalGroup::new(memories, self.copy_threads) {
                Ok(group) => meetings.made = (0..).map(RankId).zip(group).collect(),
                Err(error) => {
                    meetings.failed =
                        (0..world_size).map(|rank| (RankId::at(rank), error.to_string())).collect();
                }
            }
            self.changed.notify_all();
        }
        loop {
            if let Some(mine) = meetings.made.remove(&rank) {
                return Ok(Box::new(mine));
            }
            let fail = |detail: String| Err(EngineError::Backend { backend: NAME, detail });
            if let Some(detail) = meetings.failed.remove(&rank) {
                return fail(detail);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                meetings.came.remove(&rank);
                return fail(format!("of {world_size} ranks not all came to make communicators in time"));
            }
            meetings = self.changed.wait_timeout(meetings, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
