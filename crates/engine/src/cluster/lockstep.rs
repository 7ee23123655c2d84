//! Steps that all ranks take together, as expert-parallel ranks do because they exchange tokens in every layer.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eplb_core::RankId;
use ndarray::Array2;

use crate::error::EngineError;

/// What a rank brings to a step.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// The map by which it routes its tokens in this step, `[L, P]`.
    pub(crate) map: Arc<Array2<i32>>,
    /// Whether its exchange is over: when all are, the ranks stop after this step.
    pub(crate) over: bool,
}

/// Meeting point of the ranks in each step: every rank brings the map by which it routes its tokens in that step and
/// goes on when all have come, knowing all maps.
///
/// Ordering: what a rank did before it came happens-before what any rank does after the meeting.
#[derive(Debug)]
pub(super) struct Lockstep {
    ranks: usize,
    timeout: Duration,
    meetings: Mutex<Meetings>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Meetings {
    open: BTreeMap<u64, Vec<Option<Route>>>,
    left: BTreeMap<u64, usize>,
    broken: bool,
}

impl Lockstep {
    pub(super) fn new(ranks: usize, timeout: Duration) -> Self {
        Self { ranks, timeout, meetings: Mutex::default(), changed: Condvar::new() }
    }

    /// Lets every rank that waits, now or later, go with an error: one of them will not come any more.
    pub(super) fn break_up(&self) {
        self.meetings.lock().unwrap_or_else(PoisonError::into_inner).broken = true;
        self.changed.notify_all();
    }

    /// Comes to step `step` with a map; returns the maps of all ranks, in their order.
    pub(super) fn meet(&self, rank: RankId, step: u64, route: Route) -> Result<Vec<Route>, EngineError> {
        let start = Instant::now();
        let mut meetings = self.meetings.lock().unwrap_or_else(PoisonError::into_inner);
        let came = meetings.open.entry(step).or_insert_with(|| vec![None; self.ranks]);
        came[rank.index()] = Some(route);
        self.changed.notify_all();
        loop {
            let came = meetings.open.get(&step).map(Vec::as_slice).unwrap_or_default();
            let routes: Vec<Route> = came.iter().flatten().cloned().collect();
            if routes.len() == self.ranks {
                let left = meetings.left.entry(step).or_insert(0);
                *left += 1;
                if *left == self.ranks {
                    meetings.left.remove(&step);
                    meetings.open.remove(&step);
                }
                return Ok(routes);
            }
            let waited = start.elapsed();
            let missing =
                || (0..self.ranks).filter(|&r| came[r].is_none()).map(RankId::at).collect::<Vec<_>>();
            if meetings.broken || waited >= self.timeout {
                return Err(EngineError::StepTimeout { rank, step, missing: missing(), waited });
            }
            meetings = self
                .changed
                .wait_timeout(meetings, self.timeout - waited)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
