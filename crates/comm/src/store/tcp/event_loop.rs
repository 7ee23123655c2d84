//! The serving thread: polls sockets, carries out requests one by one, answers waits.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Registry, Token as Id};

use super::connection::{Connection, Input};
use super::greeting::{Greeting, Step, Terms};
use super::handshake::{CLIENT_HELLO_BYTES, Welcome};
use super::message::{Piece, Reply, encode_reply, longest_message};
use super::server::{ServerOptions, StatCells};
use super::service::Service;
use super::waiters::Answer;
use crate::store::deadlines::after;
use crate::store::eager::Eager;
use crate::store::error::StoreError;

/// Wakes the loop to stop.
pub(super) const WAKER: Id = Id(usize::MAX);
const LISTENER: Id = Id(usize::MAX - 1);

/// Messages of one client in a row, before the others get their turn.
const TURN: usize = 16;
/// Messages up to this size are received whatever `max_buffer` says: at most this much for each client.
const SMALL: usize = 4096;
/// Pause after accepting failed: no descriptors are left, and asking again at once would find none.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a connection is closed; decides what it counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It went away, or was turned away for no fault of its own.
    Gone,
    /// No hello.
    Junk,
    /// It does not know the token.
    WrongToken,
    /// A client that broke the protocol.
    Broken,
}

#[derive(Debug)]
struct Peer {
    connection: Connection,
    /// Its handshake, until it is a client.
    greeting: Option<Greeting>,
    /// Moment by which the handshake, or the message that has begun, must be complete.
    due: Option<Instant>,
    /// Bytes of the buffer budget that it holds.
    admitted: usize,
    /// Whether it is in the queue of those to be read.
    queued: bool,
}

pub(super) struct EventLoop {
    poll: Poll,
    listener: mio::net::TcpListener,
    options: ServerOptions,
    stop: Arc<AtomicBool>,
    stats: Arc<StatCells>,
    service: Service,
    peers: HashMap<usize, Peer>,
    /// Connections in their handshake, oldest first.
    handshaking: BTreeSet<usize>,
    next_id: usize,
    dues: BTreeSet<(Instant, usize)>,
    /// Who may have something to be read.
    ready: VecDeque<usize>,
    /// Who waits for room in the buffer budget, in order.
    starved: VecDeque<usize>,
    buffer: usize,
    /// Bytes of replies that wait to be sent.
    outgoing: usize,
    next_keepalive: Instant,
    accept_again: Option<Instant>,
    eager: Eager,
}

impl EventLoop {
    pub(super) fn new(
        listener: TcpListener,
        options: ServerOptions,
        stop: Arc<AtomicBool>,
        stats: Arc<StatCells>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = mio::net::TcpListener::from_std(listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            stop,
            stats,
            service: Service::new(&options),
            peers: HashMap::new(),
            handshaking: BTreeSet::new(),
            next_id: 0,
            dues: BTreeSet::new(),
            ready: VecDeque::new(),
            starved: VecDeque::new(),
            buffer: 0,
            outgoing: 0,
            next_keepalive: after(options.deadlines.keepalive),
            accept_again: None,
            eager: Eager::new(),
            options,
        })
    }

    pub(super) fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    pub(super) fn run(&mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let at_once = !self.ready.is_empty() || self.eager.looks(Instant::now());
            let patience = if at_once { Duration::ZERO } else { self.until_next_alarm() };
            match self.poll.poll(&mut events, Some(patience)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The poll itself is broken: closing all connections tells every client that the store is lost.
                Err(_) => return,
            }
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            if !events.is_empty() {
                self.eager.hear(Instant::now());
            } else if at_once && self.ready.is_empty() {
                std::thread::yield_now();
            }
            for event in &events {
                match event.token() {
                    WAKER => {}
                    LISTENER => self.accept(),
                    Id(id) => self.woken(id),
                }
            }
            for _ in 0..self.ready.len() {
                let Some(id) = self.ready.pop_front() else { break };
                self.serve(id);
            }
            self.alarms(Instant::now());
            self.publish();
        }
    }

    fn until_next_alarm(&self) -> Duration {
        let due = self.dues.first().map(|(due, _)| *due);
        let alarms = [due, self.service.waiters().next_deadline(), self.accept_again];
        let next = alarms.into_iter().flatten().fold(self.next_keepalive, Instant::min);
        // Poll counts in milliseconds; rounding down would spin through the last one.
        next.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
    }

    /// Takes in all who knock. Events come once per arrival, so it goes on until nobody is left.
    fn accept(&mut self) {
        self.accept_again = None;
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => {
                        self.accept_again = Some(after(ACCEPT_PAUSE));
                        return;
                    }
                },
            };
            let id = self.next_id;
            // Ids are not used twice: a late event of a closed connection finds nobody. 2^64 - 2 connections.
            self.next_id += 1;
            let interest = Interest::READABLE | Interest::WRITABLE;
            if stream.set_nodelay(true).is_err()
                || self.poll.registry().register(&mut stream, Id(id), interest).is_err()
            {
                continue;
            }
            if self.handshaking.len() >= self.options.max_handshaking
                && let Some(&oldest) = self.handshaking.first()
            {
                self.close(oldest, End::Junk);
            }
            let connection = Connection::new(stream, longest_message(self.options.limits.max_value));
            let greeting = Some(Greeting::new());
            let peer = Peer { connection, greeting, due: None, admitted: 0, queued: true };
            self.peers.insert(id, peer);
            self.handshaking.insert(id);
            self.set_due(id, Some(after(self.options.deadlines.handshake)));
            self.ready.push_back(id);
        }
    }

    /// A socket has become readable or writable.
    fn woken(&mut self, id: usize) {
        self.flush(id);
        self.queue(id);
    }

    /// Sends what a connection's socket takes.
    fn flush(&mut self, id: usize) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let before = peer.connection.outgoing_bytes();
        let sent = peer.connection.flush();
        self.outgoing -= before - peer.connection.outgoing_bytes();
        if sent.is_err() {
            self.close(id, End::Gone);
        }
    }

    fn queue(&mut self, id: usize) {
        if let Some(peer) = self.peers.get_mut(&id)
            && !peer.queued
        {
            peer.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Reads and answers what a connection has, up to a turn's worth.
    fn serve(&mut self, id: usize) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.queued = false;
        if peer.greeting.is_some() {
            match self.handshake(id) {
                Ok(true) => {}
                Ok(false) => return,
                Err(end) => return self.close(id, end),
            }
        }
        for _ in 0..TURN {
            match self.receive(id) {
                Ok(Some(message)) => {
                    if let Err(end) = self.carry_out(id, &message) {
                        return self.close(id, end);
                    }
                }
                Ok(None) => return,
                Err(end) => return self.close(id, end),
            }
        }
        self.queue(id);
    }

    /// Goes on with a handshake; whether the connection is a client's.
    fn handshake(&mut self, id: usize) -> Result<bool, End> {
        let options = &self.options;
        let terms = Terms {
            token: options.token.as_ref(),
            busy: self.peers_open() >= options.max_connections,
            welcome: Welcome { max_value: options.limits.max_value, keepalive: options.deadlines.keepalive },
        };
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(false) };
        while let Some(greeting) = &mut peer.greeting {
            let mut chunk = [0; CLIENT_HELLO_BYTES];
            let wanted = greeting.wanted().min(chunk.len());
            let step = match peer.connection.read_some(&mut chunk[..wanted]) {
                Ok(Some(0)) | Err(_) => return Err(End::Junk),
                Ok(Some(count)) => greeting.take(&chunk[..count], &terms),
                Ok(None) => return Ok(false),
            };
            let (say, end) = match step {
                Step::More => continue,
                Step::Junk => return Err(End::Junk),
                Step::Say(say) => (say, None),
                Step::Admit(say) => {
                    peer.greeting = None;
                    self.handshaking.remove(&id);
                    (say, None)
                }
                Step::Refuse { say, wrong_token: true } => (say, Some(End::WrongToken)),
                Step::Refuse { say, wrong_token: false } => (say, Some(End::Gone)),
            };
            self.outgoing += say.len();
            peer.connection.push(Piece::Own(say));
            let before = peer.connection.outgoing_bytes();
            let sent = peer.connection.flush();
            self.outgoing -= before - peer.connection.outgoing_bytes();
            match end {
                Some(end) => return Err(end),
                None => sent.map_err(|_| End::Gone)?,
            }
        }
        self.set_due(id, None);
        Ok(true)
    }

    fn peers_open(&self) -> usize {
        self.peers.len() - self.handshaking.len()
    }

    /// The next whole message of a client, if there is one for now.
    fn receive(&mut self, id: usize) -> Result<Option<Vec<u8>>, End> {
        let max_buffer = self.options.max_buffer;
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(None) };
        if peer.connection.outgoing_bytes() > longest_message(self.options.limits.max_value) {
            // It does not read its replies. When it does, its socket becomes writable, and its requests go on.
            return Ok(None);
        }
        let (buffer, admitted) = (&mut self.buffer, &mut peer.admitted);
        // Who comes later does not overtake: a large message would otherwise starve behind smaller ones.
        let turn = self.starved.front().is_none_or(|first| *first == id);
        let input = peer.connection.read(&mut |length| {
            let fits = length <= SMALL || (turn && *buffer + length <= max_buffer);
            if fits {
                *buffer += length;
                *admitted = length;
            }
            fits
        });
        self.stats.peak_buffer.fetch_max(self.buffer as u64, Ordering::Relaxed);
        let (let_in, late_from_now) = (peer.admitted > 0, peer.due.is_none() && peer.connection.in_message());
        if let_in {
            self.leave_line(id);
        }
        match input.map_err(|_| End::Gone)? {
            Input::Message(message) => {
                self.set_due(id, None);
                // Handed over whole and dropped before the next one is read: its bytes count no longer.
                self.release(id);
                Ok(Some(message))
            }
            Input::Blocked => {
                if late_from_now {
                    self.set_due(id, Some(after(self.options.deadlines.frame)));
                }
                Ok(None)
            }
            Input::NotAdmitted(_) => {
                // It is not late as long as it is not let in.
                self.set_due(id, None);
                if !self.starved.contains(&id) {
                    self.starved.push_back(id);
                }
                Ok(None)
            }
            Input::TooLong(length) => {
                let refusal = StoreError::TooLarge {
                    what: "request",
                    key: "(unread)".to_owned(),
                    bytes: length,
                    limit: longest_message(self.options.limits.max_value),
                };
                self.reply(id, 0, &Reply::Refused(refusal));
                Err(End::Broken)
            }
            Input::Closed => Err(End::Gone),
        }
    }

    /// Gives the memory of a connection's message back to the budget, and lets the next in line in.
    fn release(&mut self, id: usize) {
        if let Some(peer) = self.peers.get_mut(&id) {
            self.buffer -= std::mem::take(&mut peer.admitted);
        }
        self.leave_line(id);
    }

    /// Takes a connection out of the line of those who wait for room; whoever is first then may try.
    fn leave_line(&mut self, id: usize) {
        self.starved.retain(|starved| *starved != id);
        if let Some(&next) = self.starved.front() {
            self.queue(next);
        }
    }

    fn carry_out(&mut self, id: usize, message: &[u8]) -> Result<(), End> {
        match self.service.carry_out(id, message) {
            Ok(answers) => {
                self.send(answers);
                Ok(())
            }
            Err(detail) => {
                let (store, detail) = ("request".to_owned(), detail.to_owned());
                self.reply(id, 0, &Reply::Refused(StoreError::Protocol { store, detail }));
                Err(End::Broken)
            }
        }
    }

    fn send(&mut self, answers: Vec<Answer>) {
        for answer in answers {
            self.reply(answer.client, answer.request, &answer.reply);
        }
    }

    fn reply(&mut self, id: usize, request: u64, reply: &Reply) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        for piece in encode_reply(request, reply) {
            self.outgoing += piece.bytes().len();
            peer.connection.push(piece);
        }
        self.flush(id);
    }

    fn set_due(&mut self, id: usize, due: Option<Instant>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Some(old) = std::mem::replace(&mut peer.due, due) {
            self.dues.remove(&(old, id));
        }
        if let Some(due) = due {
            self.dues.insert((due, id));
        }
    }

    fn alarms(&mut self, now: Instant) {
        if self.accept_again.is_some_and(|again| again <= now) {
            self.accept();
        }
        while let Some(&(due, id)) = self.dues.first()
            && due <= now
        {
            self.dues.remove(&(due, id));
            let open = self.peers.get(&id).is_some_and(|peer| peer.greeting.is_none());
            self.close(id, if open { End::Broken } else { End::Junk });
        }
        let answers = self.service.expired(now);
        self.send(answers);
        if self.next_keepalive <= now {
            self.next_keepalive = after(self.options.deadlines.keepalive);
            self.show_life();
        }
    }

    /// A sign of life for every client that gets nothing else.
    fn show_life(&mut self) {
        let idle = |peer: &Peer| peer.greeting.is_none() && peer.connection.outgoing_bytes() == 0;
        let idle: Vec<usize> = self.peers.iter().filter(|(_, peer)| idle(peer)).map(|(id, _)| *id).collect();
        for id in idle {
            self.reply(id, 0, &Reply::Alive);
        }
    }

    fn close(&mut self, id: usize, end: End) {
        self.release(id);
        self.set_due(id, None);
        let Some(mut peer) = self.peers.remove(&id) else { return };
        self.outgoing -= peer.connection.outgoing_bytes();
        self.handshaking.remove(&id);
        self.service.forget(id);
        // It is closed when it is dropped; should this fail, the poll forgets it then.
        let _ = self.poll.registry().deregister(peer.connection.stream());
        let counter = match end {
            End::Junk => &self.stats.junk,
            End::WrongToken => &self.stats.wrong_token,
            End::Broken => &self.stats.broken,
            End::Gone => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn publish(&self) {
        let show = |cell: &AtomicU64, value: usize| cell.store(value as u64, Ordering::Relaxed);
        show(&self.stats.clients, self.peers_open());
        show(&self.stats.handshaking, self.handshaking.len());
        show(&self.stats.keys, self.service.table().len());
        show(&self.stats.bytes, self.service.table().bytes());
        show(&self.stats.waiters, self.service.waiters().len());
        show(&self.stats.buffer, self.buffer);
        show(&self.stats.starved, self.starved.len());
        show(&self.stats.outgoing, self.outgoing);
    }
}
