//! The threads that copy, and their queue.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use eplb_core::{LayerId, RankId, Transfer};

use super::check::landing;
use super::ticket::LocalTicket;
use crate::communicator::Carried;
use crate::error::CommError;
use crate::fence::Fence;
use crate::host::{HostFence, HostMemory, SplitCopy, copy, panic_message};
use crate::memory::{Memory, Place};

/// Transfers that a thread takes at a time add up to at least this many bytes where there are enough of them: the
/// queue's lock then costs little beside the copies.
const BATCH_BYTES: usize = 256 << 10;

/// Copies of at least twice this size are shared with idle threads, in pieces of this size.
const PIECE_BYTES: usize = 2 << 20;

/// Shortest and longest pause between two looks at fences that cannot wake a thread by themselves.
const PAUSES: (Duration, Duration) = (Duration::from_micros(10), Duration::from_millis(1));

/// Memories, queue and threads of one group. All waiting is on one condition variable.
pub(super) struct Pool {
    memories: Vec<Arc<HostMemory>>,
    copy_threads: usize,
    carried: Vec<Counters>,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Debug, Default)]
struct Counters {
    link_bytes: AtomicU64,
    local_bytes: AtomicU64,
    transfers: AtomicU64,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    /// Large copies under way that idle threads may help with.
    splits: Vec<Arc<Split>>,
    /// Tickets whose fence must be looked at.
    gated: Vec<(Fence, Arc<LocalTicket>)>,
    /// A thread is waiting to look at the gates again.
    gate_keeper: bool,
    gate_pause: Duration,
    /// When to look next.
    gate_due: Option<Instant>,
    idle: usize,
    ports: Vec<Port>,
    communicators: usize,
    shutdown: bool,
    threads: Vec<JoinHandle<()>>,
}

/// What the pool runs for one rank.
#[derive(Debug, Default)]
struct Port {
    running: usize,
    aborted: Option<Arc<HostFence>>,
}

/// A ticket and how far it is handed out.
#[derive(Debug)]
struct Queued {
    ticket: Arc<LocalTicket>,
    next: usize,
    bytes_left: usize,
}

/// A large transfer that several threads copy.
#[derive(Debug)]
struct Split {
    copy: SplitCopy,
    ticket: Arc<LocalTicket>,
    transfer: Transfer,
}

/// What a thread does next.
enum Unit {
    Batch(Arc<LocalTicket>, std::ops::Range<usize>),
    Help(Arc<Split>),
}

impl Unit {
    fn ticket(&self) -> &Arc<LocalTicket> {
        match self {
            Unit::Batch(ticket, _) => ticket,
            Unit::Help(split) => &split.ticket,
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Pool")
            .field("ranks", &self.memories.len())
            .field("threads", &state.threads.len())
            .field("queued", &state.queue.len())
            .field("gated", &state.gated.len())
            .field("ports", &state.ports)
            .finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new(memories: Vec<Arc<HostMemory>>, copy_threads: usize) -> Self {
        let ranks = memories.len();
        let ports = std::iter::repeat_with(Port::default).take(ranks).collect();
        let state = Mutex::new(State { ports, ..State::default() });
        let carried = std::iter::repeat_with(Counters::default).take(ranks).collect();
        Self { memories, copy_threads, carried, state, work: Condvar::new() }
    }

    pub(super) fn memories(&self) -> &[Arc<HostMemory>] {
        &self.memories
    }

    /// A panic under the lock can only come from an allocation that failed; the lists stay whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A communicator of the group came to be.
    pub(super) fn join(&self) {
        self.lock().communicators += 1;
    }

    /// A communicator is gone; after the last one the threads end.
    pub(super) fn leave(&self) {
        let threads = {
            let mut state = self.lock();
            state.communicators -= 1;
            if state.communicators > 0 {
                return;
            }
            state.shutdown = true;
            std::mem::take(&mut state.threads)
        };
        self.work.notify_all();
        for thread in threads {
            // Threads catch the panics of copies; one that died all the same needs no joining.
            let _ = thread.join();
        }
    }

    /// Starts the copy threads unless they run.
    pub(super) fn start_threads(self: &Arc<Self>) -> Result<(), CommError> {
        let mut state = self.lock();
        while state.threads.len() < self.copy_threads {
            let number = state.threads.len();
            let pool = self.clone();
            let thread = std::thread::Builder::new()
                .name(format!("local-copy-{number}"))
                .spawn(move || pool.run())
                .map_err(|error| CommError::NoThread {
                    what: format!("copies of the local group ({number} of {} started)", self.copy_threads),
                    detail: error.to_string(),
                })?;
            state.threads.push(thread);
        }
        Ok(())
    }

    /// Queues a ticket once a fence is passed; fails it if the fence fails. Returns at once.
    pub(super) fn enqueue_after(self: &Arc<Self>, ticket: Arc<LocalTicket>, after: Fence) {
        match after.poll() {
            Ok(true) => self.enqueue(ticket),
            Err(cause) => ticket.fail(cause),
            Ok(false) => match after.state().as_any().downcast_ref::<HostFence>() {
                Some(host) => {
                    // Weak: a fence that is never settled must not keep the pool.
                    let pool: Weak<Self> = Arc::downgrade(self);
                    host.on_settled(move |result| match (result, pool.upgrade()) {
                        (Ok(()), Some(pool)) => pool.enqueue(ticket),
                        (Ok(()), None) => {}
                        (Err(cause), _) => ticket.fail(cause),
                    });
                }
                None => {
                    let mut state = self.lock();
                    state.gated.push((after, ticket));
                    state.gate_pause = Duration::ZERO;
                    state.gate_due = None;
                    drop(state);
                    self.work.notify_all();
                }
            },
        }
    }

    fn enqueue(&self, ticket: Arc<LocalTicket>) {
        let bytes_left = ticket.transfers.iter().map(|t| self.expert_bytes(t.layer)).sum();
        let mut state = self.lock();
        if state.ports[ticket.rank.index()].aborted.is_none() {
            state.queue.push_back(Queued { ticket, next: 0, bytes_left });
            drop(state);
            self.work.notify_all();
        }
    }

    /// Starts nothing more for a rank; the fence is passed when nothing of it runs.
    pub(super) fn abort(&self, rank: RankId) -> Fence {
        let mut state = self.lock();
        state.queue.retain(|queued| queued.ticket.rank != rank);
        state.gated.retain(|(_, ticket)| ticket.rank != rank);
        state.splits.retain(|split| {
            if split.ticket.rank == rank {
                split.copy.stop();
            }
            split.ticket.rank != rank
        });
        let port = &mut state.ports[rank.index()];
        let fence = port.aborted.get_or_insert_with(HostFence::new).clone();
        let idle = port.running == 0;
        drop(state);
        if idle {
            fence.pass();
        }
        fence.fence()
    }

    pub(super) fn carried(&self, rank: RankId) -> Carried {
        let counters = &self.carried[rank.index()];
        Carried {
            link_bytes: counters.link_bytes.load(Ordering::Relaxed),
            local_bytes: counters.local_bytes.load(Ordering::Relaxed),
            transfers: counters.transfers.load(Ordering::Relaxed),
        }
    }

    fn expert_bytes(&self, layer: LayerId) -> usize {
        // Tickets exist only in groups that have ranks, and layouts are alike.
        self.memories[0].layout().layer(layer).expert_bytes()
    }

    /// A copy thread.
    fn run(self: Arc<Self>) {
        while let Some(unit) = self.next() {
            let ticket = unit.ticket().clone();
            let result = catch_unwind(AssertUnwindSafe(|| self.execute(&unit)));
            // The guards of a split copy go with its last handle: before the rank counts as quiet.
            drop(unit);
            if let Err(payload) = result {
                ticket.fail(CommError::Panicked {
                    rank: ticket.rank,
                    what: format!("a copy of ticket {}", ticket.number),
                    detail: panic_message(payload.as_ref()),
                });
            }
            self.finished(ticket.rank);
        }
    }

    fn finished(&self, rank: RankId) {
        let fence = {
            let mut state = self.lock();
            // Before the rank counts as quiet: the last handle on a copy that was given up drops its guards.
            state.splits.retain(|split| split.copy.has_more() && !split.ticket.is_over());
            let port = &mut state.ports[rank.index()];
            port.running -= 1;
            port.aborted.clone().filter(|_| port.running == 0)
        };
        if let Some(fence) = fence {
            fence.pass();
        }
    }

    /// Waits for work; `None` at the end of the group.
    fn next(&self) -> Option<Unit> {
        let mut state = self.lock();
        loop {
            if state.shutdown {
                return None;
            }
            let now = Instant::now();
            if !state.gated.is_empty() && state.gate_due.is_none_or(|due| due <= now) {
                state = self.look_at_gates(state);
                continue;
            }
            if let Some(unit) = state.take(self) {
                state.ports[unit.ticket().rank.index()].running += 1;
                if state.idle > 0 && !state.gated.is_empty() && !state.gate_keeper {
                    self.work.notify_one();
                }
                return Some(unit);
            }
            state.idle += 1;
            let due = state.gate_due.filter(|_| !state.gated.is_empty() && !state.gate_keeper);
            state = match due {
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    state.gate_keeper = true;
                    let waited = self.work.wait_timeout(state, due.saturating_duration_since(now));
                    let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    state.gate_keeper = false;
                    state
                }
            };
            state.idle -= 1;
        }
    }

    /// Polls the fences of gated tickets, without the lock: they are foreign code.
    fn look_at_gates<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let gates = std::mem::take(&mut state.gated);
        drop(state);
        let mut shut = Vec::new();
        for (fence, ticket) in gates {
            match fence.poll() {
                Ok(true) => self.enqueue(ticket),
                Ok(false) if ticket.is_over() => {}
                Ok(false) => shut.push((fence, ticket)),
                Err(cause) => ticket.fail(cause),
            }
        }
        let mut state = self.lock();
        shut.retain(|(_, ticket)| state.ports[ticket.rank.index()].aborted.is_none());
        state.gated.extend(shut);
        state.gate_pause = (state.gate_pause * 2).clamp(PAUSES.0, PAUSES.1);
        state.gate_due = Some(Instant::now() + state.gate_pause);
        state
    }

    fn execute(&self, unit: &Unit) {
        match unit {
            Unit::Help(split) => self.work_on(split),
            Unit::Batch(ticket, range) => {
                for transfer in &ticket.transfers[range.clone()] {
                    if ticket.is_over() {
                        return;
                    }
                    if let Err(cause) = self.transfer(ticket, transfer) {
                        return ticket.fail(cause);
                    }
                }
            }
        }
    }

    fn transfer(&self, ticket: &Arc<LocalTicket>, transfer: &Transfer) -> Result<(), CommError> {
        let source = &self.memories[transfer.source.index()];
        let source = source.read(Place::slot(transfer.layer, transfer.source_slot))?;
        let mut dest = self.memories[transfer.dest.index()].write(landing(transfer))?;
        if self.copy_threads == 1 || self.expert_bytes(transfer.layer) < 2 * PIECE_BYTES {
            copy(&source, &mut dest, transfer.expert)?;
            drop((source, dest));
            self.transferred(ticket, transfer);
            return Ok(());
        }
        let copy = SplitCopy::new(source, dest, transfer.expert, PIECE_BYTES)?;
        let split = Arc::new(Split { copy, ticket: ticket.clone(), transfer: *transfer });
        let mut state = self.lock();
        if state.ports[ticket.rank.index()].aborted.is_some() {
            return Ok(());
        }
        state.splits.push(split.clone());
        let idle = state.idle > 0;
        drop(state);
        if idle {
            self.work.notify_all();
        }
        self.work_on(&split);
        Ok(())
    }

    /// Copies pieces until none is left or the ticket is over.
    fn work_on(&self, split: &Split) {
        while split.copy.has_more() && !split.ticket.is_over() {
            if split.copy.copy_next() {
                self.transferred(&split.ticket, &split.transfer);
            }
        }
        if split.ticket.is_over() {
            split.copy.stop();
        }
    }

    /// Counts a transfer whose guards are gone.
    fn transferred(&self, ticket: &LocalTicket, transfer: &Transfer) {
        let counters = &self.carried[ticket.rank.index()];
        let bytes = self.expert_bytes(transfer.layer) as u64;
        let carrier = if transfer.is_local() { &counters.local_bytes } else { &counters.link_bytes };
        carrier.fetch_add(bytes, Ordering::Relaxed);
        counters.transfers.fetch_add(1, Ordering::Relaxed);
        ticket.transfer_done();
    }
}

impl State {
    /// The next piece of work: a large copy under way first, then tickets in turn.
    fn take(&mut self, pool: &Pool) -> Option<Unit> {
        if let Some(split) = self.splits.iter().find(|split| split.copy.has_more()) {
            return Some(Unit::Help(split.clone()));
        }
        while let Some(mut queued) = self.queue.pop_front() {
            if queued.ticket.is_over() {
                continue;
            }
            // Small shares towards the end of a ticket, so that all threads end together.
            let goal = (queued.bytes_left / (2 * pool.copy_threads)).min(BATCH_BYTES);
            let first = queued.next;
            let mut bytes = 0;
            while let Some(transfer) = queued.ticket.transfers.get(queued.next) {
                bytes += pool.expert_bytes(transfer.layer);
                queued.next += 1;
                if bytes >= goal {
                    break;
                }
            }
            queued.bytes_left -= bytes;
            let unit = Unit::Batch(queued.ticket.clone(), first..queued.next);
            if queued.next < queued.ticket.transfers.len() {
                self.queue.push_back(queued);
            }
            return Some(unit);
        }
        None
    }
}
