//! The `peer` backend: each rank's copy engines pull experts straight from the memory of the others. No kernel runs, so
//! there is nothing that could take a multiprocessor from a server, or deadlock with its collectives.
//!
//! What makes it safe:
//! - **No stream waits for another rank.** A pull is enqueued only once its source has said, in a word that only it writes,
//!   that the wave may start there ([`Words`]). From then on it depends on nobody: it ends by itself.
//! - **Pulls need no flush.** The reader fetches, so what it has read is what was there; nobody writes into another
//!   rank's memory.
//! - **An abort stops enqueuing** and lets the rank's own copies end, which takes milliseconds. A rank that gives up says
//!   so in its word, and those that wait for it fail by name.
//! - **Order is a state machine** without IO ([`Lane`]), which tests drive through orders of events; the words are tried with loom
//!   (`tests/words`), and threads, words and machine together with shuttle (`tests/schedules`).
//!
//! Ranks are threads of one process that may reach each other's devices ([`connect`]), or processes of one host ([`process`]), where the same
//! order runs on host memory too.

mod communicator;
mod connect;
mod engine;
mod lane;
mod options;
mod order;
mod pace;
#[cfg(target_os = "linux")]
pub mod process;
mod pulls;
mod reading;
mod shared;
mod speed;
mod sync;
mod turns;
mod words;

pub use communicator::PeerCommunicator;
pub use connect::connect;
pub use lane::{Lane, Step};
pub use options::Options;
pub use order::{source_after_source, sources_in_turn};
pub use pace::Pace;
pub use turns::{Candidate, Run, Turns};
pub use words::{Ready, Words};

/// Name of the backend on host memory: never that of figures of GPUs.
pub const HOST_BACKEND: &str = "peer (host memory)";
