//! One rank's end of the group.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use eplb_comm::host::HostMemory;
use eplb_comm::store::Store;
use eplb_comm::{Carried, CommError, Communicator, Fence, FenceState, Progress, Ticket, places_apart};
use eplb_core::{RankId, Transfer};
use eplb_cuda::DeviceMemory;
use gloo_sys::Gloo;

use crate::cells;
use crate::check;
use crate::cut::Cut;
use crate::error::GlooError;
use crate::facts::Facts;
use crate::memory::Ground;
use crate::mesh::Caller;
use crate::options::Options;
use crate::shared::Shared;
use crate::ticket::{Direction, GlooTicket};
use crate::{lane, progress};

/// The `gloo` backend: TCP between the memories of processes, of the host or of devices.
///
/// Both ends of a transfer take part: a rank is done with a wave when what it receives is in and what it sends is out. Its threads,
/// connections and packing memory are made by [`GlooCommunicator::connect`]: the lanes, one for deadlines, one that watches the
/// connections, one that listens to the store, and one inside Gloo. A group of one rank makes none of them, and needs no library.
///
/// `abort`, a failure and a drop with a wave open end the group for all ranks, see the [crate's page](crate). Dropping ends the threads;
/// it takes no longer than two operations of the store.
#[derive(Debug)]
pub struct GlooCommunicator {
    body: Body,
    ground: Arc<dyn Ground>,
    store: Arc<dyn Store>,
    options: Options,
}

#[derive(Debug)]
enum Body {
    Alone(Box<dyn Communicator>),
    Group(Group),
}

struct Group {
    shared: Arc<Shared>,
    tickets: BTreeMap<Ticket, Open>,
    next: u64,
    packing_bytes: usize,
    workers: Vec<JoinHandle<()>>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Open {
    ticket: Arc<GlooTicket>,
    reported: bool,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("mesh", &self.shared.mesh)
            .field("tickets", &self.tickets)
            .finish_non_exhaustive()
    }
}

impl GlooCommunicator {
    /// Connects `memory`'s rank with the others, each of which calls this with the same store and world size. Blocks until all
    /// are connected or the deadline passes.
    ///
    /// # Errors
    /// The library is missing, ranks do not fit together, or not all of them could be connected in time.
    pub fn connect(
        memory: Arc<HostMemory>,
        world_size: usize,
        store: Arc<dyn Store>,
        options: Options,
        deadline: Instant,
    ) -> Result<Self, GlooError> {
        Self::on(Arc::new(memory), world_size, store, options, deadline)
    }

    /// As [`GlooCommunicator::connect`], for slots on a device. Messages go through pinned memory of the host, [`GlooCommunicator::packing_bytes`] in
    /// all, on streams of this communicator's own, one for each lane and direction; no stream waits for anything but earlier copies. Ranks of
    /// both kinds of memory may be in one group.
    ///
    /// # Errors
    /// As there; and the driver gave no pinned memory or stream.
    pub fn connect_device(
        memory: Arc<DeviceMemory>,
        world_size: usize,
        store: Arc<dyn Store>,
        options: Options,
        deadline: Instant,
    ) -> Result<Self, GlooError> {
        Self::on(Arc::new(memory), world_size, store, options, deadline)
    }

    fn on(
        ground: Arc<dyn Ground>,
        world_size: usize,
        store: Arc<dyn Store>,
        options: Options,
        deadline: Instant,
    ) -> Result<Self, GlooError> {
        check_options(ground.rank(), world_size, &options)?;
        let body = match world_size {
            1 => Body::Alone(ground.alone()?),
            _ => Body::Group(Group::connect(&ground, world_size, &store, &options, deadline)?),
        };
        Ok(Self { body, ground, store, options })
    }

    /// Ends this communicator, for all ranks, and connects anew under the next generation. Every rank calls it.
    ///
    /// # Errors
    /// As [`GlooCommunicator::connect`].
    pub fn rebuild(mut self, deadline: Instant) -> Result<Self, GlooError> {
        // On record before the new attempt looks for a generation.
        let quiet = self.abort("it is rebuilt");
        quiet.wait(self.ground.rank(), "the communicator that is rebuilt to come to rest", deadline)?;
        let (ground, store) = (self.ground.clone(), self.store.clone());
        let (world_size, options) = (self.world_size(), self.options.clone());
        drop(self);
        Self::on(ground, world_size, store, options, deadline)
    }

    /// Generation of its connections: rises with every rebuilding; `None` for a group of one rank.
    pub fn generation(&self) -> Option<u64> {
        match &self.body {
            Body::Alone(_) => None,
            Body::Group(group) => Some(group.shared.mesh.generation),
        }
    }

    /// Messages that this rank has sent to others so far: one for the header and all small tensors of an expert, and one for each piece of its
    /// large ones.
    pub fn sent_messages(&self) -> u64 {
        match &self.body {
            Body::Alone(_) => 0,
            Body::Group(group) => group.shared.sent_messages(),
        }
    }

    /// Bytes of memory for packing messages, made at the start; none are added later. Of ranks on devices it is pinned.
    pub fn packing_bytes(&self) -> usize {
        match &self.body {
            Body::Alone(_) => 0,
            Body::Group(group) => group.packing_bytes,
        }
    }
}

fn check_options(rank: RankId, world_size: usize, options: &Options) -> Result<(), GlooError> {
    let refuse = |what, found: usize, reason: &str| {
        Err(GlooError::Options { rank, what, found: found.to_string(), reason: reason.into() })
    };
    if rank.index() >= world_size {
        return refuse("world_size", world_size, "it counts all ranks, this one included");
    }
    for (what, value) in
        [("lanes", options.lanes), ("window", options.window), ("piece_bytes", options.piece_bytes)]
    {
        if value == 0 {
            return refuse(what, value, "at least 1 is needed");
        }
    }
    Ok(())
}

impl Group {
    fn connect(
        ground: &Arc<dyn Ground>,
        world_size: usize,
        store: &Arc<dyn Store>,
        options: &Options,
        deadline: Instant,
    ) -> Result<Self, GlooError> {
        let rank = ground.rank();
        let cut = Cut::new(ground.memory().layout(), options.small_bytes, options.piece_bytes);
        let largest = ground.largest_packed(&cut);
        // One per direction.
        let lanes = 2 * options.lanes;
        let (count, bytes) = cells::size(largest, options.window, lanes, options.packing_bytes);
        let packing: Vec<_> =
            (0..lanes).map(|_| ground.lane(count, bytes, options)).collect::<Result<_, _>>()?;
        let caller = Caller {
            gloo: Gloo::load()?,
            rank,
            world_size,
            store: store.clone(),
            options,
            facts: Facts::of(ground.memory(), options, 0),
        };
        let mesh = caller.connect(deadline)?;
        let shared = Arc::new(Shared::new(ground.clone(), mesh, cut, options.clone()));
        // Made first, so that its drop ends the threads if one of them cannot be started.
        let mut group = Self {
            shared: shared.clone(),
            tickets: BTreeMap::new(),
            next: 0,
            packing_bytes: lanes * count * bytes,
            workers: Vec::new(),
            listener: None,
        };
        for (number, own) in packing.into_iter().enumerate() {
            let shared = shared.clone();
            let (name, direction) = match number % 2 {
                0 => ("in", Direction::In),
                _ => ("out", Direction::Out),
            };
            let carry = move || lane::run(&shared, number, direction, own);
            group.workers.push(start(format!("gloo-{name}-{}", number / 2), carry)?);
        }
        let progress = shared.clone();
        group.workers.push(start("gloo-progress".into(), move || progress::run(&progress))?);
        let sentry = shared.clone();
        group.workers.push(start("gloo-sentry".into(), move || progress::watch(&sentry))?);
        group.listener = Some(start("gloo-listen".into(), move || progress::listen(&shared))?);
        Ok(group)
    }

    fn open(&self, ticket: Ticket) -> Result<&Open, CommError> {
        let unknown = || CommError::UnknownTicket { rank: self.shared.rank, ticket: ticket.0 };
        self.tickets.get(&ticket).ok_or_else(unknown)
    }

    fn check(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        check::places_exist(self.shared.ground.memory(), &self.shared.mesh.facts, transfers)?;
        places_apart(self.shared.rank, self.shared.ground.memory().layout(), transfers)
    }

    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        let shared = &self.shared;
        if let Some(aborted) = shared.lock().refusal() {
            return Err(aborted);
        }
        self.check(transfers)?;
        self.tickets.retain(|_, open| !open.reported);
        let name = Ticket(self.next);
        let generation = shared.mesh.generation;
        let ticket =
            Arc::new(GlooTicket::new(self.next, generation, shared.rank, transfers, after, deadline));
        self.next += 1;
        self.tickets.insert(name, Open { ticket: ticket.clone(), reported: false });
        if !ticket.is_over() {
            let mut state = shared.lock();
            // A group that has failed takes no more: the wave ends at once like those that were open then, as late if it is. Where the
            // record of a fault is still being asked for, it is one of those.
            match state.failed.clone() {
                Some(error) if matches!(ticket.poll(), Ok(false)) => ticket.fail(error),
                Some(_) => {}
                None => {
                    state.push(&ticket);
                }
            }
            drop(state);
            shared.changed.notify_all();
        }
        Ok(name)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        if !self.open(ticket)?.ticket.poll().map_err(|error| self.shared.after_abort(error))? {
            return Ok(Progress::Pending);
        }
        if let Some(open) = self.tickets.get_mut(&ticket) {
            open.reported = true;
        }
        Ok(Progress::Done)
    }
}

pub(crate) fn start(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, CommError> {
    let what = format!("the thread {name}");
    let started = std::thread::Builder::new().name(name).spawn(work);
    started.map_err(|error| CommError::NoThread { what, detail: error.to_string() })
}

impl Drop for Group {
    fn drop(&mut self) {
        let shared = &self.shared;
        if self.tickets.values().any(|open| !open.ticket.is_over()) {
            shared.abort("the communicator was dropped");
        }
        let deadline = || Instant::now() + shared.options.report;
        let mut state = shared.lock();
        state.shutdown = true;
        drop(state);
        shared.changed.notify_all();
        shared.mesh.sentry.dismiss();
        let dismissed = shared.mesh.alarm.dismiss(deadline());
        for worker in self.workers.drain(..) {
            // They catch the panics of what they carry; one that died all the same needs no joining.
            let _ = worker.join();
        }
        // Not left to the last handle, which a listener that cannot be told may keep.
        shared.mesh.context.close();
        let Some(listener) = self.listener.take() else { return };
        // A listener that cannot be told ends with the store, or with the process.
        if dismissed.is_ok() {
            let _ = listener.join();
            let _ = shared.mesh.alarm.remove(deadline());
        }
    }
}

impl Communicator for GlooCommunicator {
    fn backend(&self) -> &'static str {
        "gloo"
    }

    fn rank(&self) -> RankId {
        self.ground.rank()
    }

    fn world_size(&self) -> usize {
        match &self.body {
            Body::Alone(_) => 1,
            Body::Group(group) => group.shared.mesh.facts.len(),
        }
    }

    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        match &mut self.body {
            Body::Alone(alone) => alone.submit(transfers, after, deadline),
            Body::Group(group) => group.submit(transfers, after, deadline),
        }
    }

    fn check(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        match &self.body {
            Body::Alone(alone) => alone.check(transfers),
            Body::Group(group) => group.check(transfers),
        }
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        match &mut self.body {
            Body::Alone(alone) => alone.poll(ticket),
            Body::Group(group) => group.poll(ticket),
        }
    }

    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError> {
        match &mut self.body {
            Body::Alone(alone) => alone.done(ticket),
            Body::Group(group) => Ok(Fence::new(group.open(ticket)?.ticket.clone())),
        }
    }

    fn abort(&mut self, cause: &str) -> Fence {
        match &mut self.body {
            Body::Alone(alone) => alone.abort(cause),
            Body::Group(group) => group.shared.abort(cause),
        }
    }

    fn carried(&self) -> Carried {
        match &self.body {
            Body::Alone(alone) => alone.carried(),
            Body::Group(group) => group.shared.carried(),
        }
    }

    fn pinned_bytes(&self) -> usize {
        if self.ground.packs_pinned() { self.packing_bytes() } else { 0 }
    }
}
