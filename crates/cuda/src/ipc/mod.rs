//! Device memory that other processes of the host open: handles out, mappings in.
//!
//! There are three kinds of handles. *Legacy* ones are bytes, for memory of `cuMemAlloc` (and `cudaMalloc`, which PyTorch uses by default); one
//! stands for the whole allocation that an address lies in. *Descriptors* are files, for memory of the virtual memory calls whose creator
//! asked for them (PyTorch's expandable segments among them), chunk by chunk. *Fabric* handles are bytes for such memory, where device
//! and driver have them. Memory of stream-ordered pools, and virtual memory whose creator asked for nothing, cannot be opened by anybody: that is
//! an error with its reason ([`CudaError::NotShareable`](crate::CudaError)).
//!
//! An exporter's memory must stay until its readers have closed it, unless its process ends: then the driver keeps it for them.

mod block;
mod export;
mod handle;
mod mark;
mod open;

pub use block::{HandleKind, VmmBlock};
pub use export::{Export, export};
pub use handle::{Chunk, Handle, Spot};
pub use mark::Mark;
pub use open::Opened;
