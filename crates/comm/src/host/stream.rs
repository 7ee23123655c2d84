//! The host twin of a compute stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use eplb_core::{ExpertId, Fill, RankId, SlotCommit};

use super::fence::HostFence;
use super::memory::HostMemory;
use super::worker::{Op, Queue, Work};
use crate::error::CommError;
use crate::fence::Fence;
use crate::memory::Place;
use crate::stream::Stream;

/// How a host stream behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamOptions {
    /// Pause before each operation, so that completions come late as they do on a busy device.
    pub delay: Duration,
}

/// An ordered queue of work on one rank's memory, run by a thread of its own: what a CUDA stream is to a GPU.
///
/// Copies go through guards, in order, all tensors of an expert. The first operation that fails fails its fence, and all
/// later operations are skipped and their fences fail with the same cause: what comes after a broken step must not
/// run.
///
/// Dropping the stream ends the operation under way, fails the fences of all others with [`CommError::Aborted`]
/// and joins the thread. A fence that is never passed does not hold it up; work given to [`HostStream::run`]
/// that never returns does.
#[derive(Debug)]
pub struct HostStream {
    memory: Arc<HostMemory>,
    queue: Arc<Queue>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One copy of a commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct CommitCopy {
    pub(super) from: Place,
    pub(super) to: Place,
    pub(super) expert: ExpertId,
}

impl HostStream {
    /// A stream on a rank's memory, with its thread.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn new(memory: Arc<HostMemory>, options: StreamOptions) -> Result<Self, CommError> {
        let queue = Arc::new(Queue::default());
        let stopped = Arc::new(AtomicBool::new(false));
        let what = format!("the stream of {}", memory.rank());
        let worker = {
            let (memory, queue, stopped) = (memory.clone(), queue.clone(), stopped.clone());
            move || super::worker::run(&memory, &queue, &stopped, options.delay)
        };
        let thread = std::thread::Builder::new()
            .name(format!("stream-{}", memory.rank().0))
            .spawn(worker)
            .map_err(|error| CommError::NoThread { what, detail: error.to_string() })?;
        Ok(Self { memory, queue, stopped, thread: Some(thread) })
    }

    /// The rank whose memory it works on.
    pub fn rank(&self) -> RankId {
        self.memory.rank()
    }

    /// Enqueues work of the host's own, such as a forward pass that reads slots through guards. If it fails, so does
    /// the stream.
    pub fn run(
        &mut self,
        work: impl FnOnce(&Arc<HostMemory>) -> Result<(), CommError> + Send + 'static,
    ) -> Fence {
        self.enqueue(Work::Run(Box::new(work)))
    }

    fn enqueue(&mut self, work: Work) -> Fence {
        let done = HostFence::new();
        let fence = done.fence();
        self.queue.push(Op { work, done });
        fence
    }

    fn copy_of(&self, commit: &SlotCommit) -> Result<Option<CommitCopy>, CommError> {
        let layer = commit.layer;
        let to = Place::slot(layer, commit.slot);
        self.memory.check(to)?;
        let (from, expert) = match commit.fill {
            Fill::InPlace(_) | Fill::Empty => return Ok(None),
            Fill::Staged { expert, offset } => (Place::staged(layer, offset), expert),
            Fill::FromSlot { expert, slot } => (Place::slot(layer, slot), expert),
        };
        self.memory.check(from)?;
        Ok(Some(CommitCopy { from, to, expert }))
    }
}

impl Stream for HostStream {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        let mut copies = Vec::new();
        for commit in commits {
            copies.extend(self.copy_of(commit)?);
        }
        Ok(self.enqueue(Work::Commit(copies)))
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        Ok(self.enqueue(Work::Nothing))
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        self.enqueue(Work::Wait(fence.clone()));
        Ok(())
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        self.queue.wake();
        if let Some(thread) = self.thread.take() {
            // The worker catches panics of the work it runs; if it died all the same, there is nothing left to join.
            let _ = thread.join();
        }
    }
}
