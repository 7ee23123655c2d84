//! What a server embeds: alone, and ranks on threads that meet as processes do.

mod alone;
mod group;
mod support;
