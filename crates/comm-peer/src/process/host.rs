//! The host twin: slots in memory that processes share, pulled by a thread. Order, turns and pace are those of ranks on devices.

#[cfg(test)]
mod tests;

use std::any::Any;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use eplb_comm::host::{Foreign, HostFence, HostMemory, Spots, copy, panic_message};
use eplb_comm::{CommError, Extent, Fence, Memory as _, Place};
use eplb_core::{RankId, Transfer};

use super::card::Memory;
use super::error::PeerError;
use super::meet::{Meeting, Met, Neighbour, Offer};
use super::page::Pages;
use super::reach::Reach;
use crate::HOST_BACKEND;
use crate::communicator::PeerCommunicator;
use crate::options::Options;
use crate::pulls::{Pulled, Pulls};
use crate::shared::Shared;
use crate::words::Signals;

/// Makes this rank's communicator on host memory; all ranks call it together, each in a process of its own (or, in tests, on a thread). The
/// memory must be one that others can open ([`HostMemory::shared`]). Streams and their priority mean nothing here.
///
/// # Errors
/// The memory cannot be opened by other processes, a rank did not come or could not open another's memory (then all say so), or the
/// system refused a socket, a page or a thread.
pub fn join_host(
    meeting: &Meeting,
    memory: Arc<HostMemory>,
    options: &Options,
) -> Result<PeerCommunicator, PeerError> {
    join(meeting, memory, options, |pulls, pages| (Box::new(pulls), Box::new(pages)))
}

/// [`join_host`]; `parts` are the pulls and the words that it works with, which tests look at and break.
fn join(
    meeting: &Meeting,
    memory: Arc<HostMemory>,
    options: &Options,
    parts: impl FnOnce(HostPulls, Pages) -> (Box<dyn Pulls>, Box<dyn Signals>),
) -> Result<PeerCommunicator, PeerError> {
    let (offered, files) = offered(&memory);
    let met = meeting.meet(offer(&memory, offered, files), |neighbour| open(meeting.rank, neighbour))?;
    finish(met, memory, options, parts)
}

/// Finds out which ranks can open each other's memory, and makes this rank's communicator with those of its [group](Reach::groups); all ranks call it
/// together. No communicator where every rank is a group by itself.
///
/// # Errors
/// A rank did not come or has other tensors, or the system refused a thread. That memory cannot be opened is none: [`Reach`] says so.
pub fn survey_host(
    meeting: &Meeting,
    memory: Arc<HostMemory>,
    options: &Options,
) -> Result<(Reach, Option<PeerCommunicator>), PeerError> {
    let (offered, files) = offered(&memory);
    let surveyed =
        meeting.survey(offer(&memory, offered, files), |neighbour| open(meeting.rank, neighbour))?;
    let made =
        |met| finish(met, memory, options, |pulls, pages| (Box::new(pulls) as _, Box::new(pages) as _));
    let communicator = surveyed.met.map(made).transpose()?;
    let groups = surveyed.reach.groups();
    let near = |group| group == &groups[meeting.rank.index()];
    let near = groups.iter().map(near).collect();
    Ok((surveyed.reach, communicator.map(|communicator| communicator.with_near(near))))
}

/// How others open this rank's memory, and the descriptors by which they do.
fn offered(memory: &HostMemory) -> (Memory, Vec<BorrowedFd<'_>>) {
    match (memory.spots(), memory.segment()) {
        (Some(spots), Some(segment)) => {
            let Spots { bytes, nonce, tags, blocks, staging } = spots.clone();
            (Memory::Host { bytes, nonce, tags, blocks, staging }, vec![segment.file()])
        }
        _ => {
            let reason = "its slots lie in memory of the process alone; only memory that was made to be shared has descriptors";
            (Memory::None { reason: reason.into() }, Vec::new())
        }
    }
}

fn offer<'a>(memory: &'a HostMemory, offered: Memory, files: Vec<BorrowedFd<'a>>) -> Offer<'a> {
    let extent = Extent { rank: memory.rank(), slots: memory.slots(), staging_bytes: memory.staging_bytes() };
    Offer { layout: memory.layout(), extent, memory: offered, files, patience: Duration::ZERO }
}

/// Opens the memory of another rank.
fn open(rank: RankId, neighbour: Neighbour) -> Result<Foreign, PeerError> {
    let owner = neighbour.rank;
    let Memory::Host { bytes, nonce, tags, blocks, staging } = neighbour.memory else {
        return Err(PeerError::not_opened(rank, owner, "it is not host memory"));
    };
    let Some(file) = neighbour.files.into_iter().next() else {
        return Err(PeerError::not_opened(rank, owner, "it gave no descriptor of its slots"));
    };
    let spots = Spots { bytes, nonce, tags, blocks, staging };
    Foreign::open(owner, neighbour.layout, neighbour.extent.slots, spots, file)
        .map_err(|error| PeerError::not_opened(rank, owner, error))
}

/// The communicator over what was opened.
fn finish(
    met: Met<Foreign>,
    memory: Arc<HostMemory>,
    options: &Options,
    parts: impl FnOnce(HostPulls, Pages) -> (Box<dyn Pulls>, Box<dyn Signals>),
) -> Result<PeerCommunicator, PeerError> {
    let (rank, layout) = (memory.rank(), memory.layout().clone());
    let pulls = HostPulls::start(memory, met.opened)?;
    let board = met.pages.board();
    let manner = options.manner(met.extents.len());
    let (pulls, words) = parts(pulls, met.pages);
    let shared = Shared::new(rank, pulls, words, manner);
    let communicator = PeerCommunicator::start(HOST_BACKEND, rank, layout, met.extents, shared)?;
    Ok(communicator.with_bulletin(board))
}

/// What the thread does next.
#[derive(Debug)]
enum Op {
    Pull(Transfer),
    Pass(Arc<HostFence>),
    /// Nothing before a fence is passed.
    #[cfg(test)]
    Hold(Arc<HostFence>),
}

#[derive(Debug, Default)]
struct Queue {
    ops: Mutex<(VecDeque<Op>, bool)>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, (VecDeque<Op>, bool)> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, op: Op) {
        self.lock().0.push_back(op);
        self.changed.notify_one();
    }

    /// The next operation; `None` when all are done and no more come.
    fn next(&self) -> Option<Op> {
        let mut ops = self.lock();
        loop {
            if let Some(op) = ops.0.pop_front() {
                return Some(op);
            }
            if ops.1 {
                return None;
            }
            ops = self.changed.wait(ops).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Pulls by a thread with a queue: what a copy engine with a stream is to a GPU. After a pull that failed, no more is copied, and
/// all later fences fail with its cause.
#[derive(Debug)]
struct HostPulls {
    memory: Arc<HostMemory>,
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl HostPulls {
    fn start(memory: Arc<HostMemory>, sources: Vec<Option<Foreign>>) -> Result<Self, CommError> {
        let queue = Arc::new(Queue::default());
        let rank = memory.rank();
        let worker = {
            let (memory, queue) = (memory.clone(), queue.clone());
            move || run(&memory, &sources, &queue)
        };
        let thread = std::thread::Builder::new().name(format!("pull-{}", rank.0)).spawn(worker);
        let refused = |error: std::io::Error| CommError::NoThread {
            what: format!("the pulls of {rank}"),
            detail: error.to_string(),
        };
        Ok(Self { memory, queue, thread: Some(thread.map_err(refused)?) })
    }
}

fn run(memory: &Arc<HostMemory>, sources: &[Option<Foreign>], queue: &Queue) {
    let mut broken: Option<CommError> = None;
    while let Some(op) = queue.next() {
        match (op, &broken) {
            (Op::Pull(transfer), None) => {
                let pulled = catch_unwind(AssertUnwindSafe(|| pull(memory, sources, &transfer)));
                let panicked = |payload: Box<dyn Any + Send>| CommError::Panicked {
                    rank: memory.rank(),
                    what: format!("a pull from {}", transfer.source),
                    detail: panic_message(payload.as_ref()),
                };
                broken = pulled.map_err(panicked).flatten().err();
            }
            (Op::Pull(_), Some(_)) => {}
            (Op::Pass(fence), None) => {
                fence.pass();
            }
            (Op::Pass(fence), Some(cause)) => {
                fence.fail(cause.clone());
            }
            #[cfg(test)]
            (Op::Hold(gate), _) => {
                while eplb_comm::FenceState::poll(&*gate) == Ok(false) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
}

fn pull(memory: &Arc<HostMemory>, sources: &[Option<Foreign>], transfer: &Transfer) -> Result<(), CommError> {
    let (from, to) = (Place::source(transfer), Place::landing(transfer));
    match sources.get(transfer.source.index()).and_then(Option::as_ref) {
        Some(source) => source.copy(from, &mut memory.write(to)?, transfer.expert),
        // This rank's own.
        None => copy(&memory.read(from)?, &mut memory.write(to)?, transfer.expert),
    }
}

impl Pulls for HostPulls {
    fn pull(&self, transfer: &Transfer, fenced: bool) -> Result<Pulled, CommError> {
        self.queue.push(Op::Pull(*transfer));
        let behind = fenced.then(|| {
            let fence = HostFence::new();
            self.queue.push(Op::Pass(fence.clone()));
            fence.fence()
        });
        Ok(Pulled { queue: 0, behind })
    }

    fn bytes(&self, transfer: &Transfer) -> u64 {
        self.memory.layout().layer(transfer.layer).expert_bytes() as u64
    }

    fn fences(&self, _queues: u64) -> Result<Vec<Fence>, CommError> {
        let fence = HostFence::new();
        self.queue.push(Op::Pass(fence.clone()));
        Ok(vec![fence.fence()])
    }
}

impl Drop for HostPulls {
    fn drop(&mut self) {
        self.queue.lock().1 = true;
        self.queue.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // What is enqueued ends by itself; a panic was caught and told.
            drop(thread.join());
        }
    }
}
