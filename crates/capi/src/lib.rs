//! The C ABI: `libeplb` and its header `include/eplb.h`.
//!
//! Conventions, the same for every function:
//!
//! - It returns [`Status`]; [`eplb_last_error`] then tells in words what was wrong, for the calling thread. Results are
//!   written through pointers, and only if the status is `Ok`.
//! - Handles are made by one function and freed by another, once; freeing null does nothing. A handle may be used by several threads at
//!   a time, but not be freed while it is used.
//! - Memory that a caller passes in is only read or written during the call, but for registered tensors and callbacks: the
//!   header's opening lines (`cbindgen.toml`) say how long each is kept, and which thread calls what.
//! - Structures begin with `struct_size`, set by their `_init` function: a library that knows more fields than the caller
//!   takes the defaults for them, one that knows fewer says so.
//! - A panic inside becomes [`Status::Internal`]; it never crosses the boundary.
//! - Null where something is needed, and lengths that do not fit, are errors that name the argument.

mod call;
mod engine;
mod host_store;
mod log;
mod options;
mod pairs;
mod plan;
mod planner;
mod replay;
mod request;
mod status;
mod store;
mod structs;
mod trace;
mod transport;

pub use call::eplb_last_error;
pub use engine::*;
pub use host_store::*;
pub use log::*;
pub use pairs::*;
pub use plan::*;
pub use planner::*;
pub use replay::*;
pub use request::*;
pub use status::Status;
pub use store::*;
pub use trace::*;
pub use transport::*;

/// Version of this interface: it changes when a program built against an older header may no longer run.
pub const EPLB_ABI_VERSION: u32 = 1;

/// The interface version of the library, to be compared with `EPLB_ABI_VERSION` of the header.
#[unsafe(no_mangle)]
pub extern "C" fn eplb_abi_version() -> u32 {
    EPLB_ABI_VERSION
}

/// The version of the library as text, for ever valid.
#[unsafe(no_mangle)]
pub extern "C" fn eplb_version() -> *const std::ffi::c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
