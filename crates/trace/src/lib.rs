//! Load traces of Mixture-of-Experts models.
#![deny(unsafe_code)]

mod bytes;
pub mod error;
mod map;

pub use error::TraceError;
