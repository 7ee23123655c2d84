//! Ranks that are processes: which one this is, how they find each other, and how experts move between them.
//!
//! A rank finds its place ([`Join`]), opens the store, joins an epoch ([`Session`]) and takes its place with its weights
//! ([`Member`]). Communicators come from a [`Transport`]. Ranks of one host know each other by [`HostId`]; several groups of one job
//! are told apart by a [`GroupLayout`].

pub mod alone;
pub mod auto;
pub mod device;
pub mod elastic;
pub mod gloo;
pub mod group_layout;
pub mod hosts;
pub mod job;
pub mod join;
pub mod launch;
pub mod local;
mod meeting_point;
pub mod member;
pub mod membership;
pub mod moving;
pub mod peer;
pub mod serve;
pub mod session;
pub(crate) mod standing;
mod steps;
pub mod transport;
mod walk;

pub use alone::Alone;
pub use auto::AutoTransport;
pub use device::{DevicePeerTransport, NcclTransport};
pub use gloo::GlooTransport;
pub use group_layout::{GroupLayout, LayoutError, Parallelism, RankOrder};
pub use hosts::HostId;
pub use job::Job;
pub use join::{Flags, Join, Origin};
pub use launch::{Launch, RankEnd};
pub use local::LocalTransport;
pub use member::Member;
pub use membership::{Reform, Reformed};
pub use moving::Exchanged;
pub use peer::PeerTransport;
pub use serve::Rendezvous;
pub use session::{Session, Stage};
pub use transport::{MadeUp, Meeting, Source, Transport};
