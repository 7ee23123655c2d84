//! The serving side, as its owner sees it.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use mio::Waker;

use super::event_loop::{EventLoop, WAKER};
use super::message::{LARGEST_MAX_VALUE, longest_message};
use super::token::Token;
use crate::store::deadlines::Deadlines;
use crate::store::error::StoreError;
use crate::store::limits::Limits;

/// How a server serves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// What it holds; clients learn `max_value` from it.
    pub limits: Limits,
    /// `keepalive`, `handshake` and `frame` are used.
    pub deadlines: Deadlines,
    /// The secret that clients must know. Needed on anything but loopback.
    pub token: Option<Token>,
    /// Clients at a time. Default 4,096.
    pub max_connections: usize,
    /// Connections at a time that have not proved themselves; beyond, the oldest is closed. Default 128.
    pub max_handshaking: usize,
    /// Waits at a time. Default 16,384.
    pub max_waiters: usize,
    /// Bytes of their keys, bookkeeping included. Default 64 MiB.
    pub max_waiter_bytes: usize,
    /// Bytes of messages that are being received; at least one message of the largest size is always taken.
    /// Messages beyond wait in their client's socket. Default 64 MiB.
    pub max_buffer: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            deadlines: Deadlines::DEFAULT,
            token: None,
            max_connections: 4096,
            max_handshaking: 128,
            max_waiters: 16384,
            max_waiter_bytes: 64 << 20,
            max_buffer: 64 << 20,
        }
    }
}

/// What a server has done and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerStats {
    /// Clients connected now.
    pub clients: u64,
    /// Connections now that have not proved themselves.
    pub handshaking: u64,
    /// Keys held now.
    pub keys: u64,
    /// Bytes of entries held now.
    pub bytes: u64,
    /// Waits blocked now.
    pub waiters: u64,
    /// Bytes taken now for messages that are being received.
    pub buffer: u64,
    /// Most of the latter at any time.
    pub peak_buffer: u64,
    /// Clients now whose message waits for room in the buffer.
    pub starved: u64,
    /// Bytes of replies now that wait to be sent.
    pub outgoing: u64,
    /// Connections closed because their first bytes were no hello, or came too late or not at all.
    pub junk: u64,
    /// Connections closed because they did not know the token.
    pub wrong_token: u64,
    /// Clients closed because they broke the protocol: an oversized, malformed or never completed message.
    pub broken: u64,
}

macro_rules! cells {
    ($($name:ident),*) => {
        /// [`ServerStats`] as the server's thread keeps them. Counters for people: each is right by itself, relaxed
        /// reads of several need not fit together.
        #[derive(Debug, Default)]
        pub(super) struct StatCells { $(pub(super) $name: AtomicU64),* }

        impl StatCells {
            fn read(&self) -> ServerStats {
                ServerStats { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }
    };
}

cells!(
    clients,
    handshaking,
    keys,
    bytes,
    waiters,
    buffer,
    peak_buffer,
    starved,
    outgoing,
    junk,
    wrong_token,
    broken
);

/// Serves a store from a thread of this process until it is dropped. See the [module](super).
///
/// The rank that serves uses it as all others do, through a [`TcpStore`](super::TcpStore) of its own.
#[derive(Debug)]
pub struct StoreServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    stats: Arc<StatCells>,
    thread: Option<JoinHandle<()>>,
}

impl StoreServer {
    /// Listens at `address` (port 0: any free one) and serves.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the address is not loopback and there is no token; [`StoreError::TooLarge`] for a
    /// `max_value` beyond 1 GiB; [`StoreError::Io`] when the address cannot be listened at or no thread be had.
    pub fn bind(address: SocketAddr, options: ServerOptions) -> Result<Self, StoreError> {
        if options.token.is_none() && !is_loopback(address.ip()) {
            return Err(StoreError::Refused {
                store: address.to_string(),
                reason: format!(
                    "a server that others can reach needs a token: set {} on all ranks (`openssl rand -hex 32`), \
                     or listen on 127.0.0.1",
                    Token::VARIABLE
                ),
            });
        }
        if options.limits.max_value > LARGEST_MAX_VALUE {
            return Err(StoreError::TooLarge {
                what: "value",
                key: "(any)".to_owned(),
                bytes: options.limits.max_value,
                limit: LARGEST_MAX_VALUE,
            });
        }
        let failed = |action: &str, error: &std::io::Error| StoreError::io(address, action, error);
        let listener = TcpListener::bind(address).map_err(|error| failed("listen", &error))?;
        let bound = listener.local_addr().map_err(|error| failed("listen", &error))?;
        listener.set_nonblocking(true).map_err(|error| failed("listen", &error))?;

        let stop = Arc::new(AtomicBool::new(false));
        let stats = Arc::new(StatCells::default());
        let max_buffer = options.max_buffer.max(longest_message(options.limits.max_value));
        let options = ServerOptions { max_buffer, ..options };
        let mut event_loop = EventLoop::new(listener, options, Arc::clone(&stop), Arc::clone(&stats))
            .map_err(|error| failed("poll", &error))?;
        let waker = Waker::new(event_loop.registry(), WAKER).map_err(|error| failed("poll", &error))?;
        let thread = std::thread::Builder::new()
            .name("eplb-store-srv".to_owned())
            .spawn(move || event_loop.run())
            .map_err(|error| failed("start a thread", &error))?;
        Ok(Self { address: bound, stop, waker: Arc::new(waker), stats, thread: Some(thread) })
    }

    /// The address it listens at, with the port that was chosen.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// What it has done and holds.
    pub fn stats(&self) -> ServerStats {
        self.stats.read()
    }
}

impl Drop for StoreServer {
    /// Closes all connections: every client gets [`StoreError::Lost`].
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if self.waker.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            // It ends at once; a panic in it was printed, and has closed the connections as well.
            let _ = thread.join();
        }
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
