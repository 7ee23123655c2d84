//! Ranks as parts of one process: transfers are copies between their memories, run by threads of the group.

mod check;
mod communicator;
mod copier;
mod group;
mod pool;
mod queue;
mod ticket;

pub use communicator::LocalCommunicator;
pub use group::LocalGroup;
