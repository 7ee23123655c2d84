//! A rank that is behind takes over what the others hold, and its source fails amid that: nobody relies on what its slots hold then.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Instant;

use eplb_comm::host::HostMemory;
use eplb_comm::store::{CasOutcome, InterceptedStore, Store, StoreError, StoreIntercept};
use eplb_core::{ExpertId, LayerId, Placement, RankId, SlotId, Topology};
use eplb_engine::EngineError;
use eplb_engine::engine::{Counts, Engine, EngineConfig, Pass, SetId, State, World};
use eplb_engine::process::{MadeUp, Source};
use ndarray::Array2;

use super::control::until;
use super::support::{EXPERTS, LAYERS, LONG, Threads, config, fill, tensors, wrong};

/// Never learns that a wave is committed at an agreed step, though it is this rank that writes so.
#[derive(Debug, Clone)]
struct Unheard(Arc<AtomicBool>);

impl StoreIntercept for Unheard {
    fn compare_and_set(
        &self,
        inner: &dyn Store,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        let done = inner.compare_and_set(key, expected, new, deadline);
        // Format, whether it is closed, eight bytes of version, the verdict.
        let commits = key.ends_with("/decision") && new.get(10) == Some(&1);
        if commits && self.0.swap(false, Ordering::SeqCst) {
            return Err(StoreError::Lost {
                store: "planted".into(),
                cause: "its answer is not heard".into(),
            });
        }
        done
    }
}

/// Puts an expert where it is to be, and fails all the same while it is told to.
#[derive(Debug, Default)]
struct Breaks {
    fails: AtomicBool,
    filled: AtomicUsize,
}

impl Source for Breaks {
    fn fill(
        &self,
        memory: &Arc<HostMemory>,
        layer: LayerId,
        slot: SlotId,
        expert: ExpertId,
    ) -> Result<(), EngineError> {
        MadeUp.fill(memory, layer, slot, expert)?;
        self.filled.fetch_add(1, Ordering::SeqCst);
        match self.fails.load(Ordering::SeqCst) {
            true => Err(EngineError::Options("planted: the checkpoint is gone".into())),
            false => Ok(()),
        }
    }
}

/// An engine with as many slots as experts: what moves is staged, and overwrites slots at an agreed step, which is so far ahead that this rank knows
/// by then what was decided, or that it cannot know it.
fn start(threads: &Threads, rank: RankId, store: Arc<dyn Store>, source: Arc<Breaks>) -> (Engine, SetId) {
    let transport = threads.transport.clone();
    let world = World::Group { rank, world_size: threads.ranks, store, transport };
    let mut builder = Engine::builder(EngineConfig { margin: 1 << 11, ..config() }, world);
    let topology = Topology::uniform(threads.ranks, EXPERTS).unwrap();
    let set = builder.layer_set("main", topology, EXPERTS, LAYERS).unwrap();
    for layer in 0..LAYERS {
        builder.lend_layer(set, layer, &tensors()).unwrap();
    }
    builder.placement(set, Placement::round_robin(LAYERS, EXPERTS, EXPERTS).unwrap()).unwrap();
    builder.source(source);
    (builder.start().unwrap(), set)
}

fn assert_whole(engine: &Engine, set: SetId) {
    assert_eq!(wrong(engine, set), 0, "{}", engine.rank());
    let maps = engine.maps(set);
    for (layer, expert) in (0..LAYERS).flat_map(|layer| (0..EXPERTS).map(move |expert| (layer, expert))) {
        let held = maps.phy2log.row(layer).iter().any(|&holds| holds == expert as i32);
        assert!(held, "layer {layer} has no expert {expert}: {:?}", maps.phy2log);
    }
}

#[test]
fn slots_that_a_failed_source_has_half_filled_are_relied_on_by_nobody() {
    let threads = Threads::new(2);
    let (deaf, barrier) = (Arc::new(AtomicBool::new(true)), Barrier::new(2));
    let (tried, over) = (AtomicUsize::new(0), AtomicUsize::new(0));
    threads.run(|rank| {
        let source = Arc::new(Breaks::default());
        let store: Arc<dyn Store> = match rank.0 {
            0 => Arc::new(InterceptedStore::new(threads.store.clone(), Unheard(deaf.clone()))),
            _ => threads.store.clone(),
        };
        let (engine, set) = start(&threads, rank, store, source.clone());
        fill(&engine, set);
        // All that is hot is on one rank.
        let counts = Array2::from_shape_fn((LAYERS, EXPERTS), |(_, e)| if e < EXPERTS / 2 { 300 } else { 1 });
        engine.record(set, &Pass::default(), Counts::Experts(counts.view())).unwrap();
        // Neither pulls from slots that the other still fills.
        barrier.wait();
        if rank.0 == 0 {
            engine.rebalance_now().unwrap();
        }
        let mut step = 0;
        until("the end of the round", || {
            // Refused where the decision is not known.
            drop(engine.step(step));
            step += 1;
            matches!(engine.state(), State::Failed { .. })
        });
        let before = engine.maps(set).version;
        assert_eq!(
            before > 0,
            rank.0 == 1,
            "{rank} has maps of version {before}: rank 1 alone has committed"
        );
        source.fails.store(rank.0 == 0, Ordering::SeqCst);
        let reformed = engine.reform(LONG);
        tried.fetch_add(1, Ordering::SeqCst);
        until("the other's attempt", || tried.load(Ordering::SeqCst) == 2);
        if rank.0 == 1 {
            let told = reformed.unwrap_err().to_string();
            assert!(told.contains("the checkpoint is gone"), "{told}");
            // Gone, with all that was committed; a process that was started anew knows nothing of it.
            drop(engine);
            let (_engine, _) = start(&threads, rank, threads.store.clone(), source);
            over.fetch_add(1, Ordering::SeqCst);
            until("the other's end", || over.load(Ordering::SeqCst) == 2);
            return;
        }
        let error = reformed.unwrap_err().to_string();
        assert!(error.contains("the checkpoint is gone"), "{error}");
        assert_eq!(
            source.filled.load(Ordering::SeqCst),
            1,
            "a slot holds an expert of the others' placement"
        );
        assert!(matches!(engine.step(step), Err(EngineError::Unformed { .. })), "no step in between");
        source.fails.store(false, Ordering::SeqCst);
        until("a new epoch", || engine.reform(LONG).is_ok());
        engine.step(step + 1).unwrap();
        assert_whole(&engine, set);
        over.fetch_add(1, Ordering::SeqCst);
        until("the other's end", || over.load(Ordering::SeqCst) == 2);
    });
}
