//! Ranks on threads, each with its own session; communicators are made together as processes make them.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use eplb_comm::Communicator;
use eplb_comm::host::HostMemory;
use eplb_comm::local::{LocalCommunicator, LocalGroup};
use eplb_comm::store::{InProcessStore, Store};
use eplb_core::{LoadMatrix, Placement, RankId, Topology};
use eplb_engine::EngineError;
use eplb_engine::cluster::{Settings, weights};
use eplb_engine::deadlines::Deadlines;
use eplb_engine::process::{Job, MadeUp, Meeting, Transport};
use eplb_plan::{Options, Planner, Policy, Request};
use ndarray::Array2;

pub(crate) const LAYERS: usize = 2;
pub(crate) const EXPERTS: usize = 12;

pub(crate) fn in_process() -> Arc<dyn Store> {
    Arc::new(InProcessStore::new())
}

/// Makes `local` communicators for ranks that meet here instead of in a store.
#[derive(Debug, Default)]
pub(crate) struct Threads {
    came: Mutex<BTreeMap<RankId, Arc<HostMemory>>>,
    made: Mutex<BTreeMap<RankId, LocalCommunicator>>,
    changed: Condvar,
}

impl Transport for Threads {
    fn name(&self) -> &'static str {
        "local"
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        let Meeting { rank, world_size, memory, deadline, .. } = meeting;
        let mut came = self.came.lock().unwrap();
        came.insert(rank, memory);
        if came.len() == world_size {
            let memories: Vec<_> = std::mem::take(&mut *came).into_values().collect();
            let group = LocalGroup::new(memories, 2)?;
            *self.made.lock().unwrap() = (0..).map(RankId).zip(group).collect();
            self.changed.notify_all();
        }
        loop {
            if let Some(mine) = self.made.lock().unwrap().remove(&rank) {
                return Ok(Box::new(mine));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(EngineError::Backend { backend: "local", detail: "not all came".into() });
            }
            came = self.changed.wait_timeout(came, left).unwrap().0;
        }
    }
}

pub(crate) fn deadlines() -> Deadlines {
    let mut deadlines = Deadlines::new();
    deadlines.store.join = Duration::from_secs(20);
    deadlines.store.renew = Duration::from_millis(50);
    deadlines
}

pub(crate) fn topology(ranks: usize) -> Topology {
    Topology::uniform(ranks, 16).unwrap()
}

pub(crate) fn random(seed: u64, topology: &Topology) -> Placement {
    let loads = LoadMatrix::from_sum(Array2::from_elem((LAYERS, EXPERTS), 1.0)).unwrap();
    let options = Options { policy: Policy::Random, seed, ..Options::default() };
    Planner::new(1).unwrap().plan(&Request::new(&loads, topology, &options)).unwrap().placement
}

pub(crate) fn loads() -> Array2<f64> {
    Array2::from_shape_fn((LAYERS, EXPERTS), |(l, e)| (1 + (l * 7 + e * 5) % 11) as f64)
}

pub(crate) fn job(ranks: usize, transport: &Arc<Threads>) -> Job {
    let topology = topology(ranks);
    let layout = weights::layout(LAYERS, 1500).unwrap();
    let mut settings = Settings::new(&layout, &topology);
    settings.limits.staging_bytes = 4 * layout.largest_staged();
    settings.margin = 32;
    settings.deadlines.transfer = Duration::from_secs(30);
    settings.deadlines.peer = Duration::from_secs(20);
    settings.deadlines.commit_hold = Duration::from_secs(20);
    Job {
        start: random(99, &topology),
        topology,
        layout: Arc::new(layout),
        settings,
        versions: String::new(),
        transport: transport.clone(),
        source: Arc::new(MadeUp),
    }
}

/// Runs a function per rank, on threads; results in the order of the ranks.
pub(crate) fn on_threads<T: Send>(ranks: usize, run: impl Fn(RankId) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                scope.spawn({
                    let run = &run;
                    move || run(RankId::at(rank))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
