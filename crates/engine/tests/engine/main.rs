//! What a server embeds: alone, and ranks on threads that meet as processes do.

mod alone;
mod announced;
mod control;
#[cfg(target_os = "linux")]
mod corners;
mod ends;
mod group;
mod halves;
mod leaving;
mod life;
mod outputs;
mod panics;
mod sets;
mod support;
mod told;
mod triggers;

/// Counts what is allocated and not freed.
#[global_allocator]
static MEMORY: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// The server of the example.
#[path = "../../examples/serve"]
#[allow(dead_code, reason = "ranks on devices are for other tests")]
mod serve {
    pub(crate) mod mail;
    pub(crate) mod model;
    pub(crate) mod rank;
    pub(crate) mod storm;
}
