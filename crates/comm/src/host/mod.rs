//! Twins of device memory, streams and fences on host memory: the whole engine runs on them with no accelerator.

mod apart;
mod check;
mod content;
mod copy;
mod fence;
mod guards;
mod lock;
mod memory;
mod plant;
mod region;
#[cfg(target_os = "linux")]
pub mod shared;
mod site;
mod split;
mod staging;
mod stream;
mod tags;
mod worker;

pub use apart::places_apart;
pub use content::{Content, Generation};
pub use copy::copy;
pub use fence::HostFence;
pub use guards::{ReadGuard, WriteGuard};
pub use memory::HostMemory;
#[cfg(target_os = "linux")]
pub use shared::{Foreign, ForeignSegment, Segment, SegmentError, Spots};
pub use stream::{HostStream, StreamOptions};

pub(crate) use plant::CopyFault;
pub(crate) use split::SplitCopy;
pub use worker::panic_message;
