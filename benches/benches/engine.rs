//! What a step of the embedded engine costs while nothing moves, beside an empty call through the same interface.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use eplb_core::{RankId, TensorLayout, Topology};
use eplb_engine::EngineError;
use eplb_engine::engine::{Counts, Engine, EngineConfig, Pass, SetId, World};
use eplb_engine::process::{LocalTransport, Transport};
use ndarray::Array2;

/// The least that a call with this signature can cost.
#[inline(never)]
fn empty(engine: &Engine, id: u64) -> Result<(), EngineError> {
    black_box((engine, id));
    Ok(())
}

#[inline(never)]
fn step(engine: &Engine, id: u64) -> Result<(), EngineError> {
    engine.step(id)
}

/// 8 layers of 256 experts.
fn engine(world: World, ranks: usize) -> Result<(Engine, SetId), EngineError> {
    let mut builder = Engine::builder(EngineConfig::default(), world);
    let set = builder.layer_set("main", Topology::uniform(ranks, 288)?, 256, 8)?;
    for layer in 0..8 {
        builder.lend_layer(set, layer, &[TensorLayout::contiguous("w", 64)])?;
    }
    Ok((builder.start()?, set))
}

fn idle(criterion: &mut Criterion) {
    let (alone, set) = engine(World::Alone, 1).expect("an engine for one rank");
    let mut group = criterion.benchmark_group("engine, idle");
    let mut id = 0;
    group.bench_function("empty call", |bench| {
        bench.iter(|| {
            id += 1;
            empty(&alone, id)
        });
    });
    group.bench_function("step, one rank", |bench| {
        bench.iter(|| {
            id += 1;
            step(&alone, id)
        });
    });
    group.bench_function("tick, one rank", |bench| bench.iter(|| alone.tick()));
    let store = Arc::new(eplb_comm::store::InProcessStore::new());
    let transport: Arc<dyn Transport> = LocalTransport::new(1);
    let world =
        |rank| World::Group { rank, world_size: 2, store: store.clone(), transport: transport.clone() };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| engine(world(RankId(1)), 2).map(|(engine, _)| engine));
        let (of_two, _) = engine(world(RankId(0)), 2).expect("an engine of two ranks");
        group.bench_function("step, one of two ranks", |bench| {
            bench.iter(|| {
                id += 1;
                step(&of_two, id)
            });
        });
        drop(other.join());
    });
    let counts = Array2::from_elem((8, 288), 3u64);
    group.bench_function("record of slots, 8 x 288", |bench| {
        let pass = Pass { step: id, tag: 1, dummy: false };
        bench.iter(|| alone.record(set, &pass, Counts::Slots(counts.view())));
    });
    group.finish();
}

criterion_group!(benches, idle);
criterion_main!(benches);
