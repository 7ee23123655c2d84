//! What the threads of one communicator share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use eplb_comm::host::HostFence;
use eplb_comm::{Carried, CommError, Fence};
use eplb_core::{RankId, Transfer};
use gloo_sys::Buffer;

use crate::alarm::Fault;
use crate::cut::Cut;
use crate::memory::Ground;
use crate::mesh::Mesh;
use crate::options::Options;
use crate::ticket::{Direction, GlooTicket};

/// Memory, connections, queue and counters. One lock, one condition variable; nothing is called with the lock held that
/// waits or calls back.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) rank: RankId,
    pub(crate) ground: Arc<dyn Ground>,
    pub(crate) mesh: Mesh,
    pub(crate) cut: Cut,
    pub(crate) options: Options,
    carried: Counters,
    /// Set once with the first fault: lanes stop carrying.
    stopping: AtomicBool,
    /// What each lane waits for.
    pub(crate) waits: Vec<Waiting>,
    state: Mutex<State>,
    pub(crate) changed: Condvar,
}

#[derive(Debug, Default)]
struct Counters {
    link_bytes: AtomicU64,
    local_bytes: AtomicU64,
    transfers: AtomicU64,
    messages: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Waves that no lane of the direction has taken yet, in order of submission.
    outward: VecDeque<Arc<GlooTicket>>,
    inward: VecDeque<Arc<GlooTicket>>,
    /// Waves that are not over, as far as the progress thread has noticed.
    pub(crate) open: Vec<Arc<GlooTicket>>,
    /// Lanes, of both directions, that carry a wave.
    pub(crate) busy: usize,
    /// The first fault that this rank saw or caused.
    pub(crate) fault: Option<Seen>,
    /// What later calls report: set when the record is known, or with an abort of this rank's own.
    pub(crate) failed: Option<CommError>,
    /// Passed when no operation of this rank is left on its memory.
    pub(crate) aborted: Option<Arc<HostFence>>,
    /// Nothing is left on the memory, and nothing will be.
    pub(crate) quiet: bool,
    /// A device came to no end with a copy while this communicator was dropped: it is never quiet.
    pub(crate) lost: bool,
    pub(crate) shutdown: bool,
}

impl State {
    fn queue(&mut self, direction: Direction) -> &mut VecDeque<Arc<GlooTicket>> {
        match direction {
            Direction::Out => &mut self.outward,
            Direction::In => &mut self.inward,
        }
    }

    /// Takes in a wave.
    pub(crate) fn push(&mut self, ticket: &Arc<GlooTicket>) {
        self.open.push(ticket.clone());
        for direction in [Direction::Out, Direction::In] {
            if !ticket.part(direction).is_empty() {
                self.queue(direction).push_back(ticket.clone());
            }
        }
    }

    /// The next wave for a lane of a direction.
    pub(crate) fn take(&mut self, direction: Direction) -> Option<Arc<GlooTicket>> {
        let ticket = self.queue(direction).pop_front()?;
        self.busy += 1;
        Some(ticket)
    }

    /// Nothing more is carried; what was open.
    pub(crate) fn clear(&mut self) -> Vec<Arc<GlooTicket>> {
        self.outward.clear();
        self.inward.clear();
        std::mem::take(&mut self.open)
    }

    /// What `submit` answers after an abort by this rank's caller.
    pub(crate) fn refusal(&self) -> Option<CommError> {
        self.failed.clone().filter(|_| self.aborted.is_some())
    }
}

/// A fault, and how this rank came to know.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) fault: Fault,
    /// Read from the record, which needs no writing then.
    pub(crate) recorded: bool,
}

/// What one lane is blocked on, for who wants to cancel it.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<Option<Blocked>>);

#[derive(Debug)]
struct Blocked {
    buffer: Arc<Buffer>,
    sends: bool,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<Blocked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane is about to wait.
    pub(crate) fn enter(&self, buffer: &Arc<Buffer>, sends: bool) {
        *self.lock() = Some(Blocked { buffer: buffer.clone(), sends });
    }

    /// The lane waits no more; its buffer is its own again.
    pub(crate) fn leave(&self) {
        *self.lock() = None;
    }

    /// Ends the wait that the lane is in or about to enter.
    fn cancel(&self) {
        // Under the lock: the lane does not free the buffer meanwhile.
        match &*self.lock() {
            Some(Blocked { buffer, sends: true }) => buffer.cancel_send(),
            Some(Blocked { buffer, sends: false }) => buffer.cancel_recv(),
            None => {}
        }
    }
}

impl Shared {
    pub(crate) fn new(ground: Arc<dyn Ground>, mesh: Mesh, cut: Cut, options: Options) -> Self {
        Self {
            rank: ground.rank(),
            ground,
            mesh,
            cut,
            carried: Counters::default(),
            stopping: AtomicBool::new(false),
            waits: std::iter::repeat_with(Waiting::default).take(2 * options.lanes).collect(),
            options,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// A panic under the lock can only come from an allocation that failed; the lists stay whole.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all threads to look at their conditions again. Takes the lock, so that a thread between its look and its wait
    /// is not missed.
    pub(crate) fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Whether lanes must stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The first fault counts; later ones follow from it.
    pub(crate) fn raise(&self, seen: Seen) {
        let mut state = self.lock();
        if state.fault.is_none() {
            state.fault = Some(seen);
            self.stopping.store(true, Ordering::Release);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// This rank's own part failed.
    pub(crate) fn raise_own(&self, cause: String) {
        let fault = Fault::own(self.rank, cause);
        self.raise(Seen { fault, recorded: false });
    }

    /// Ends the waits of all lanes. For when [`Shared::is_stopping`]: a lane looks at that after it has entered a wait.
    pub(crate) fn cancel_waits(&self) {
        self.waits.iter().for_each(Waiting::cancel);
    }

    /// The fence that is passed when nothing of this rank is left on its memory. Stops the lanes.
    pub(crate) fn abort(&self, cause: &str) -> Fence {
        let aborted = CommError::Aborted { rank: self.rank, cause: cause.into() };
        let mut state = self.lock();
        let first = state.aborted.is_none();
        let fence = state.aborted.get_or_insert_with(HostFence::new).clone();
        if first {
            state.failed = Some(aborted.clone());
        }
        let open = if first { state.clear() } else { Vec::new() };
        let quiet = state.quiet;
        drop(state);
        if quiet {
            fence.pass();
        }
        // Fails only what is not over.
        open.iter().for_each(|ticket| ticket.fail(aborted.clone()));
        let fault = Fault { abort: true, ..Fault::own(self.rank, cause.into()) };
        self.raise(Seen { fault, recorded: false });
        fence.fence()
    }

    /// What a wave's error is for the caller: whatever else befell the wave, a caller that gave up hears of that.
    pub(crate) fn after_abort(&self, error: CommError) -> CommError {
        let state = self.lock();
        let own = state.aborted.as_ref().and(state.failed.clone());
        own.unwrap_or(error)
    }

    /// Counts a transfer whose guards are gone.
    pub(crate) fn transferred(&self, ticket: &GlooTicket, transfer: &Transfer) {
        if transfer.dest == self.rank {
            let carrier = match transfer.is_local() {
                true => &self.carried.local_bytes,
                false => &self.carried.link_bytes,
            };
            let bytes = self.expert_bytes(transfer) as u64;
            // Relaxed: who sees the ticket done has acquired what came before.
            carrier.fetch_add(bytes, Ordering::Relaxed);
            self.carried.transfers.fetch_add(1, Ordering::Relaxed);
        }
        ticket.transfer_done();
    }

    /// Counts a message that was handed to Gloo to be sent.
    pub(crate) fn sent(&self) {
        self.carried.messages.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sent_messages(&self) -> u64 {
        self.carried.messages.load(Ordering::Relaxed)
    }

    pub(crate) fn carried(&self) -> Carried {
        Carried {
            link_bytes: self.carried.link_bytes.load(Ordering::Relaxed),
            local_bytes: self.carried.local_bytes.load(Ordering::Relaxed),
            transfers: self.carried.transfers.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn expert_bytes(&self, transfer: &Transfer) -> usize {
        self.ground.memory().layout().layer(transfer.layer).expert_bytes()
    }

    /// Waits for a change, at most until `until`.
    pub(crate) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        match until {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}
