//! What the communicators of a group share.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use eplb_core::{LayerId, RankId, Transfer};

use super::queue::{Port, State};
use super::ticket::LocalTicket;
use crate::communicator::Carried;
use crate::error::CommError;
use crate::fence::Fence;
use crate::host::{HostFence, HostMemory};
use crate::memory::Memory;

/// Memories, queue and threads of one group. All waiting is on one condition variable.
///
/// Fences are passed and failed without the lock held: what waits for them may come back here.
pub(super) struct Pool {
    memories: Vec<Arc<HostMemory>>,
    pub(super) copy_threads: usize,
    carried: Vec<Counters>,
    state: Mutex<State>,
    /// Signalled at new work, new gates and the end.
    pub(super) work: Condvar,
}

/// What was carried for one rank. Relaxed: who sees a ticket done has acquired what came before.
#[derive(Debug, Default)]
struct Counters {
    link_bytes: AtomicU64,
    local_bytes: AtomicU64,
    transfers: AtomicU64,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Pool")
            .field("ranks", &self.memories.len())
            .field("threads", &state.threads.len())
            .field("queued", &state.queue.len())
            .field("gated", &state.gates.waiting.len())
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
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
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
                    self.lock().gates.add(after, ticket);
                    self.work.notify_all();
                }
            },
        }
    }

    pub(super) fn enqueue(&self, ticket: Arc<LocalTicket>) {
        let bytes = ticket.transfers.iter().map(|transfer| self.expert_bytes(transfer.layer)).sum();
        let mut state = self.lock();
        if state.ports[ticket.rank.index()].aborted.is_none() {
            state.push(ticket, bytes);
            drop(state);
            self.work.notify_all();
        }
    }

    /// Starts nothing more for a rank; the fence is passed when nothing of it runs.
    pub(super) fn abort(&self, rank: RankId) -> Fence {
        let mut state = self.lock();
        state.forget(rank);
        let port = &mut state.ports[rank.index()];
        let fence = port.aborted.get_or_insert_with(HostFence::new).clone();
        let quiet = port.running == 0;
        drop(state);
        if quiet {
            fence.pass();
        }
        fence.fence()
    }

    /// Counts a transfer whose guards are gone.
    pub(super) fn transferred(&self, ticket: &LocalTicket, transfer: &Transfer) {
        let counters = &self.carried[ticket.rank.index()];
        let bytes = self.expert_bytes(transfer.layer) as u64;
        let carrier = if transfer.is_local() { &counters.local_bytes } else { &counters.link_bytes };
        carrier.fetch_add(bytes, Ordering::Relaxed);
        counters.transfers.fetch_add(1, Ordering::Relaxed);
        ticket.transfer_done();
    }

    pub(super) fn carried(&self, rank: RankId) -> Carried {
        let counters = &self.carried[rank.index()];
        Carried {
            link_bytes: counters.link_bytes.load(Ordering::Relaxed),
            local_bytes: counters.local_bytes.load(Ordering::Relaxed),
            transfers: counters.transfers.load(Ordering::Relaxed),
        }
    }

    /// Bytes of an expert of a layer: the same on all ranks.
    pub(super) fn expert_bytes(&self, layer: LayerId) -> usize {
        // Tickets exist only in groups that have ranks.
        self.memories[0].layout().layer(layer).expert_bytes()
    }
}
