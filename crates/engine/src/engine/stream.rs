//! Streams as the engine uses them: one for servers that compute on the calling thread, and the host's hook behind commits.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eplb_comm::host::{HostMemory, copy};
use eplb_comm::store::deadlines::after;
use eplb_comm::{CommError, Fence, Place, Stream};
use eplb_core::{ExpertId, Fill, LayerId, RankId, SlotCommit, SlotId};
use eplb_cuda::{CommitList, CudaError, Upload};

use super::SetId;
use super::device::DeviceSide;
use super::maps::Maps;

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

/// What commits run on.
#[derive(Debug)]
pub(super) enum Compute {
    Host(Box<dyn Stream>),
    Device(Box<DeviceSide>),
}

impl Compute {
    fn stream(&mut self) -> &mut dyn Stream {
        match self {
            Self::Host(stream) => &mut **stream,
            Self::Device(side) => &mut side.streams,
        }
    }
}

/// A stream that calls the host's hook when a commit has been enqueued.
#[derive(Debug)]
pub(super) struct Hooked {
    inner: Compute,
    rank: RankId,
    set: SetId,
    hook: Option<Hook>,
    /// Behind the last commit in host memory.
    last: Option<Fence>,
}

impl Hooked {
    pub(super) fn new(inner: Compute, rank: RankId, set: SetId, hook: Option<Hook>) -> Self {
        Self { inner, rank, set, hook, last: None }
    }

    /// What is on a device.
    pub(super) fn device(&mut self) -> Option<&mut DeviceSide> {
        match &mut self.inner {
            Compute::Host(_) => None,
            Compute::Device(side) => Some(side),
        }
    }

    /// Changes the maps on the device, if there is one.
    pub(super) fn switch(&mut self, maps: &Maps, upload: Option<Upload>) -> Result<(), CommError> {
        let rank = self.rank;
        self.device().map_or(Ok(()), |side| side.switch(maps, upload)).map_err(|error| error.at(rank))
    }

    /// The commit that comes next, ahead of its step. In host memory there is nothing to be done ahead.
    pub(super) fn lay_out(&mut self, list: Option<CommitList>) {
        if let Some(side) = self.device() {
            side.streams.lay_out(list);
        }
    }

    /// Looks whether what was sent ahead has come.
    pub(super) fn look(&mut self) -> Result<(), CudaError> {
        self.device().map_or(Ok(()), |side| side.streams.look())
    }

    /// Ends a boundary: what passes enqueue from now on runs after what was written.
    pub(super) fn release(&mut self) -> Result<(), CommError> {
        let rank = self.rank;
        self.device().map_or(Ok(()), |side| side.streams.release()).map_err(|error| error.at(rank))
    }

    /// A fence behind the last bytes that a commit or a change of maps writes, if there was any.
    pub(super) fn written(&self) -> Option<Fence> {
        match &self.inner {
            Compute::Host(_) => self.last.clone(),
            Compute::Device(side) => side.streams.written(),
        }
    }
}

impl Stream for Hooked {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        let fence = self.inner.stream().commit(commits)?;
        self.last = Some(fence.clone());
        let Some(Hook(hook)) = &self.hook else { return Ok(fence) };
        if let Compute::Device(side) = &mut self.inner {
            // What the hook writes, no pass before may see, and all that follow must, as with the commit itself.
            side.streams.lead_alone().map_err(|error| error.at(self.rank))?;
        }
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
        let fence = self.inner.stream().record()?;
        self.last = Some(fence.clone());
        Ok(fence)
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        self.inner.stream().record()
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        self.inner.stream().wait(fence)
    }
}
