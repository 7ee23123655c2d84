//! Load traces of Mixture-of-Experts models: how many tokens went to each logical expert, step by step.
//!
//! - [`Trace`] reads `.npy`, `.npz` and CSV files, also those of other systems ([`records`]), cuts them into windows
//!   that stay inside one stream, and writes them.
//! - [`generate`] makes traces: seeded, the same on every host.
//! - [`info`] says what a trace is like: skew, drift, idle layers, a heat map for the terminal.
//! - [`npy`], [`npz`] and [`output`] read and write arrays of numbers for everyone else, whole files or none.
//!
//! Every file is taken for hostile: no input makes a reader panic, or allocate by a header's word before the bytes
//! are there. Letters in shapes: `T` steps, `L` layers, `E` logical experts, `P` slots, `G` ranks.
//!
//! ```
//! use std::num::NonZeroUsize;
//! use eplb_trace::Trace;
//!
//! let csv = "layer_id,expert_id,count\n0,0,30\n0,1,10\n1,0,5\n1,1,35\n";
//! let trace = Trace::from_bytes("loads.csv", csv.into())?;
//! assert_eq!((trace.steps(), trace.layers(), trace.experts()), (1, 2, 2));
//! for steps in trace.windows(NonZeroUsize::new(20).unwrap()) {
//!     let loads = trace.loads(steps)?; // what planners take
//!     assert_eq!(loads.sum()[[1, 1]], 35.0);
//! }
//! # Ok::<(), eplb_trace::TraceError>(())
//! ```
// The one exception is the memory map, in its own file.
#![deny(unsafe_code)]

mod bytes;
mod counts;
pub mod error;
mod expert_table;
pub mod generate;
pub mod info;
mod map;
pub mod npy;
pub mod npz;
pub mod output;
mod read;
pub mod records;
mod trace;
mod windows;
mod write;

pub use bytes::MAP_FROM;
pub use error::TraceError;
pub use trace::Trace;
pub use windows::Windows;
