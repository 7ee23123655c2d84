//! A group of one rank on a device: copies inside it, without Gloo and without a thread. Polls move its waves on.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use eplb_comm::{
    Carried, CommError, Communicator, Fence, FenceState, Memory, Place, Progress, Ticket, places_apart,
};
use eplb_core::{RankId, Transfer};
use eplb_cuda::{CudaError, CudaFence, CudaStream, DeviceMemory, Events};

/// What waves share.
#[derive(Debug)]
struct Site {
    memory: Arc<DeviceMemory>,
    stream: Arc<CudaStream>,
    events: Arc<Events>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    carried: Carried,
    /// Why nothing is begun any more.
    aborted: Option<String>,
    /// Behind everything that was enqueued.
    last: Option<Arc<CudaFence>>,
}

/// One wave, and the state behind its fence.
struct Wave {
    site: Arc<Site>,
    number: u64,
    transfers: Arc<[Transfer]>,
    submitted: Instant,
    deadline: Instant,
    stage: Mutex<Stage>,
}

enum Stage {
    Gated(Fence),
    Running(Arc<CudaFence>),
    Over(Result<(), CommError>),
}

impl fmt::Debug for Wave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wave").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Site {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rank(&self) -> RankId {
        self.memory.rank()
    }

    /// Enqueues all copies of a wave, and records an event behind them.
    fn enqueue(&self, transfers: &[Transfer]) -> Result<Arc<CudaFence>, CommError> {
        let mut state = self.lock();
        if let Some(cause) = state.aborted.clone() {
            return Err(CommError::Aborted { rank: self.rank(), cause });
        }
        let copy = |transfer: &Transfer| -> Result<(), CudaError> {
            for tensor in 0..self.memory.layout().layer(transfer.layer).tensors().len() {
                let from = self.memory.rows(Place::source(transfer), tensor)?;
                let to = self.memory.rows(Place::landing(transfer), tensor)?;
                // SAFETY: two places of one memory, which outlives the copy (`Drop` waits for the event behind it); they are apart (`submit` has
                // looked), have the rows of one layout, and are this wave's until it is done.
                unsafe { self.stream.copy(from, to) }?;
            }
            Ok(())
        };
        let enqueued = transfers.iter().try_for_each(copy);
        // Whatever of it is on its way.
        let fence = self.events.record(&self.stream, self.rank()).map_err(|error| error.at(self.rank()))?;
        state.last = Some(fence.clone());
        enqueued.map_err(|error| error.at(self.rank()))?;
        Ok(fence)
    }
}

impl Wave {
    /// Goes on as far as it can.
    fn advance(&self, stage: &mut Stage) -> Result<bool, CommError> {
        if let Stage::Gated(after) = stage
            && after.poll()?
        {
            *stage = Stage::Running(self.site.enqueue(&self.transfers)?);
        }
        if let Stage::Running(fence) = stage
            && fence.poll()?
        {
            let bytes =
                |transfer: &Transfer| self.site.memory.layout().layer(transfer.layer).expert_bytes() as u64;
            let mut state = self.site.lock();
            state.carried.local_bytes += self.transfers.iter().map(bytes).sum::<u64>();
            state.carried.transfers += self.transfers.len() as u64;
            drop(state);
            *stage = Stage::Over(Ok(()));
        }
        match stage {
            Stage::Over(ended) => ended.clone().map(|()| true),
            _ if Instant::now() >= self.deadline => Err(CommError::Timeout {
                rank: self.site.rank(),
                what: format!("wave of ticket {}", self.number),
                waited: self.submitted.elapsed(),
            }),
            _ => Ok(false),
        }
    }

    fn fail(&self, cause: CommError) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*stage, Stage::Over(_)) {
            *stage = Stage::Over(Err(cause));
        }
    }
}

impl FenceState for Wave {
    fn poll(&self) -> Result<bool, CommError> {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        self.advance(&mut stage).inspect_err(|error| *stage = Stage::Over(Err(error.clone())))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Passed when nothing of an aborted communicator is on its way.
#[derive(Debug)]
struct Quiet(Option<Arc<CudaFence>>);

impl FenceState for Quiet {
    fn poll(&self) -> Result<bool, CommError> {
        // A device that fails runs nothing any more.
        Ok(self.0.as_ref().is_none_or(|fence| fence.poll().unwrap_or(true)))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The communicator of a rank that is alone.
#[derive(Debug)]
pub(crate) struct Alone {
    site: Arc<Site>,
    open: BTreeMap<Ticket, (Arc<Wave>, bool)>,
    next: u64,
}

impl Alone {
    pub(crate) fn new(memory: Arc<DeviceMemory>) -> Result<Self, CommError> {
        let rank = memory.rank();
        let made = || Ok((CudaStream::new(memory.context(), 0)?, Events::new(memory.context(), 2)?));
        let (stream, events) = made().map_err(|error: CudaError| error.at(rank))?;
        let site = Arc::new(Site { memory, stream, events, state: Mutex::default() });
        Ok(Self { site, open: BTreeMap::new(), next: 0 })
    }

    fn wave(&self, ticket: Ticket) -> Result<&Arc<Wave>, CommError> {
        let unknown = CommError::UnknownTicket { rank: self.rank(), ticket: ticket.0 };
        self.open.get(&ticket).map(|(wave, _)| wave).ok_or(unknown)
    }
}

impl Communicator for Alone {
    fn backend(&self) -> &'static str {
        "gloo"
    }

    fn rank(&self) -> RankId {
        self.site.rank()
    }

    fn world_size(&self) -> usize {
        1
    }

    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        if let Some(cause) = self.site.lock().aborted.clone() {
            return Err(CommError::Aborted { rank: self.rank(), cause });
        }
        self.check(transfers)?;
        self.open.retain(|_, (_, reported)| !*reported);
        let ticket = Ticket(self.next);
        self.next += 1;
        let wave = Wave {
            site: self.site.clone(),
            number: ticket.0,
            transfers: transfers.clone(),
            submitted: Instant::now(),
            deadline,
            stage: Mutex::new(Stage::Gated(after)),
        };
        self.open.insert(ticket, (Arc::new(wave), false));
        Ok(ticket)
    }

    fn check(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        let (memory, own) = (&self.site.memory, self.rank());
        for transfer in transfers {
            for (rank, place) in [
                (transfer.source, Place::source(transfer)),
                (transfer.dest, Place::slot(transfer.layer, transfer.dest_slot)),
                (transfer.dest, Place::landing(transfer)),
            ] {
                if rank != own {
                    return Err(CommError::NoSuchPlace { rank, place, reason: format!("{own} is alone") });
                }
                memory.extent().locate(memory.layout(), place)?;
            }
        }
        places_apart(own, memory.layout(), transfers)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        let done = self.wave(ticket)?.poll()?;
        if done && let Some((_, reported)) = self.open.get_mut(&ticket) {
            *reported = true;
        }
        Ok(if done { Progress::Done } else { Progress::Pending })
    }

    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError> {
        Ok(Fence::new(self.wave(ticket)?.clone()))
    }

    fn abort(&mut self, cause: &str) -> Fence {
        let mut state = self.site.lock();
        let cause = state.aborted.get_or_insert_with(|| cause.to_owned()).clone();
        let last = state.last.clone();
        drop(state);
        for (wave, _) in self.open.values() {
            wave.fail(CommError::Aborted { rank: self.rank(), cause: cause.clone() });
        }
        Fence::new(Arc::new(Quiet(last)))
    }

    fn carried(&self) -> Carried {
        self.site.lock().carried
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let quiet = self.abort("the communicator was dropped");
        // A device that comes to no end is lost.
        let _ = quiet.wait(self.rank(), "the end of copies", Instant::now() + crate::lane::LAST_WAIT);
    }
}
