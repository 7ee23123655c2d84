//! A server's cooperative kernels beside an exchange: launches that take every multiprocessor, one after the other on every device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use eplb_comm::CommError;
use eplb_core::RankId;
use eplb_cuda::kernels::Crowd;
use eplb_cuda::{Context, CudaStream};

use crate::error::EngineError;

/// Rounds of a launch, after each of which all blocks wait for each other.
const ROUNDS: u32 = 4;
/// Clocks of a round: about ten microseconds.
const CLOCKS: u32 = 20_000;
/// Longest wait for one launch.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the launches on one device did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Crowded {
    /// Launches, each of which has ended.
    pub launches: u64,
    /// Blocks of each.
    pub blocks: u32,
    /// Longest time from the call of one to its end.
    pub worst: Duration,
}

/// Launches on all devices, until they are stopped.
#[derive(Debug)]
pub(super) struct Crowds {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Crowded, EngineError>>>,
}

impl Crowds {
    /// Begins on each context, on a stream and a thread of its own; each has launched one, or has failed, when this returns.
    pub(super) fn start(contexts: &[Arc<Context>]) -> Result<Self, EngineError> {
        let mut crowds = Self { over: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
        let (launched, first) = crossbeam_channel::unbounded();
        for (rank, context) in contexts.iter().enumerate() {
            let rank = RankId::at(rank);
            let crowd = Crowd::new(&CudaStream::new(context, 0)?, None)?;
            let (over, launched) = (crowds.over.clone(), launched.clone());
            let thread = std::thread::Builder::new()
                .name(format!("crowd-{}", rank.0))
                .spawn(move || launch(rank, crowd, &over, launched))
                .map_err(|error| EngineError::RankLost { rank, detail: format!("no thread: {error}") })?;
            crowds.threads.push(thread);
        }
        drop(launched);
        first.iter().for_each(drop);
        Ok(crowds)
    }

    /// Ends them, and tells what each did.
    pub(super) fn finish(mut self) -> Result<Vec<Crowded>, EngineError> {
        self.over.store(true, Ordering::Release);
        let mut all = Vec::new();
        for (rank, thread) in self.threads.drain(..).enumerate() {
            let detail = "its cooperative kernels' thread panicked".into();
            let lost = |_| EngineError::RankLost { rank: RankId::at(rank), detail };
            all.push(thread.join().map_err(lost)??);
        }
        Ok(all)
    }
}

impl Drop for Crowds {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // Something else failed, and is told.
            drop(thread.join());
        }
    }
}

/// Launches until it is over; drops `launched` behind the first.
fn launch(
    rank: RankId,
    mut crowd: Crowd,
    over: &AtomicBool,
    launched: Sender<()>,
) -> Result<Crowded, EngineError> {
    let mut launched = Some(launched);
    let mut done = Crowded { blocks: crowd.blocks(), ..Crowded::default() };
    while !over.load(Ordering::Acquire) {
        let begun = Instant::now();
        let fence = crowd.launch(ROUNDS, CLOCKS)?;
        while !fence.poll()? {
            if begun.elapsed() > PATIENCE {
                let what = format!("cooperative kernel {} beside an exchange", done.launches);
                return Err(CommError::Timeout { rank, what, waited: PATIENCE }.into());
            }
            std::thread::yield_now();
        }
        done.launches += 1;
        drop(launched.take());
        done.worst = done.worst.max(begun.elapsed());
    }
    Ok(done)
}
