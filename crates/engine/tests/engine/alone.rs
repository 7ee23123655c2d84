//! A rank that is alone: nothing is started for it.

use std::time::Duration;

use eplb_core::{LayerId, Placement, RankId, TensorLayout, Topology};
use eplb_engine::EngineError;
use eplb_engine::engine::{Builder, Counts, Engine, EngineConfig, Pass, SetId, State, TensorView, World};
use eplb_engine::process::LocalTransport;
use ndarray::array;

use super::support::{LONG, Threads};

fn builder() -> (Builder, SetId) {
    let mut builder = Engine::builder(EngineConfig::default(), World::Alone);
    let set = builder.layer_set("main", Topology::uniform(1, 6).unwrap(), 4, 2).unwrap();
    (builder, set)
}

fn lent() -> (Engine, SetId) {
    let (mut builder, set) = builder();
    for layer in 0..2 {
        builder.lend_layer(set, layer, &[TensorLayout::contiguous("w", 32)]).unwrap();
    }
    (builder.start().unwrap(), set)
}

/// Threads and open files of this process.
fn held() -> (usize, usize) {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

#[test]
fn steps_count_and_nothing_moves() {
    let (engine, set) = lent();
    engine.step(3).unwrap();
    engine.tick().unwrap();
    engine.step(9).unwrap();
    let error = engine.step(9).unwrap_err();
    assert!(error.to_string().contains("step 9 after step 9") && error.is_bad_input(), "{error}");
    assert_eq!(engine.maps(set).version, 0);
    let counts = array![[1u64, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 1]];
    engine.record(set, &Pass { step: 9, tag: 1, dummy: false }, Counts::Slots(counts.view())).unwrap();
    let text = engine.metrics(true);
    assert!(text.contains("eplb_tokens_total{rank=\"0\",set=\"main\",tag=\"decode\"} 22"), "{text}");
    assert!(text.contains("eplb_state{rank=\"0\",state=\"idle\"} 1"), "{text}");
    assert!(engine.step(u64::MAX).is_err());
}

#[test]
fn every_call_ends_at_once() {
    let (engine, set) = lent();
    engine.pause().unwrap();
    assert_eq!(engine.state(), State::Paused);
    engine.resume().unwrap();
    engine.quiesce(LONG).unwrap();
    assert_eq!(engine.state(), State::Quiesced);
    assert!(engine.rebalance_now().is_err());
    engine.step(0).unwrap();
    engine.reopen(LONG).unwrap();
    assert!(engine.reopen(LONG).is_err());
    engine.reform(LONG).unwrap();
    assert_eq!(engine.state(), State::Idle);
    engine.rebalance_now().unwrap();
    let late = engine.wait_round(0, Duration::from_millis(1)).unwrap_err();
    assert!(matches!(late, EngineError::Late { .. }), "{late}");
    engine.shutdown(LONG).unwrap();
    engine.shutdown(LONG).unwrap();
    assert_eq!(engine.state(), State::Stopped);
    for call in [Engine::pause, Engine::resume] {
        assert!(call(&engine).unwrap_err().to_string().contains("stopped"));
    }
    assert_eq!(engine.maps(set).version, 0, "maps stay");
}

#[test]
fn memory_of_the_server_is_used_where_it_lies() {
    let (mut builder, set) = builder();
    let mut weights = vec![vec![7u8; 6 * 32]; 2];
    for (layer, weights) in weights.iter_mut().enumerate() {
        let tensor = TensorView {
            name: "w".into(),
            data: weights.as_mut_ptr(),
            rows: 1,
            row_bytes: 32,
            pitch: 32,
            slot_stride: 32,
        };
        // SAFETY: the vector outlives the engine, holds six slots of 32 bytes, and nobody else touches it meanwhile.
        unsafe { builder.register_layer(set, layer, std::slice::from_ref(&tensor)) }.unwrap();
        // SAFETY: as above; it is refused.
        let twice = unsafe { builder.register_layer(set, layer, &[tensor]) };
        assert!(twice.unwrap_err().to_string().contains("registered twice"));
    }
    let start = Placement::new(4, array![[3, 2, 1, 0, -1, 3], [0, 1, 2, 3, 0, 1]]).unwrap();
    builder.placement(set, start.clone()).unwrap();
    let engine = builder.start().unwrap();
    assert_eq!(engine.placement(set).unwrap(), start);
    let address = weights[1].as_mut_ptr();
    assert_eq!(engine.lent(set, 1, 0).map(|at| at.as_ptr()), Some(address));
    assert_eq!((engine.lent(set, 2, 0), engine.lent(SetId(7), 0, 0)), (None, None));
    assert_eq!(engine.maps(set).log2phy.dim(), (2, 4, 2));
    drop(engine);
    assert!(weights.iter().flatten().all(|&byte| byte == 7), "nothing was written");
}

#[test]
fn what_does_not_fit_is_refused_before_the_start() {
    let (mut builder, set) = builder();
    let refused = |result: Result<(), EngineError>, word: &str| {
        let error = result.unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains(word), "{error}");
    };
    refused(builder.lend_layer(set, 2, &[]), "layers 0..2");
    refused(builder.lend_layer(SetId(4), 0, &[]), "layer set 4");
    refused(builder.placement(set, Placement::round_robin(2, 4, 5).unwrap()), "(2, 4, 5)");
    refused(builder.layer_set("main", Topology::uniform(1, 4).unwrap(), 4, 1).map(drop), "taken");
    refused(builder.layer_set("wide", Topology::uniform(2, 4).unwrap(), 4, 1).map(drop), "2 ranks");
    refused(builder.layer_set("many", Topology::uniform(1, 4).unwrap(), 5, 1).map(drop), "5 experts");
    builder.lend_layer(set, 0, &[TensorLayout::contiguous("w", 32)]).unwrap();
    refused(builder.start().map(drop), "layer 1");
    refused(Engine::builder(EngineConfig::default(), World::Alone).start().map(drop), "layer set");
    let config = EngineConfig { window: 0, ..EngineConfig::default() };
    refused(Engine::builder(config, World::Alone).start().map(drop), "window");
}

#[test]
fn a_set_is_registered_or_lent_and_not_both() {
    let (mut builder, set) = builder();
    let mut weights = [0u8; 6 * 32];
    let data = weights.as_mut_ptr();
    let tensor = TensorView { name: "w".into(), data, rows: 1, row_bytes: 32, pitch: 32, slot_stride: 32 };
    // SAFETY: the array outlives the builder, and no engine is made.
    unsafe { builder.register_layer(set, 0, &[tensor]) }.unwrap();
    builder.lend_layer(set, 1, &[TensorLayout::contiguous("w", 32)]).unwrap();
    let error = builder.start().unwrap_err().to_string();
    assert!(error.contains(&LayerId(1).to_string()) && error.contains("partly"), "{error}");
}

/// Threads of other tests of this process come and go, so this runs alone in a process of its own.
#[test]
fn no_thread_and_no_file_is_opened_for_one_rank() {
    if std::env::var_os("EPLB_TEST_ALONE").is_none() {
        let name = "alone::no_thread_and_no_file_is_opened_for_one_rank";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output =
            child.args([name, "--exact", "--test-threads=1"]).env("EPLB_TEST_ALONE", "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let before = held();
    let (engine, set) = lent();
    engine.step(0).unwrap();
    engine.rebalance_now().unwrap();
    assert_eq!(held(), before, "an engine for one rank");
    assert_eq!(engine.maps(set).version, 0);
    // A group of one has no use for its store and transport.
    let threads = Threads { transport: LocalTransport::new(3), ..Threads::new(1) };
    let (other, _) = threads.engine(RankId(0), EngineConfig::default());
    assert_eq!(held(), before, "an engine for a group of one");
    other.step(0).unwrap();
    // What is counted would be seen.
    let two = Threads::new(2);
    let counted = two.run(|rank| {
        let (engine, _) = two.engine(rank, super::support::config());
        let held = held();
        engine.shutdown(LONG).unwrap();
        held
    });
    assert!(counted.iter().all(|held| held.0 > before.0), "{counted:?} {before:?}");
}
