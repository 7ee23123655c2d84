//! A client's connection: its thread, its requests under way, and noticing that the server is gone.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token as Id, Waker};

use super::connection::{Connection, Input};
use super::handshake::Welcome;
use super::message::{Piece, Reply, Request, decode_reply, longest_message};
use crate::store::deadlines::{Deadlines, left};
use crate::store::eager::{Eager, has_spare_processors};
use crate::store::error::StoreError;
use crate::store::limits::check_key;
use crate::store::liveness::Pulse;

const SOCKET: Id = Id(0);
const WAKER: Id = Id(1);

/// Bytes of requests that are handed to the socket together. What is behind can still be withdrawn.
const SENT_AT_ONCE: usize = 64 << 10;

/// How long a caller looks for its reply before it sleeps.
const SOON: Duration = Duration::from_micros(200);

/// A connection with its thread. Any number of threads may [`Link::call`] at once; dropping it ends the thread.
pub(super) struct Link {
    shared: Arc<Shared>,
    max_value: usize,
    reply_grace: Duration,
    thread: Option<JoinHandle<()>>,
}

/// What callers and the client's thread share.
struct Shared {
    server: String,
    /// Requests so far. Only uniqueness matters, so its accesses are relaxed.
    ids: AtomicU64,
    state: Mutex<State>,
    /// Told when queued requests have been handed to the socket.
    drained: Condvar,
    waker: Waker,
}

#[derive(Default)]
struct State {
    /// Requests not yet handed to the socket. At most one largest message, and one more.
    queue: VecDeque<(u64, Vec<u8>)>,
    queue_bytes: usize,
    /// Who waits for which reply.
    pending: HashMap<u64, SyncSender<Reply>>,
    /// Why the store is lost; final.
    lost: Option<StoreError>,
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock leaves the state half changed when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody waits for this reply any more. What has not been sent will not be.
    fn withdraw(&self, id: u64) {
        let mut state = self.lock();
        state.pending.remove(&id);
        if let Some(at) = state.queue.iter().position(|(queued, _)| *queued == id)
            && let Some((_, message)) = state.queue.remove(at)
        {
            state.queue_bytes -= message.len();
            self.drained.notify_all();
        }
    }

    /// The store is gone: everyone who waits learns it, and everyone who comes later.
    fn lose(&self, cause: String) {
        let mut state = self.lock();
        state.lost.get_or_insert(StoreError::Lost { store: self.server.clone(), cause });
        state.queue.clear();
        state.queue_bytes = 0;
        state.pending.clear();
        self.drained.notify_all();
    }
}

impl Link {
    /// Takes over a connection that is past its handshake.
    pub(super) fn start(
        server: &str,
        stream: TcpStream,
        welcome: Welcome,
        deadlines: &Deadlines,
    ) -> Result<Self, StoreError> {
        let failed = |error: io::Error| StoreError::io(server, "poll the connection", &error);
        stream.set_nonblocking(true).map_err(failed)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        let poll = Poll::new().map_err(failed)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, SOCKET, interest).map_err(failed)?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(failed)?;
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            ids: AtomicU64::new(0),
            state: Mutex::new(State::default()),
            drained: Condvar::new(),
            waker,
        });
        // A server that shows life rarely must be given the time to.
        let silence = deadlines.silence.max(welcome.keepalive.saturating_mul(4));
        let socket = Socket {
            poll,
            connection: Connection::new(stream, longest_message(welcome.max_value)),
            shared: Arc::clone(&shared),
            pulse: Pulse::new(silence, welcome.keepalive),
            look_every: welcome.keepalive.max(Duration::from_millis(1)),
            started: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("eplb-store-cli".to_owned())
            .spawn(move || socket.run())
            .map_err(|error| StoreError::io(server, "start a thread", &error))?;
        let (max_value, reply_grace) = (welcome.max_value, deadlines.reply_grace);
        Ok(Self { shared, max_value, reply_grace, thread: Some(thread) })
    }

    /// The server's address, as it was dialled.
    pub(super) fn server(&self) -> &str {
        &self.shared.server
    }

    /// Largest value that the server takes.
    pub(super) fn max_value(&self) -> usize {
        self.max_value
    }

    /// How far past its deadline a call waits for the server to say which keys are missing.
    pub(super) fn reply_grace(&self) -> Duration {
        self.reply_grace
    }

    /// Requests that are not sent, and requests that wait for a reply.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> (usize, usize) {
        let state = self.shared.lock();
        (state.queue.len(), state.pending.len())
    }

    /// Sends a request and waits for its reply.
    pub(super) fn call(&self, request: &Request<'_>, deadline: Instant) -> Result<Reply, StoreError> {
        request.keys().iter().try_for_each(|key| check_key(key))?;
        let start = Instant::now();
        let timeout = |waited| StoreError::Timeout {
            op: request.op(),
            keys: request.keys().iter().map(|key| (*key).to_owned()).collect(),
            waited,
        };
        let shared = &self.shared;
        let (sender, receiver) = mpsc::sync_channel(1);
        // Not 0, which is the server's sign of life.
        let id = 1 + shared.ids.fetch_add(1, Ordering::Relaxed);
        let message = request.encode(id);
        {
            let mut state = shared.lock();
            loop {
                if let Some(lost) = &state.lost {
                    return Err(lost.clone());
                }
                let left = left(deadline);
                if left.is_zero() {
                    return Err(timeout(start.elapsed()));
                }
                if state.queue_bytes <= longest_message(self.max_value) {
                    break;
                }
                (state, _) = shared.drained.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            }
            state.queue_bytes += message.len();
            state.queue.push_back((id, message));
            state.pending.insert(id, sender);
        }
        // Should waking fail, the thread sees the request when it next looks for signs of life.
        let _ = shared.waker.wake();

        let patience = left(deadline) + self.reply_grace;
        match receive(&receiver, patience) {
            Ok(Reply::Missing(positions)) => {
                let keys = request.keys();
                let missing = positions.iter().filter_map(|at| keys.get(*at as usize));
                Err(StoreError::Timeout {
                    op: request.op(),
                    keys: missing.map(|key| (*key).to_owned()).collect(),
                    waited: start.elapsed(),
                })
            }
            Ok(Reply::Refused(error)) => Err(error),
            Ok(reply) => Ok(reply),
            Err(RecvTimeoutError::Timeout) => {
                shared.withdraw(id);
                Err(timeout(start.elapsed()))
            }
            // The sender is dropped in one place, which sets `lost` first.
            Err(RecvTimeoutError::Disconnected) => Err(shared.lock().lost.clone().unwrap_or_else(|| {
                StoreError::Lost { store: shared.server.clone(), cause: "the client is closed".to_owned() }
            })),
        }
    }
}

/// The reply, within `patience`. Most come at once: where there are processors to spare, they are not slept for.
fn receive(receiver: &Receiver<Reply>, patience: Duration) -> Result<Reply, RecvTimeoutError> {
    let begun = Instant::now();
    while has_spare_processors() && begun.elapsed() < SOON.min(patience) {
        match receiver.try_recv() {
            Ok(reply) => return Ok(reply),
            Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) => std::thread::yield_now(),
        }
    }
    receiver.recv_timeout(patience.saturating_sub(begun.elapsed()))
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        if self.shared.waker.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            // It ends at once; a panic in it was printed when it happened.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("server", &self.shared.server)
            .field("lost", &self.shared.lock().lost)
            .finish_non_exhaustive()
    }
}

/// The client's thread: the socket, and what it needs to tell that the server is gone.
struct Socket {
    poll: Poll,
    connection: Connection,
    shared: Arc<Shared>,
    /// Bytes received, taken as the server's counter of life.
    pulse: Pulse,
    look_every: Duration,
    started: Instant,
}

impl Socket {
    fn run(mut self) {
        // Also when it panics, nobody waits for a reply that no thread would take in.
        let _lose = LoseOnDrop(Arc::clone(&self.shared));
        if let Err(cause) = self.serve() {
            self.shared.lose(cause);
        }
    }

    /// Until the last handle is dropped, or the store is lost for the reason returned.
    fn serve(&mut self) -> Result<(), String> {
        let mut events = Events::with_capacity(8);
        let mut eager = Eager::new();
        loop {
            let at_once = eager.looks(Instant::now());
            match self.poll.poll(&mut events, Some(if at_once { Duration::ZERO } else { self.look_every })) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.to_string()),
                _ => {}
            }
            if !events.is_empty() {
                eager.hear(Instant::now());
            } else if at_once {
                std::thread::yield_now();
                continue;
            }
            if self.shared.lock().closing {
                return Ok(());
            }
            // Reading first: what a server said before it closed the connection is still worth hearing.
            self.receive()?;
            self.send().map_err(|error| error.to_string())?;
            // The clock is looked at after the socket: a process that was stopped finds the server's signs of life
            // there before it can conclude that there were none.
            let life = self.pulse.observe(Some(self.connection.received()), self.started.elapsed());
            if life.is_dead() {
                return Err(
                    "no sign of life from it; its host is down, cut off, or its process stopped".to_owned()
                );
            }
        }
    }

    /// Hands queued requests to the socket until it takes no more.
    fn send(&mut self) -> io::Result<()> {
        loop {
            self.connection.flush()?;
            let mut state = self.shared.lock();
            if self.connection.outgoing_bytes() > 0 || state.queue.is_empty() {
                return Ok(());
            }
            while self.connection.outgoing_bytes() < SENT_AT_ONCE
                && let Some((_, message)) = state.queue.pop_front()
            {
                state.queue_bytes -= message.len();
                self.connection.push(Piece::Own(message));
            }
            self.shared.drained.notify_all();
        }
    }

    fn receive(&mut self) -> Result<(), String> {
        loop {
            match self.connection.read(&mut |_| true).map_err(|error| error.to_string())? {
                Input::Message(message) => {
                    let (id, reply) = decode_reply(&message, &self.shared.server)
                        .map_err(|detail| format!("a reply makes no sense: {detail}"))?;
                    match (id, reply) {
                        (0, Reply::Refused(error)) => return Err(error.to_string()),
                        (0, _) => {}
                        (id, reply) => {
                            // A reply that nobody waits for any more came too late.
                            if let Some(sender) = self.shared.lock().pending.remove(&id) {
                                let _ = sender.try_send(reply);
                            }
                        }
                    }
                }
                Input::Blocked => return Ok(()),
                Input::Closed => return Err("the server closed the connection".to_owned()),
                Input::TooLong(length) | Input::NotAdmitted(length) => {
                    return Err(format!("a reply of {length} bytes is longer than any may be"));
                }
            }
        }
    }
}

struct LoseOnDrop(Arc<Shared>);

impl Drop for LoseOnDrop {
    fn drop(&mut self) {
        self.0.lose("the client's thread has ended".to_owned());
    }
}
