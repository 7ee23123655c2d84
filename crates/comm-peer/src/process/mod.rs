//! Ranks that are processes of one host.
//!
//! A rank puts a *card* into the store: where its slots lie, how others open them, and the name of a Unix socket. The others connect to that
//! socket, name the number that the card was drawn with, and get descriptors: of the rank's *page*, in which its word stands, and of memory that
//! is opened by descriptors. So a card of an earlier start of a rank opens nothing: its socket is gone, or another number is asked for. Then
//! every rank tells the others whether it could open all; unless all could, none has a communicator, and all say the same reason.
//!
//! Where that is not to be all or nothing ([`survey_host`], [`survey_device`]), every rank tells the others of each rank what became of it, and those
//! that can all open each other's memory form a group with communicators inside it.
//!
//! From then on the state machine and the progress thread are those of ranks that are threads. A peer that dies is noticed by its
//! socket, within milliseconds; what it had given stays mapped, so that copies under way end in what was there. A peer that is stopped is
//! noticed by the deadline of the wave.

mod alone;
mod bulletin;
mod card;
mod device;
mod error;
mod host;
mod meet;
mod page;
mod reach;
mod socket;
mod survey;
mod trial;

pub use alone::join_bulletin;
pub use device::{Joined, Surveyed, join_device, survey_device};
pub use error::PeerError;
pub use host::{join_host, survey_host};
pub use meet::Meeting;
pub use reach::Reach;
pub use trial::try_host;
