//! The `gloo` backend: experts move between processes over TCP through Gloo, from and to host memory, or devices.
//!
//! It is the way between machines that have no NCCL, and the way to run the whole protocol with real processes and no GPU.
//! [`GlooCommunicator::connect`], for slots on a device [`GlooCommunicator::connect_device`], finds the other ranks through a
//! [`Store`](eplb_comm::store::Store).
//!
//! # How bytes travel
//! An expert is cut into messages, the same on both sides whatever their pitches ([`cut`]): one that carries a header and all small
//! tensors packed together, and pieces of the large ones, which go straight from slot to slot or staging, without a copy, where their
//! rows lie without gaps. Every message has a slot of its own, made of generation, wave and place in the wave ([`slot`]), so
//! that nothing of an earlier wave, of an earlier context or of another wave list is ever taken for it. The header names the expert;
//! the receiver checks it before it names the content of the place.
//!
//! From and to a device every message goes through packing memory, which is pinned then: a lane copies a message there before it sends it, and copies one that
//! it has received to its place before it counts, on a stream of its own. It looks for the end of a copy and never waits for a stream; meanwhile Gloo goes
//! on with the other messages of the window. Packing memory is bounded by [`Options::packing_bytes`], whatever the slots take.
//!
//! A *lane* is a thread with packing memory of its own, which carries one direction of one wave at a time: it posts a window of messages
//! in the canonical order of the wave and waits for the oldest. Lanes that send wait for sends alone, lanes that receive for receives.
//! All ranks keep the order, so the first message that is not through yet is posted on both of its sides: lanes cannot wait
//! for each other in a circle. Waves take lanes in the order of submission.
//!
//! # How failures travel
//! Gloo's waits are blocked on without a time limit, since one that expires breaks every connection, and are cancelled from the progress
//! thread. A rank that fails (a connection broke, a deadline passed, an abort) first makes its own memory quiet, then puts a
//! record in the Store, where the first one stays, and rings every other rank; these do the same and report what the
//! record says: the rank that failed first and why, and not the broken connections that followed. A communicator that has failed stays
//! so; [`GlooCommunicator::rebuild`] makes a new one, under the next *generation*, with keys and slots of its own.
//!
//! What goes over the network is neither encrypted nor, beyond a nonce that only readers of the Store know, authenticated:
//! choose an interface that only the ranks can reach. Gloo's listening ports are open while ranks connect: whoever cannot say a secret
//! drawn from the nonces is turned away, at no cost, and what breaks Gloo's protocol later is an error and ends no process.

mod alarm;
mod cells;
mod check;
mod communicator;
pub mod cut;
mod error;
mod facts;
mod header;
mod hello;
mod lane;
mod memory;
mod mesh;
mod options;
mod pairs;
mod plain;
mod progress;
mod run;
mod sentry;
mod shared;
pub mod slot;
mod ticket;
mod words;

pub use communicator::GlooCommunicator;
pub use error::GlooError;
pub use gloo_sys::{Device, Gloo, LoadError};
pub use options::{Options, Planted};
pub use pairs::GlooPairs;
pub use plain::{Plain, PlainLoop};
