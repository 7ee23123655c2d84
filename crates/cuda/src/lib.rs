//! The expert-parallel load balancer on NVIDIA GPUs: memory, streams and fences as `eplb-comm` defines them, on the
//! CUDA driver found at run time. Nothing of CUDA is needed to build, and [`probe()`] says what is missing to run.
//!
//! A server's own context, stream and memory are *borrowed*: used, never destroyed or freed. Nothing here synchronizes a
//! device or a stream that is not its own; nothing is allocated after start-up but events, which are kept and used again.
//!
//! This crate alone uses cudarc, and of it the raw driver calls only: its safe layer synchronizes and frees where a guest
//! in a server's process must not.

pub mod ahead;
mod batch;
mod call;
pub mod capture;
pub mod compute;
pub mod context;
pub mod copy;
pub mod error;
pub mod event;
pub mod forward;
pub mod inspect;
#[cfg(unix)]
pub mod ipc;
pub mod kernels;
pub mod maps;
pub mod memory;
pub mod mirror;
pub mod module;
#[cfg(unix)]
pub mod nvtx;
pub mod peer;
pub mod pool;
pub mod probe;
pub mod ring;
pub mod server;
mod spare;
pub mod stream;
pub mod tally;
pub mod together;

pub use ahead::{CommitList, CommitLists};
pub use batch::RowCopies;
pub use capture::keep_out_of_captures;
pub use compute::DeviceStream;
pub use context::Context;
pub use copy::Rows;
pub use error::CudaError;
pub use event::{CudaFence, Events};
pub use inspect::Inspector;
pub use maps::{MapAddresses, MapBlock, MapEntries, MapShape, Upload};
pub use memory::DeviceMemory;
pub use mirror::Mirror;
pub use module::Module;
pub use peer::Puller;
pub use pool::{DeviceBlock, PinnedBlock};
pub use probe::{DeviceFacts, Probe, probe};
pub use ring::{Arrived, Ring};
pub use server::{MOST_STREAMS, ServerStreams, check_streams};
pub use stream::CudaStream;
pub use tally::{Tallied, Tally, TallyAddresses, TallyShape};
