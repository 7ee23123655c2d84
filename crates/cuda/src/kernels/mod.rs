//! The GPU kernels of `kernels/*.cu`: load recording, dispatch, copies of rows, commits, checksums, and one
//! that takes every multiprocessor for tests of what runs beside it.
//!
//! What each of them computes is defined by its twin in [`eplb_comm::kernels`]. They come as machine code from a folder
//! (`make kernels`), or are compiled at start-up by NVRTC from the source that this crate carries.

mod args;
pub mod check;
mod compile;
mod crowd;
mod image;
mod launch;

pub use args::{DeviceChoices, DeviceCounts, DeviceList, DeviceMaps, IdType};
pub(crate) use compile::compile;
pub use crowd::Crowd;
pub use launch::Kernels;
pub(crate) use launch::{Shape, start};
