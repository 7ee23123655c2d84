//! Slots and staging in memory that other processes of the host can open: what memory behind an IPC handle is to a GPU.
//!
//! The owner works on it through guards, as on any [`HostMemory`](super::HostMemory). Others open it to read alone ([`Foreign`]), and hold
//! no lock that would stay behind if they died. They are kept from wrong reads by the tag of each slot instead, which lies in the same
//! memory: it names what the slot holds and counts its writes, and a reader compares it before and after its copy.
//!
//! The memory is an anonymous file (`memfd`), sealed at its size, so that no access can go past its end. It has no name: it is given to
//! others as a descriptor, lives while anybody has it mapped, and leaves nothing behind, whoever dies.

mod foreign;
mod map;
pub(super) mod segment;

pub use foreign::Foreign;
pub use map::Spots;
pub use segment::{ForeignSegment, Segment, SegmentError};
