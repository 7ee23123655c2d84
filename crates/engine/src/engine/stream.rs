//! Streams as the engine uses them: one for servers that compute on the calling thread, and the host's hook behind commits.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eplb_comm::host::{HostMemory, copy};
use eplb_comm::store::deadlines::after;
use eplb_comm::{CommError, Fence, Place, Stream};
use eplb_core::{ExpertId, Fill, LayerId, SlotCommit, SlotId};

use super::SetId;

/// Longest wait of [`InlineStream::wait`].
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The stream of a server whose passes run on the thread that calls [`Engine::step`](super::Engine::step): that thread is the
/// queue. What it did before a step is over when the step begins; commits copy at once, on it.
#[derive(Debug, Clone)]
pub struct InlineStream {
    memory: Arc<HostMemory>,
}

impl InlineStream {
    /// The stream of a rank's memory.
    pub fn new(memory: Arc<HostMemory>) -> Self {
        Self { memory }
    }

    fn copy(&self, from: Place, commit: &SlotCommit, expert: ExpertId) -> Result<(), CommError> {
        let from = self.memory.read(from)?;
        copy(&from, &mut self.memory.write(Place::slot(commit.layer, commit.slot))?, expert)
    }
}

impl Stream for InlineStream {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        for commit in commits {
            match commit.fill {
                Fill::InPlace(_) | Fill::Empty => {}
                Fill::Staged { expert, offset } => {
                    self.copy(Place::staged(commit.layer, offset), commit, expert)?
                }
                Fill::FromSlot { expert, slot } => {
                    self.copy(Place::slot(commit.layer, slot), commit, expert)?
                }
            }
        }
        Ok(Fence::passed())
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        Ok(Fence::passed())
    }

    /// Waits on the calling thread, which is the queue.
    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        fence.wait(self.memory.rank(), "a fence that the calling thread waits for", after(LONGEST_WAIT))
    }
}

/// What a host has called after commits.
pub type AfterCommit = Box<dyn FnMut(SetId, LayerId, &[SlotId]) + Send>;

/// The host's hook, shared by the streams of all layer sets.
#[derive(Clone)]
pub(super) struct Hook(Arc<Mutex<AfterCommit>>);

impl Hook {
    pub(super) fn new(hook: AfterCommit) -> Self {
        Self(Arc::new(Mutex::new(hook)))
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

/// A stream that calls the host's hook when a commit has been enqueued.
#[derive(Debug)]
pub(super) struct Hooked {
    pub(super) inner: Box<dyn Stream>,
    pub(super) set: SetId,
    pub(super) hook: Option<Hook>,
}

impl Stream for Hooked {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        let fence = self.inner.commit(commits)?;
        let Some(Hook(hook)) = &self.hook else { return Ok(fence) };
        // A hook that panicked once is called again: it is the host's.
        let mut hook = hook.lock().unwrap_or_else(PoisonError::into_inner);
        // Commits are in order of layers.
        for layer in commits.chunk_by(|a, b| a.layer == b.layer) {
            let filled = layer.iter().filter(|commit| commit.fill.expert().is_some());
            let slots: Vec<SlotId> = filled.map(|commit| commit.slot).collect();
            if !slots.is_empty() {
                hook(self.set, layer[0].layer, &slots);
            }
        }
        drop(hook);
        // What the hook enqueued belongs to the commit.
        self.inner.record()
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        self.inner.record()
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        self.inner.wait(fence)
    }
}
