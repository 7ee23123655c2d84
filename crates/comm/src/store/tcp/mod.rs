//! A store over TCP: one rank serves ([`StoreServer`]), all connect ([`TcpStore`]).
//!
//! The server is one thread that polls all sockets: operations are ordered by being carried out one after another,
//! thousands of idle ranks cost no threads, a slow client costs its own buffer and nothing else. A client is one
//! thread as well, which is what notices a lost server while nobody is asking. Messages are length-prefixed and
//! binary, behind a handshake with magic, version and proof of a shared secret.
//!
//! # Trust
//! A server that listens on anything but loopback needs a [`Token`]; server and client then prove to each other that
//! they know it, by a keyed hash over fresh nonces, so that the token itself never travels. What follows is neither
//! encrypted nor signed: the network between the ranks is trusted not to alter connections, as it is for the weights.
//!
//! # Bounds
//! The server holds at most [`Limits::max_total`](super::Limits) bytes of entries, `max_buffer` bytes of messages
//! that are being received, `max_waiters` and `max_waiter_bytes` of blocked waits, `max_connections` clients, and, for
//! a client that does not read them, one message of replies and those to its waits; values in replies are shared with
//! the entries. Who has not proved itself costs 42 bytes, for as long as `handshake`.
//!
//! # When something dies
//! A client that dies takes its connection and its waits with it and nothing else; what it wrote stays. A server that
//! dies, or shows no sign of life for `silence`, is [`StoreError::Lost`](super::StoreError::Lost) for every operation
//! under way and every later one. **A client never reconnects**: a server that was started again has forgotten
//! everything, and of an operation that was under way nobody knows whether it took effect. A new [`TcpStore`] is a
//! new start, under a new epoch.
//!
//! A client whose process is *stopped* stays connected, and goes on when it resumes. One whose host vanishes without a
//! word keeps its place until the kernel gives up sending it signs of life, after some minutes.
//!
//! # Memory ordering
//! An operation that saw the effect of another happens after it, in whichever processes the two were: both passed
//! through the server's one thread.

mod client;
mod connection;
mod dial;
mod event_loop;
mod greeting;
mod handshake;
mod link;
mod message;
mod server;
mod service;
mod token;
mod waiters;

pub use client::TcpStore;
pub use server::{ServerOptions, ServerStats, StoreServer};
pub use token::{Token, TokenError};

#[cfg(test)]
pub(crate) use handshake::{CLIENT_HELLO_BYTES, MAGIC, SERVER_HELLO_BYTES, VERSION, WELCOME_BYTES};
#[cfg(test)]
pub(crate) use message::{Reply, Request, decode_reply, encode_reply};
