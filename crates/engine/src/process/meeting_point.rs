//! Where ranks that are threads of one process come together to make communicators.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use eplb_core::RankId;

/// Ranks bring an `M` each, and take a `C` each that was made of all of them.
#[derive(Debug)]
pub(super) struct MeetingPoint<M, C> {
    meetings: Mutex<Meetings<M, C>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Meetings<M, C> {
    came: BTreeMap<RankId, M>,
    /// Made, and not taken yet.
    made: BTreeMap<RankId, C>,
    failed: BTreeMap<RankId, String>,
}

impl<M, C> MeetingPoint<M, C> {
    pub(super) fn new() -> Self {
        let meetings = Meetings { came: BTreeMap::new(), made: BTreeMap::new(), failed: BTreeMap::new() };
        Self { meetings: Mutex::new(meetings), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Meetings<M, C>> {
        // Nothing that is half done is left behind by a panic: the maps are changed by single calls.
        self.meetings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings what a rank has; the last of `world_size` ranks has `make` work on all, in the order of the ranks. What was made for this rank, or
    /// why there is nothing.
    pub(super) fn meet(
        &self,
        (rank, world_size): (RankId, usize),
        mine: M,
        deadline: Instant,
        make: impl FnOnce(Vec<M>) -> Result<Vec<C>, String>,
    ) -> Result<C, String> {
        let mut meetings = self.lock();
        // What a meeting before left for this rank is of no use any more.
        meetings.made.remove(&rank);
        meetings.failed.remove(&rank);
        meetings.came.insert(rank, mine);
        if meetings.came.len() == world_size {
            match make(std::mem::take(&mut meetings.came).into_values().collect()) {
                Ok(made) => meetings.made = (0..).map(RankId).zip(made).collect(),
                Err(why) => {
                    meetings.failed = (0..world_size).map(|rank| (RankId::at(rank), why.clone())).collect();
                }
            }
            self.changed.notify_all();
        }
        loop {
            if let Some(made) = meetings.made.remove(&rank) {
                return Ok(made);
            }
            if let Some(why) = meetings.failed.remove(&rank) {
                return Err(why);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                meetings.came.remove(&rank);
                return Err(format!("of {world_size} ranks not all came to make communicators in time"));
            }
            meetings = self.changed.wait_timeout(meetings, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
