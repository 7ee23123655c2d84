//! Batches of messages between pairs of ranks, over the same connections that waves use.

use std::cell::UnsafeCell;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use eplb_comm::store::Store;
use eplb_comm::{BatchHeader, CommError, Message, Pairs};
use eplb_core::RankId;
use gloo_sys::{Buffer, Gloo, Wait};

use crate::alarm::Fault;
use crate::communicator::start;
use crate::error::GlooError;
use crate::facts::Facts;
use crate::mesh::{Caller, Mesh};
use crate::options::{Options, Planted};
use crate::slot::WaveId;

/// What a batch's header is matched by, beside its number.
const HEADER: usize = usize::MAX;

/// [`Pairs`] over TCP through Gloo.
///
/// Before the bytes of a batch, the sender tells each receiver how many messages of which sizes it has; the receiver posts its own only if they
/// are the same. Waits are blocked on without a limit, as everywhere in this crate: a thread of its own keeps the deadline, another one sees
/// connections break, and either ends all waits at once.
pub struct GlooPairs {
    shared: Arc<Shared>,
    /// Batches to and from each rank so far.
    sent: Vec<u64>,
    received: Vec<u64>,
    received_bytes: u64,
    /// Headers to each rank, then from each rank.
    headers: Box<[UnsafeCell<BatchHeader>]>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    rank: RankId,
    mesh: Mesh,
    options: Options,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Of the batch under way: when it began, and its deadline.
    clock: Option<(Instant, Instant)>,
    /// Operations under way, to be cancelled.
    open: Vec<Arc<Operation>>,
    failed: Option<CommError>,
    shutdown: bool,
}

#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

/// One message under way.
struct Operation {
    buffer: Buffer,
    peer: RankId,
    way: Way,
}

impl fmt::Debug for GlooPairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GlooPairs").field("mesh", &self.shared.mesh).finish_non_exhaustive()
    }
}

impl GlooPairs {
    /// Connects this rank with the others, each of which calls this with the same store and world size. Blocks until all are
    /// connected or the deadline passes.
    ///
    /// # Errors
    /// The library is missing, `world_size` is below 2 or does not count this rank, or not all ranks could be connected in time.
    pub fn connect(
        rank: RankId,
        world_size: usize,
        store: Arc<dyn Store>,
        options: Options,
        deadline: Instant,
    ) -> Result<Self, GlooError> {
        if world_size < 2 || rank.index() >= world_size {
            return Err(GlooError::Options {
                rank,
                what: "world_size",
                found: world_size.to_string(),
                reason: "it counts all ranks, this one included, and one rank alone has nobody to talk to"
                    .into(),
            });
        }
        let facts = Facts::of_pairs(&options);
        let caller = Caller { gloo: Gloo::load()?, rank, world_size, store, options: &options, facts };
        let mesh = caller.connect(deadline)?;
        let shared =
            Arc::new(Shared { rank, mesh, options, state: Mutex::default(), changed: Condvar::new() });
        // Made first, so that its drop ends the threads if one of them cannot be started.
        let mut made = Self {
            shared: shared.clone(),
            sent: vec![0; world_size],
            received: vec![0; world_size],
            received_bytes: 0,
            headers: (0..2 * world_size).map(|_| UnsafeCell::new(BatchHeader::default())).collect(),
            threads: Vec::new(),
        };
        let clock = shared.clone();
        made.threads.push(start("gloo-clock".into(), move || clock.keep_time())?);
        made.threads.push(start("gloo-sentry".into(), move || shared.watch())?);
        Ok(made)
    }

    /// Posts everything that goes out, then takes in what comes.
    ///
    /// # Safety
    /// As [`Pairs::exchange`], until [`Shared::close`] was called.
    unsafe fn carry(&mut self, sends: &[Message], receives: &[Message]) -> Result<(), CommError> {
        let shared = self.shared.clone();
        let (me, world) = (shared.rank.index(), self.sent.len());
        let mut going = Vec::new();
        for peer in 0..world {
            let messages = of(sends, peer);
            if messages.is_empty() {
                continue;
            }
            let batch = next(&mut self.sent[peer]);
            let header = self.headers[peer].get();
            // SAFETY: no operation has it: those of the batch before were closed. The cell lives as long as `self`.
            unsafe { header.write(BatchHeader::of(&messages)) };
            let slot = shared.slot(me, peer, batch, HEADER, 0);
            let base = NonNull::from(&self.headers[peer]).cast();
            // SAFETY: the cell is not touched before the next batch, and this one is closed before that.
            going.push(unsafe { shared.post(base, BatchHeader::BYTES, peer, Way::Out, slot) }?);
            for (at, message) in messages.iter().enumerate().filter(|(_, message)| message.bytes > 0) {
                let slot = shared.slot(me, peer, batch, at, message.bytes);
                // SAFETY: as the caller promises.
                going.push(unsafe { shared.post(message.base, message.bytes, peer, Way::Out, slot) }?);
            }
        }
        let mut coming = Vec::new();
        for peer in 0..world {
            let messages = of(receives, peer);
            if messages.is_empty() {
                continue;
            }
            let batch = next(&mut self.received[peer]);
            let slot = shared.slot(peer, me, batch, HEADER, 0);
            let base = NonNull::from(&self.headers[world + peer]).cast();
            // SAFETY: as above; it is read after the wait only.
            let header = unsafe { shared.post(base, BatchHeader::BYTES, peer, Way::In, slot) }?;
            coming.push((messages, batch, header));
        }
        let mut landing = Vec::new();
        for (messages, batch, header) in coming {
            let peer = header.peer.index();
            shared.wait(&header)?;
            // SAFETY: the one operation that writes it is complete.
            let told = unsafe { self.headers[world + peer].get().read() };
            let expected = BatchHeader::of(&messages);
            if told != expected && !shared.options.has(Planted::HeaderIgnored) {
                return Err(CommError::Transfer {
                    rank: shared.rank,
                    peer: header.peer,
                    cause: told.differs(expected),
                });
            }
            for (at, message) in messages.iter().enumerate().filter(|(_, message)| message.bytes > 0) {
                let slot = shared.slot(peer, me, batch, at, message.bytes);
                // SAFETY: as the caller promises.
                landing.push(unsafe { shared.post(message.base, message.bytes, peer, Way::In, slot) }?);
                self.received_bytes += message.bytes as u64;
            }
        }
        landing.iter().chain(&going).try_for_each(|operation| shared.wait(operation))
    }
}

fn of(messages: &[Message], peer: usize) -> Vec<Message> {
    messages.iter().filter(|message| message.peer.index() == peer).copied().collect()
}

fn next(count: &mut u64) -> u64 {
    *count += 1;
    *count
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Slot of a message: a hash of all that both sides must agree on, so that nothing is ever taken for something else.
    fn slot(&self, from: usize, to: usize, batch: u64, at: usize, bytes: usize) -> u64 {
        let hash = ((from as u64) << 32 | to as u64) ^ (bytes as u64).rotate_left(17);
        WaveId { generation: self.mesh.generation, sequence: batch, hash }.slot(at, 0)
    }

    /// # Safety
    /// Until [`Shared::close`], the bytes can be read (`Out`), or written with nobody else touching them (`In`).
    unsafe fn post(
        &self,
        base: NonNull<u8>,
        bytes: usize,
        peer: usize,
        way: Way,
        slot: u64,
    ) -> Result<Arc<Operation>, CommError> {
        let failed = |error: gloo_sys::GlooError| CommError::Transfer {
            rank: self.rank,
            peer: RankId::at(peer),
            cause: error.to_string(),
        };
        // SAFETY: as the caller promises; the buffer ends its operation when it is dropped.
        let buffer = unsafe { self.mesh.context.buffer(base, bytes) }.map_err(failed)?;
        let operation = Arc::new(Operation { buffer, peer: RankId::at(peer), way });
        let mut state = self.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        state.open.push(operation.clone());
        drop(state);
        match way {
            Way::In => operation.buffer.recv(peer, slot),
            Way::Out => operation.buffer.send(peer, slot),
        }
        .map_err(failed)?;
        Ok(operation)
    }

    fn wait(&self, operation: &Operation) -> Result<(), CommError> {
        let ended = match operation.way {
            Way::In => operation.buffer.wait_recv(None),
            Way::Out => operation.buffer.wait_send(None),
        };
        let cause = match ended {
            Ok(Wait::Complete) => return Ok(()),
            Ok(Wait::Cancelled) => "it was cancelled".to_owned(),
            Err(error) => error.to_string(),
        };
        // Whoever ended it knows better why.
        let failed = self.lock().failed.clone();
        Err(failed.unwrap_or(CommError::Transfer { rank: self.rank, peer: operation.peer, cause }))
    }

    /// Ends everything that is under way, and puts the cause on record for the other ranks.
    fn fail(&self, blamed: RankId, error: &CommError) -> CommError {
        let fault = Fault { origin: self.rank, blamed, abort: false, cause: error.to_string() };
        let until = Instant::now() + self.options.report;
        // The first cause is what counts; a connection that broke behind it says little. A store that is gone changes nothing.
        let error = match self.mesh.alarm.record(&fault, until) {
            Ok((first, false)) if first.origin != self.rank => first.error(self.rank),
            _ => error.clone(),
        };
        let mut state = self.lock();
        let error = state.failed.get_or_insert(error).clone();
        self.mesh.context.close();
        // Under the lock: when a batch is closed, nobody else holds one of its operations.
        for operation in &state.open {
            match operation.way {
                Way::In => operation.buffer.cancel_recv(),
                Way::Out => operation.buffer.cancel_send(),
            }
        }
        error
    }

    /// Ends the operations of a batch: their memory is not touched after this.
    fn close(&self) {
        let mut state = self.lock();
        state.clock = None;
        state.open.clear();
    }

    fn late(&self, waited: Duration) -> CommError {
        CommError::Timeout { rank: self.rank, what: "the messages of a batch".to_owned(), waited }
    }

    /// Runs on a thread of its own: ends the batch whose deadline passes.
    fn keep_time(&self) {
        let mut state = self.lock();
        while !state.shutdown {
            let Some((begin, deadline)) = state.clock else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let now = Instant::now();
            if now < deadline {
                let waited = self.changed.wait_timeout(state, deadline - now);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            state.clock = None;
            drop(state);
            self.fail(self.rank, &self.late(now - begin));
            state = self.lock();
        }
    }

    /// Runs on a thread of its own: ends everything when a connection breaks.
    fn watch(&self) {
        let Some((peer, cause)) = self.mesh.sentry.watch() else { return };
        if !self.lock().shutdown {
            self.fail(peer, &CommError::Transfer { rank: self.rank, peer, cause });
        }
    }
}

impl Pairs for GlooPairs {
    fn backend(&self) -> &'static str {
        "gloo"
    }

    fn rank(&self) -> RankId {
        self.shared.rank
    }

    fn world_size(&self) -> usize {
        self.sent.len()
    }

    unsafe fn exchange(
        &mut self,
        sends: &[Message],
        receives: &[Message],
        deadline: Instant,
    ) -> Result<(), CommError> {
        let (rank, world) = (self.shared.rank, self.sent.len());
        if let Some(message) =
            sends.iter().chain(receives).find(|message| message.peer == rank || message.peer.index() >= world)
        {
            let cause = format!(
                "a message to or from {} of {world} ranks on {rank}: name another rank",
                message.peer
            );
            return Err(CommError::Transfer { rank, peer: message.peer, cause });
        }
        let begin = Instant::now();
        {
            let mut state = self.shared.lock();
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            state.clock = Some((begin, deadline));
        }
        self.shared.changed.notify_all();
        // SAFETY: as the caller promises.
        let carried = unsafe { self.carry(sends, receives) };
        // A clock that is gone was taken by the thread that keeps it: the connections are closed, or about to be.
        let late = self.shared.lock().clock.take().is_none();
        let carried = match carried {
            Ok(()) if late => Err(self.shared.late(begin.elapsed())),
            other => other,
        };
        let carried = carried.map_err(|error| {
            let blamed = match &error {
                CommError::Transfer { peer, .. } => *peer,
                _ => rank,
            };
            self.shared.fail(blamed, &error)
        });
        self.shared.close();
        carried
    }

    fn received_bytes(&self) -> u64 {
        self.received_bytes
    }
}

impl Drop for GlooPairs {
    fn drop(&mut self) {
        self.shared.lock().shutdown = true;
        self.shared.changed.notify_all();
        self.shared.mesh.sentry.dismiss();
        for thread in self.threads.drain(..) {
            // It catches nothing because it calls nothing that panics; one that died all the same needs no joining.
            let _ = thread.join();
        }
        self.shared.mesh.context.close();
    }
}
