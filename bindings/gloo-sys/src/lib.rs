//! Gloo's TCP transport for Rust: a full mesh of connections between ranks, sends and receives with slots, and a few collectives.
//!
//! Gloo is C++ and throws. `shim/` wraps what is needed of it in a C interface that lets no exception out; it is compiled
//! into a library of its own, `libeplb_gloo.so`, where Gloo's headers are (Debian's `libgloo-dev`), and loaded by [`Gloo::load`] at
//! run time. A program that depends on this crate builds and starts without Gloo, and is told what to do when it asks for it.
//!
//! The library is opened with local, deep binding: PyTorch carries a Gloo of its own with the same symbols, and both must live
//! in one process without seeing each other.
//!
//! What to know of Gloo's waits: one that runs out of time breaks *every* connection of its context, so a wait is blocked on by a
//! thread and cancelled by another ([`Buffer::cancel_send`], [`Buffer::cancel_recv`]). After any error a context is spent: make
//! a new one under keys of its own.

mod buffer;
mod context;
mod error;
mod library;
mod store;

/// The C interface, as bindgen reads `shim/eplb_gloo.h`. `tests/bindings.rs` keeps it in step.
#[allow(dead_code, missing_docs, missing_debug_implementations, non_camel_case_types, non_upper_case_globals)]
#[allow(unreachable_pub, clippy::all, clippy::undocumented_unsafe_blocks, rustdoc::all)]
#[rustfmt::skip]
mod bindings;

pub use buffer::{Buffer, Wait};
pub use context::{Context, Device, Secret};
pub use error::{GlooError, Kind, LoadError};
pub use library::Gloo;
pub use store::Rendezvous;
