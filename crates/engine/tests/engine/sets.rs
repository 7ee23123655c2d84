//! Several layer sets, plans and windows on disk, hooks, and triggers without demand.

use std::collections::BTreeSet;
use std::sync::{Arc, Barrier, Mutex};

use eplb_core::{LayerId, RankId, SlotId, Topology};
use eplb_engine::EngineConfig;
use eplb_engine::engine::{Counts, Engine, Pass, Reason, SetId, World};
use eplb_plan::Policy;
use ndarray::Array2;

use super::control::settled;
use super::support::{EXPERTS, LAYERS, LONG, SLOTS, Threads, config, count, fill, tensors, wrong};

type Filled = BTreeSet<(SetId, LayerId, SlotId)>;

#[test]
fn a_draft_model_is_balanced_beside_the_model() {
    let threads = Threads::new(2);
    let barrier = Barrier::new(2);
    threads.run(|rank| {
        let (mut builder, main) =
            threads.builder(rank, EngineConfig { policy: Policy::Balanced, ..config() });
        let draft = builder.layer_set("draft", Topology::uniform(2, 6).unwrap(), 4, 1).unwrap();
        builder.lend_layer(draft, 0, &tensors()).unwrap();
        let filled = Arc::new(Mutex::new(Filled::new()));
        let seen = filled.clone();
        builder.after_commit(Box::new(move |set, layer, slots| {
            seen.lock().unwrap().extend(slots.iter().map(|&slot| (set, layer, slot)));
        }));
        let engine = builder.start().unwrap();
        let sets = [main, draft];
        sets.iter().for_each(|&set| fill(&engine, set));
        let before = sets.map(|set| engine.maps(set).phy2log.clone());
        count(&engine, main, 0, 1);
        let hot = Array2::from_shape_vec((1, 4), vec![90u64, 1, 80, 2]).unwrap();
        engine.record(draft, &Pass::default(), Counts::Experts(hot.view())).unwrap();
        barrier.wait();
        if rank == RankId(1) {
            engine.rebalance_now().unwrap();
        }
        let mut step = 0;
        while sets.iter().any(|&set| settled(&engine, set, 0).is_none()) {
            engine.step(step).unwrap();
            sets.iter().for_each(|&set| assert_eq!(wrong(&engine, set), 0));
            step += 1;
            std::thread::sleep(std::time::Duration::from_micros(100));
            assert!(step < 600_000, "{}", engine.state());
        }
        engine.step(step).unwrap();
        // Every slot of this rank whose expert has changed was named to the hook, with its set.
        let filled = filled.lock().unwrap().clone();
        for (&set, before) in sets.iter().zip(&before) {
            let now = &engine.maps(set).phy2log;
            assert_ne!(now, before, "{set:?}");
            for slot in eplb_comm::Memory::slots(engine.memory(set).as_ref()) {
                for layer in 0..now.nrows() {
                    let changed = now[(layer, slot)] >= 0 && now[(layer, slot)] != before[(layer, slot)];
                    let named = filled.contains(&(set, LayerId::at(layer), SlotId::at(slot)));
                    assert!(!changed || named, "{set:?} layer {layer} slot {slot}");
                }
            }
        }
        barrier.wait();
        engine.shutdown(LONG).unwrap();
    });
}

#[test]
fn plan_and_window_are_saved_and_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.npz");
    let alone = |config: EngineConfig| {
        let mut builder = Engine::builder(config, World::Alone);
        let set = builder.layer_set("main", Topology::uniform(1, SLOTS).unwrap(), EXPERTS, LAYERS).unwrap();
        (0..LAYERS).for_each(|layer| builder.lend_layer(set, layer, &tensors()).unwrap());
        let placement = eplb_core::Placement::new(
            EXPERTS,
            Array2::from_shape_fn((LAYERS, SLOTS), |(l, p)| ((p + l) % EXPERTS) as i32),
        );
        (builder, set, placement.unwrap())
    };
    let (mut builder, set, placement) = alone(config());
    builder.placement(set, placement.clone()).unwrap();
    let engine = builder.start().unwrap();
    count(&engine, set, 0, 1);
    engine.save(set, &file).unwrap();
    let saved = EngineConfig { start_plan: Some(file.clone()), load_window: Some(file.clone()), ..config() };
    let (builder, set, _) = alone(saved);
    assert_eq!(builder.start().unwrap().placement(set).unwrap(), placement);
    let missing = EngineConfig { load_window: Some(folder.path().join("none.npz")), ..config() };
    let error = alone(missing).0.start().unwrap_err().to_string();
    assert!(error.contains("none.npz"), "{error}");
}

#[test]
fn a_round_begins_by_itself_when_balancedness_falls() {
    let threads = Threads::new(2);
    let barrier = Barrier::new(2);
    threads.run(|rank| {
        let mut config = config();
        config.trigger.below = Some(0.99);
        let (engine, set) = threads.engine(rank, config);
        count(&engine, set, 0, 1);
        let mut step = 0;
        while engine.rounds() == 0 {
            engine.step(step).unwrap();
            step += 1;
            std::thread::sleep(std::time::Duration::from_micros(100));
            assert!(step < 600_000, "{}", engine.state());
        }
        assert_eq!(engine.last_report(set).unwrap().reason, Reason::Below);
        let text = engine.metrics(true);
        for line in ["eplb_rounds_total", "what=\"achieved\"", "eplb_layer_balancedness", "reason=\"below\""]
        {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        barrier.wait();
    });
}
