//! What is waiting to be copied.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use eplb_core::Transfer;

use super::ticket::LocalTicket;
use crate::fence::Fence;
use crate::host::{HostFence, SplitCopy};

/// Transfers that a thread takes at a time add up to at least this many bytes where there are enough of them: the
/// queue's lock then costs little beside the copies.
const BATCH_BYTES: usize = 256 << 10;

/// Shortest and longest pause between two looks at fences that cannot wake a thread by themselves.
const PAUSES: (Duration, Duration) = (Duration::from_micros(10), Duration::from_millis(1));

/// Everything that the threads of a group share under its lock.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) queue: VecDeque<Queued>,
    /// Large copies under way that idle threads may help with.
    pub(super) splits: Vec<Arc<Split>>,
    pub(super) gates: Gates,
    /// Threads that wait.
    pub(super) idle: usize,
    /// `[ranks]`.
    pub(super) ports: Vec<Port>,
    pub(super) communicators: usize,
    pub(super) shutdown: bool,
    pub(super) threads: Vec<JoinHandle<()>>,
}

/// What runs for one rank.
#[derive(Debug, Default)]
pub(super) struct Port {
    pub(super) running: usize,
    /// Set by an abort; passed when nothing runs.
    pub(super) aborted: Option<Arc<HostFence>>,
}

/// A ticket and how far it is handed out.
#[derive(Debug)]
pub(super) struct Queued {
    ticket: Arc<LocalTicket>,
    next: usize,
    bytes_left: usize,
}

/// A large transfer that several threads copy.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) copy: SplitCopy,
    pub(super) ticket: Arc<LocalTicket>,
    pub(super) transfer: Transfer,
}

/// What a thread does next.
pub(super) enum Unit {
    /// Some transfers of a ticket.
    Batch(Arc<LocalTicket>, Range<usize>),
    /// Pieces of a copy that another thread began.
    Help(Arc<Split>),
}

impl Unit {
    pub(super) fn ticket(&self) -> &Arc<LocalTicket> {
        match self {
            Unit::Batch(ticket, _) => ticket,
            Unit::Help(split) => &split.ticket,
        }
    }
}

/// Tickets behind fences that must be looked at. One thread at a time looks, or waits to look again.
#[derive(Debug, Default)]
pub(super) struct Gates {
    pub(super) waiting: Vec<(Fence, Arc<LocalTicket>)>,
    /// A thread is asleep until the next look.
    pub(super) keeper: bool,
    pause: Duration,
    /// When to look next; `None`: now.
    due: Option<Instant>,
}

impl Gates {
    pub(super) fn add(&mut self, after: Fence, ticket: Arc<LocalTicket>) {
        self.waiting.push((after, ticket));
        self.pause = Duration::ZERO;
        self.due = None;
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.waiting.is_empty() && self.due.is_none_or(|due| due <= now)
    }

    /// How long to sleep until the next look, if this thread is to be the one that looks.
    pub(super) fn sleep(&self, now: Instant) -> Option<Duration> {
        let wanted = !self.waiting.is_empty() && !self.keeper;
        wanted.then(|| self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now)))
    }

    /// Some gates are still shut: look again after a pause that grows.
    pub(super) fn looked(&mut self, shut: impl IntoIterator<Item = (Fence, Arc<LocalTicket>)>) {
        self.waiting.extend(shut);
        self.pause = (self.pause * 2).clamp(PAUSES.0, PAUSES.1);
        self.due = Some(Instant::now() + self.pause);
    }
}

impl State {
    pub(super) fn push(&mut self, ticket: Arc<LocalTicket>, bytes: usize) {
        self.queue.push_back(Queued { ticket, next: 0, bytes_left: bytes });
    }

    /// The next piece of work: a large copy under way first, then tickets in turn.
    pub(super) fn take(&mut self, threads: usize, expert_bytes: impl Fn(&Transfer) -> usize) -> Option<Unit> {
        if let Some(split) = self.splits.iter().find(|split| split.copy.has_more()) {
            return Some(Unit::Help(split.clone()));
        }
        while let Some(mut queued) = self.queue.pop_front() {
            if queued.ticket.is_over() {
                continue;
            }
            // Small shares towards the end of a ticket, so that all threads end together.
            let goal = (queued.bytes_left / (2 * threads)).min(BATCH_BYTES);
            let first = queued.next;
            let mut bytes = 0;
            while let Some(transfer) = queued.ticket.transfers.get(queued.next) {
                bytes += expert_bytes(transfer);
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

    /// Forgets what a rank wants: nothing of it starts any more.
    pub(super) fn forget(&mut self, rank: eplb_core::RankId) {
        self.queue.retain(|queued| queued.ticket.rank != rank);
        self.gates.waiting.retain(|(_, ticket)| ticket.rank != rank);
        self.splits.retain(|split| {
            if split.ticket.rank == rank {
                split.copy.stop();
            }
            split.ticket.rank != rank
        });
    }

    /// Forgets large copies that need no more help. With the last handle on one that was given up go its guards.
    pub(super) fn drop_spent_splits(&mut self) {
        self.splits.retain(|split| split.copy.has_more() && !split.ticket.is_over());
    }
}
