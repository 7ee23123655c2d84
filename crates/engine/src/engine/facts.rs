//! What must be the same on all ranks, and what a rank reads from disk at its start.

use std::path::Path;

use eplb_trace::Trace;

use super::shared::{Set, Shared, lock};
use crate::error::EngineError;
use crate::process::Transport;
use crate::process::session::Fact;

/// What must be the same on all ranks.
pub(super) fn facts(shared: &Shared, transport: &dyn Transport) -> Vec<Fact> {
    let config = &shared.config;
    let launched = if transport.launches_in_steps() { ", launched by steps" } else { "" };
    let mut facts: Vec<Fact> = vec![
        ("version of eplb", env!("CARGO_PKG_VERSION").to_owned()),
        ("version of the host or its model", config.versions.clone()),
        ("backend", format!("{}{launched}", transport.name())),
        ("layer sets", format!("{:?}", shared.sets.iter().map(|set| &set.name).collect::<Vec<_>>())),
    ];
    for set in &shared.sets {
        let slots: Vec<usize> = set.topology.all_ranks().map(|rank| set.topology.slot_count(rank)).collect();
        let nodes: Vec<u32> = set.topology.all_ranks().map(|rank| set.topology.node_of(rank).0).collect();
        facts.extend([
            ("slots and nodes of each rank", format!("{slots:?} {nodes:?}")),
            ("memory of slots", if set.device.is_some() { "a device" } else { "the host" }.to_owned()),
            ("layers and experts", format!("{} and {}", set.layers(), set.experts)),
            ("layout of the experts", format!("{:016x}", set.layout.hash64())),
            ("placement to start with", format!("{:016x}", set.start.hash64())),
            ("limits of exchanges", format!("{:?}", set.limits)),
            ("options of plans", format!("{:?}", set.options)),
        ]);
    }
    facts.extend([
        ("tags", format!("{:?} {:?}", config.tags, config.plan_tags)),
        ("dry_run", config.dry_run.to_string()),
        ("triggers", format!("{:?}", config.trigger)),
    ]);
    facts
}

/// Fills the window of a set with loads on disk.
pub(super) fn load_window(path: &Path, set: &Set) -> Result<(), EngineError> {
    let trace = Trace::open(path)?;
    if (trace.layers(), trace.experts()) != (set.layers(), set.experts) {
        let text = format!(
            "load_window {}: loads of {} layers and {} experts, the layer set {:?} has {} and {}",
            path.display(),
            trace.layers(),
            trace.experts(),
            set.name,
            set.layers(),
            set.experts
        );
        return Err(EngineError::Options(text));
    }
    for step in 0..trace.steps() {
        let loads = trace.step(step)?;
        lock(&set.window).push(loads);
    }
    Ok(())
}
