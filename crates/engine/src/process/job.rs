//! What ranks are started with, and what of it must be the same on all of them.

use std::sync::Arc;
use std::time::Duration;

use eplb_core::{LayerId, ModelLayout, Placement, Topology};

use super::session::Fact;
use super::transport::{Source, Transport};
use crate::board::FORMAT;
use crate::cluster::Settings;

/// What all ranks are started with alike.
#[derive(Debug, Clone)]
pub struct Job {
    /// Ranks and slots.
    pub topology: Topology,
    /// Tensors of every layer.
    pub layout: Arc<ModelLayout>,
    /// The placement to begin with, if no rank has one.
    pub start: Placement,
    /// How ranks behave. `step_time` is the length of a step; zero means 1 ms.
    pub settings: Settings,
    /// What else the host wants to be the same on all ranks: the versions of itself and of its model. The version of this
    /// program is compared in any case.
    pub versions: String,
    /// Makes communicators.
    pub transport: Arc<dyn Transport>,
    /// Fills slots that no rank holds the bytes of.
    pub source: Arc<dyn Source>,
}

pub(super) fn step_time(job: &Job) -> Duration {
    if job.settings.step_time.is_zero() { Duration::from_millis(1) } else { job.settings.step_time }
}

/// What must be the same on all ranks.
pub(super) fn facts(job: &Job) -> Vec<Fact> {
    let mut facts = lasting_facts(job);
    facts.push(("placement to start with", format!("{:016x}", job.start.hash64())));
    facts
}

/// What must be the same also for ranks that join later.
pub(super) fn lasting_facts(job: &Job) -> Vec<Fact> {
    let limits = &job.settings.limits;
    let topology = &job.topology;
    let ranks: Vec<usize> = topology.all_ranks().map(|rank| topology.slot_count(rank)).collect();
    vec![
        ("version of eplb", env!("CARGO_PKG_VERSION").to_owned()),
        ("version of the host or its model", job.versions.clone()),
        ("version of the notes between ranks", FORMAT.to_string()),
        ("backend", job.transport.name().to_owned()),
        ("slots of each rank", format!("{ranks:?}")),
        ("layers and experts", format!("{} and {}", job.start.layers(), job.start.experts())),
        ("bytes of an expert", format!("{}", job.layout.layer(LayerId(0)).expert_bytes())),
        ("layout of the experts", format!("{:016x}", job.layout.hash64())),
        ("staging bytes", limits.staging_bytes.to_string()),
        ("drain floor", limits.drain_floor.to_string()),
        ("most replicas", format!("{:?}", limits.max_replicas)),
    ]
}
