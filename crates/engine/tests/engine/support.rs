//! Ranks on threads with engines of their own.

use std::sync::Arc;
use std::time::Duration;

use eplb_comm::store::{InProcessStore, Store};
use eplb_core::{ExpertId, LayerId, RankId, SlotId, TensorLayout, Topology};
use eplb_engine::engine::{Builder, Counts, Engine, EngineConfig, Pass, SetId, TriggerConfig, World};
use eplb_engine::process::{LocalTransport, Transport};
use ndarray::Array2;

pub(crate) const LAYERS: usize = 3;
pub(crate) const EXPERTS: usize = 12;
pub(crate) const SLOTS: usize = 16;
/// Longest wait of a test for anything.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Quick looks, and no round but on demand.
pub(crate) fn config() -> EngineConfig {
    let mut config = EngineConfig {
        trigger: TriggerConfig { interval_s: None, rest_s: 0.0, ..TriggerConfig::default() },
        sample_ms: 5,
        poll_ms: 2,
        margin: 64,
        ..EngineConfig::default()
    };
    config.deadlines.insert("store.renew".into(), 50);
    config.deadlines.insert("store.join".into(), 30_000);
    config
}

pub(crate) fn tensors() -> Vec<TensorLayout> {
    let rows = TensorLayout { name: "w2".into(), rows: 3, row_bytes: 40, pitch: 48, slot_stride: 144 };
    vec![TensorLayout::contiguous("w13", 256), rows]
}

/// A world of threads.
pub(crate) struct Threads {
    pub(crate) ranks: usize,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) transport: Arc<dyn Transport>,
}

impl Threads {
    pub(crate) fn new(ranks: usize) -> Self {
        Self { ranks, store: Arc::new(InProcessStore::new()), transport: LocalTransport::new(1) }
    }

    pub(crate) fn world(&self, rank: RankId) -> World {
        let (store, transport) = (self.store.clone(), self.transport.clone());
        World::Group { rank, world_size: self.ranks, store, transport }
    }

    /// An engine to be, with one layer set in memory that it lends.
    pub(crate) fn builder(&self, rank: RankId, config: EngineConfig) -> (Builder, SetId) {
        let mut builder = Engine::builder(config, self.world(rank));
        let set = builder
            .layer_set("main", Topology::uniform(self.ranks, SLOTS).unwrap(), EXPERTS, LAYERS)
            .unwrap();
        for layer in 0..LAYERS {
            builder.lend_layer(set, layer, &tensors()).unwrap();
        }
        (builder, set)
    }

    /// A started engine whose slots hold the bytes of the placement to start with.
    pub(crate) fn engine(&self, rank: RankId, config: EngineConfig) -> (Engine, SetId) {
        let (builder, set) = self.builder(rank, config);
        let engine = builder.start().unwrap();
        fill(&engine, set);
        (engine, set)
    }

    /// Runs a function per rank, on threads; results in the order of the ranks.
    pub(crate) fn run<T: Send>(&self, run: impl Fn(RankId) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> =
                (0..self.ranks).map(|rank| scope.spawn(move || run(RankId::at(rank)))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}

/// Writes the bytes of the experts that a rank's maps name into its slots.
pub(crate) fn fill(engine: &Engine, set: SetId) {
    let memory = engine.memory(set);
    let maps = engine.maps(set);
    for layer in 0..maps.phy2log.nrows() {
        for slot in eplb_comm::Memory::slots(memory.as_ref()) {
            if let Ok(expert) = u32::try_from(maps.phy2log[(layer, slot)]) {
                memory.fill(LayerId::at(layer), SlotId::at(slot), ExpertId(expert)).unwrap();
            }
        }
    }
}

/// Bytes of this rank's slots that are not those of the experts that its maps name.
pub(crate) fn wrong(engine: &Engine, set: SetId) -> u64 {
    let memory = engine.memory(set);
    let maps = engine.maps(set);
    let mut wrong = 0;
    for layer in 0..maps.phy2log.nrows() {
        for slot in eplb_comm::Memory::slots(memory.as_ref()) {
            if let Ok(expert) = u32::try_from(maps.phy2log[(layer, slot)]) {
                wrong += memory.count_wrong(LayerId::at(layer), SlotId::at(slot), ExpertId(expert)).unwrap();
            }
        }
    }
    wrong
}

/// Counts that differ by `turn`, so that plans do.
pub(crate) fn counts(turn: usize) -> Array2<u64> {
    Array2::from_shape_fn((LAYERS, EXPERTS), |(layer, expert)| {
        let hot = (turn * 5 + layer) % EXPERTS;
        if expert == hot { 300 } else { 10 + ((expert * 7 + turn * 3) % 11) as u64 }
    })
}

pub(crate) fn count(engine: &Engine, set: SetId, step: u64, turn: usize) {
    let pass = Pass { step, ..Pass::default() };
    engine.record(set, &pass, Counts::Experts(counts(turn).view())).unwrap();
}
