//! NCCL, found at run time.
//!
//! [`Library::open`] looks for a library of version 2.18 or later, prefers the copy that the process has loaded already, and
//! says where it looked if there is none. [`Comm`] is one rank's communicator: made without blocking, watched, aborted.
//! What a library lacks is an error that names the function and the version, at the call that needs it.

pub mod comm;
pub mod config;
pub mod error;
pub mod group;
pub mod library;
#[allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
pub mod sys;

pub use comm::Comm;
pub use config::Config;
pub use error::NcclError;
pub use group::Group;
pub use library::{Library, Version};

/// Names a communicator that is about to be made: drawn by one rank and given to all, by whatever means they share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; UniqueId::BYTES]);

impl UniqueId {
    /// Its size.
    pub const BYTES: usize = sys::NCCL_UNIQUE_ID_BYTES as usize;
}
