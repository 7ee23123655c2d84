//! The caller's end.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use eplb_comm::{
    Bulletin, Carried, CommError, Communicator, Fence, FenceState, Launcher, Progress, Ticket, Timeline,
    places_apart,
};
use eplb_core::{RankId, Transfer};

use crate::cut::{self, Limits, Message};
use crate::lane::{Pace, Stage, Wave};
use crate::options::Backend;
use crate::peers::Peers;
use crate::shared::Shared;
use crate::ticket::WaveTicket;

/// Longest time that dropping waits for enqueued work to end; the device is lost if it does not.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// The `nccl` and `pynccl` backends, see the [crate](crate). Made by [`connect`](crate::connect()).
///
/// A rank's wave is done when what it receives is in *and* what it sends has been read. After an error or an abort the
/// communicator takes no more waves. Dropping it aborts what is open.
#[derive(Debug)]
pub struct NcclCommunicator {
    backend: Backend,
    rank: RankId,
    peers: Peers,
    limits: Limits,
    shared: Arc<Shared>,
    tickets: BTreeMap<Ticket, Open>,
    next: u64,
    thread: Option<JoinHandle<()>>,
    /// Whether polls have to move the work on, because no thread does.
    attended: bool,
    /// Why the caller gave up, once it has.
    aborted: Option<String>,
    bulletin: Option<Arc<dyn Bulletin>>,
}

#[derive(Debug)]
struct Open {
    ticket: Arc<WaveTicket>,
    reported: bool,
}

/// Launches a communicator's waves where a server wants them launched, see [`Launch::Pump`](crate::Launch::Pump).
#[derive(Debug, Clone)]
pub struct Pump {
    shared: Weak<Shared>,
}

impl Pump {
    /// To be called before the server enqueues the work of step `id`, on the thread that does. Ids rise strictly and are the same
    /// on all ranks, which are at most one step apart. Waves that are due are enqueued on our own stream, before the same step on
    /// every rank. Returns the time that it took: nothing to speak of while no wave waits, one read of the store while one does.
    pub fn step(&self, id: u64) -> Duration {
        let start = Instant::now();
        if let Some(shared) = self.shared.upgrade() {
            while shared.drive_step(id) == Pace::Hot && start.elapsed() < LAST_WAIT {
                std::hint::spin_loop();
            }
        }
        start.elapsed()
    }
}

impl Launcher for Pump {
    fn step(&self, id: u64) -> Duration {
        Pump::step(self, id)
    }
}

impl NcclCommunicator {
    pub(crate) fn new(
        backend: Backend,
        rank: RankId,
        peers: Peers,
        limits: Limits,
        shared: Arc<Shared>,
        thread: Option<JoinHandle<()>>,
    ) -> Self {
        let attended = thread.is_none();
        Self {
            backend,
            rank,
            peers,
            limits,
            shared,
            tickets: BTreeMap::new(),
            next: 0,
            thread,
            attended,
            aborted: None,
            bulletin: None,
        }
    }

    /// With a way for its ranks to say something to each other at once, where they share memory: notes of an exchange then need no store.
    pub fn with_bulletin(mut self, bulletin: Arc<dyn Bulletin>) -> Self {
        self.bulletin = Some(bulletin);
        self
    }

    /// A handle that launches waves, for [`Launch::Pump`](crate::Launch::Pump).
    pub fn pump(&self) -> Pump {
        Pump { shared: Arc::downgrade(&self.shared) }
    }

    /// Device memory of its own, staging and NCCL's apart: where messages are gathered, and lists of what to gather.
    pub fn pool_bytes(&self) -> usize {
        self.shared.pool_bytes()
    }

    fn open(&self, ticket: Ticket) -> Result<&Open, CommError> {
        self.tickets.get(&ticket).ok_or(CommError::UnknownTicket { rank: self.rank, ticket: ticket.0 })
    }

    /// Who moves on when a ticket is polled.
    fn driver(&self) -> Weak<Shared> {
        if self.attended { Arc::downgrade(&self.shared) } else { Weak::new() }
    }
}

/// 64-bit hash of a wave and of how it is cut: what ranks must agree on before a byte moves.
fn hash(transfers: &[Transfer], groups: &[Vec<Message>]) -> u64 {
    use eplb_core::Landing;
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    let mut add = |n: u64| hasher.update(&n.to_le_bytes());
    for t in transfers {
        let landing = match t.landing {
            Landing::InPlace => u64::MAX,
            Landing::Staged { offset } => offset as u64,
        };
        for n in [t.layer.0, t.expert.0, t.source.0, t.source_slot.0, t.dest.0, t.dest_slot.0] {
            add(u64::from(n));
        }
        add(landing);
    }
    for group in groups {
        add(group.len() as u64);
        group.iter().for_each(|message| add(message.bytes as u64));
    }
    hasher.digest()
}

impl Communicator for NcclCommunicator {
    fn backend(&self) -> &'static str {
        self.backend.name()
    }

    fn rank(&self) -> RankId {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.peers.len()
    }

    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        if let Some(cause) = self.shared.refusal() {
            return Err(CommError::Aborted { rank: self.rank, cause });
        }
        self.check(transfers)?;
        let groups = cut::groups(&self.peers, transfers, self.limits);
        self.tickets.retain(|_, open| !open.reported);
        let number = self.next;
        self.next += 1;
        let ticket = Arc::new(WaveTicket::new(number, self.rank, deadline, self.driver()));
        self.tickets.insert(Ticket(number), Open { ticket: ticket.clone(), reported: false });
        if transfers.is_empty() {
            ticket.pass();
            return Ok(Ticket(number));
        }
        let hash = hash(transfers, &groups);
        let transfers = transfers.clone();
        self.shared.push(Wave { number, transfers, groups, hash, after, ticket, stage: Stage::Gated });
        Ok(Ticket(number))
    }

    fn check(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        self.peers.check(transfers)?;
        places_apart(self.rank, self.peers.layout(), transfers)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        match (self.open(ticket)?.ticket.poll(), &self.aborted) {
            (Ok(true), _) => {}
            (Ok(false), None) => return Ok(Progress::Pending),
            (Err(error), None) => return Err(error),
            // Whatever else befell the wave, the caller gave it up.
            (_, Some(cause)) => {
                return Err(CommError::Aborted { rank: self.rank, cause: cause.clone() });
            }
        }
        if let Some(open) = self.tickets.get_mut(&ticket) {
            open.reported = true;
        }
        Ok(Progress::Done)
    }

    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError> {
        Ok(Fence::new(self.open(ticket)?.ticket.clone()))
    }

    fn abort(&mut self, cause: &str) -> Fence {
        let cause = self.shared.abort(cause);
        self.aborted.get_or_insert_with(|| cause.clone());
        for open in self.tickets.values() {
            open.ticket.fail(CommError::Aborted { rank: self.rank, cause: cause.clone() });
        }
        if self.attended {
            self.shared.attend();
        }
        Fence::new(Arc::new(Quiet { shared: self.shared.clone(), attended: self.attended }))
    }

    fn carried(&self) -> Carried {
        self.shared.counters.carried()
    }

    fn launcher(&self) -> Option<Arc<dyn Launcher>> {
        (self.attended && self.peers.len() > 1).then(|| Arc::new(self.pump()) as _)
    }

    fn bulletin(&self) -> Option<Arc<dyn Bulletin>> {
        self.bulletin.clone()
    }

    fn observe(&mut self, timeline: &Arc<Timeline>) {
        self.shared.observe(timeline);
    }
}

impl Drop for NcclCommunicator {
    fn drop(&mut self) {
        let quiet = self.abort("the communicator was dropped");
        self.shared.leave();
        match self.thread.take() {
            // The thread leaves when the lane is quiet, or after a while when it never is.
            Some(thread) => drop(thread.join()),
            None => drop(quiet.wait(self.rank, "the end of a communicator", Instant::now() + LAST_WAIT)),
        }
    }
}

/// Passed when nothing of an aborted communicator can touch memory any more.
#[derive(Debug)]
struct Quiet {
    shared: Arc<Shared>,
    attended: bool,
}

impl FenceState for Quiet {
    fn poll(&self) -> Result<bool, CommError> {
        if self.attended {
            self.shared.attend();
        }
        self.shared.quiet.poll()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        &*self.shared.quiet
    }
}
