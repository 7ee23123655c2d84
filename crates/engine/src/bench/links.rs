//! What the links give: plain copies between the pairs of a plan, all at once and both ways, with no protocol around them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::Place;
use eplb_core::Transfer;
use eplb_cuda::Puller;
use eplb_exchange::ExchangePlan;

use super::bytes_into;
use super::threads::Threads;
use super::worker::{Command, Reply};
use crate::error::EngineError;

/// Copies per rank are repeated this often and the fastest counts.
const ROUNDS: usize = 3;

/// What to copy.
#[derive(Debug, Clone)]
pub(super) struct Task {
    plan: Arc<ExchangePlan>,
    deadline: Instant,
}

/// Bytes per second into the worst rank, in 10^9; `None` where ranks cannot copy plainly.
pub(super) fn measure(threads: &mut Threads, plan: &Arc<ExchangePlan>) -> Result<Option<f64>, EngineError> {
    let mut best: Option<f64> = None;
    for _ in 0..ROUNDS {
        let task = Task { plan: plan.clone(), deadline: Instant::now() + threads.patience / 2 };
        let replies = threads.ask(|_| Command::Links(task.clone()))?;
        let mut worst = Duration::ZERO;
        for reply in &replies {
            match reply {
                Reply::Copied(Some(time)) => worst = worst.max(*time),
                _ => return Ok(None),
            }
        }
        let seconds = worst.as_secs_f64();
        best = Some(best.map_or(seconds, |best| best.min(seconds)));
    }
    let layout = threads.layout.clone();
    let bytes = bytes_into(plan, &layout, threads.len()).into_iter().max().unwrap_or(0);
    Ok(best.filter(|_| bytes > 0).map(|seconds| bytes as f64 / seconds / 1e9))
}

/// Pulls what this rank gets in a plan, each expert over its own link; how long it took.
pub(super) fn copy(plain: Option<&mut Puller>, task: &Task) -> Result<Option<Duration>, EngineError> {
    let Some(plain) = plain else { return Ok(None) };
    let rank = plain.memory().rank();
    let mine = |transfer: &&Transfer| transfer.dest == rank && transfer.source != rank;
    let start = Instant::now();
    for transfer in task.plan.waves().iter().flat_map(|wave| &wave.transfers).filter(mine) {
        plain.pull(transfer.source.index(), Place::source(transfer), Place::landing(transfer))?;
    }
    plain.finish(task.deadline)?;
    Ok(Some(start.elapsed()))
}
