//! The `nccl` and `pynccl` backends: experts travel as grouped sends and receives of NCCL, over a communicator of our own.
//!
//! What makes them safe beside other work of NCCL on the same devices:
//! - **One order.** Waves are launched in an order that all ranks agree on through the [`Store`](eplb_comm::store::Store),
//!   once every rank is ready for the wave and has the same hash of it. No byte moves before.
//! - **Small groups.** A wave is cut into groups of at most [`Options::operations`] sends and receives per rank, cut
//!   alike on all ranks.
//! - **Few messages.** Large tensors go from where they lie to where they land; all else of an expert is gathered into one message.
//! - **Bounded appetite.** [`Options::config`] caps the thread blocks that a group may take.
//! - **Everything ends.** A wave that is late, an error of NCCL, or a rank that gave up aborts the communicator on this rank,
//!   names the cause, and tells the other ranks through the Store. A communicator that was aborted is not mended: a new
//!   one is made under a new epoch.
//! - **Everything is opened at start-up**: [`connect`] makes the communicator, opens every pair of ranks and takes all memory.

mod agree;
mod beside;
mod channels;
mod communicator;
mod connect;
mod cut;
mod error;
mod lane;
mod options;
mod pairs;
mod peers;
mod plain;
mod shared;
mod ticket;

pub use beside::{Collectives, Lend, Served};
pub use communicator::{NcclCommunicator, Pump};
pub use connect::{Rendezvous, connect, connect_lent, orders_launches_itself};
pub use error::NcclCommError;
pub use options::{Backend, Gather, Launch, Options};
pub use pairs::NcclPairs;
pub use plain::Sends;
