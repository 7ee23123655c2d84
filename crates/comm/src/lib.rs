//! What a transport of the expert-parallel load balancer must do ([`Communicator`]), the memory, streams and fences
//! it works with, and their twins on host memory, so that everything runs with no accelerator at all.
//!
//! A wave is data ([`eplb_core::Wave`]); a communicator carries its transfers out, asynchronously. Every backend
//! passes the suite in [`conformance`].

mod atomics;
pub mod bulletin;
pub mod communicator;
pub mod conformance;
pub mod error;
pub mod fault;
pub mod fence;
pub mod host;
pub mod intercept;
pub mod kernels;
pub mod local;
pub mod memory;
mod mixed;
pub mod pairs;
pub mod pattern;
mod random;
pub mod store;
pub mod stream;
pub mod timeline;

pub use bulletin::{Bulletin, BulletinError};
pub use communicator::{Carried, Communicator, Launcher, Progress, Ticket};
pub use error::CommError;
pub use fence::{Fence, FenceState};
pub use intercept::{Intercept, Intercepted};
pub use memory::{Extent, Located, Memory, Place, places_apart};
pub use mixed::Mixed;
pub use pairs::{BatchHeader, Message, Pairs};
pub use stream::Stream;
pub use timeline::{Moment, Timeline};
