//! Load traces of Mixture-of-Experts models.
#![deny(unsafe_code)]

mod bytes;
mod counts;
pub mod error;
mod expert_table;
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
