//! What engines tell: of ranks that do not fit together, of themselves in metrics, and of their end, wherever they are.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eplb_core::TensorLayout;
use eplb_engine::EngineError;
use eplb_engine::engine::{Engine, EngineConfig, RoundOutcome, State};

use super::control::until;
use super::support::{LAYERS, LONG, Threads, config, count, tensors};

#[test]
fn ranks_whose_tensors_are_laid_out_otherwise_are_told_so() {
    let threads = Threads::new(2);
    let told = threads.run(|rank| {
        let mut builder = Engine::builder(config(), threads.world(rank));
        let topology = eplb_core::Topology::uniform(2, super::support::SLOTS).unwrap();
        let set = builder.layer_set("main", topology, super::support::EXPERTS, LAYERS).unwrap();
        for layer in 0..LAYERS {
            let mut tensors = tensors();
            if rank.0 == 1 && layer == 1 {
                // As many bytes, and a row more of them.
                tensors[1] = TensorLayout { rows: 4, row_bytes: 30, pitch: 36, ..tensors[1].clone() };
            }
            builder.lend_layer(set, layer, &tensors).unwrap();
        }
        builder.start().unwrap_err().to_string()
    });
    for (rank, told) in told.iter().enumerate() {
        assert!(told.contains("layout of the experts"), "rank {rank}: {told}");
    }
}

/// Every number that the metrics promise, after rounds of every kind.
#[test]
fn metrics_tell_of_balance_moves_time_and_errors() {
    let threads = Threads::new(2);
    let (barrier, moved) = (Barrier::new(2), AtomicBool::new(false));
    let texts = threads.run(|rank| {
        let (engine, set) = threads.engine(rank, config());
        let mut step = 0;
        until("a round that moves", || {
            count(&engine, set, step, 1);
            barrier.wait();
            let rounds = engine.rounds();
            barrier.wait();
            if rank.0 == 0 {
                engine.rebalance_now().unwrap();
            }
            until("the round", || {
                engine.step(step).unwrap();
                step += 1;
                std::thread::sleep(Duration::from_micros(100));
                engine.rounds() > rounds
            });
            if rank.0 == 0 && engine.last_report(set).unwrap().outcome == RoundOutcome::Moved {
                moved.store(true, Ordering::SeqCst);
            }
            barrier.wait();
            moved.load(Ordering::SeqCst)
        });
        engine.step(step).unwrap();
        let text = engine.metrics(true);
        barrier.wait();
        text
    });
    let text = &texts[0];
    let value = |line: &str| -> f64 {
        let found = text.lines().find(|text| text.starts_with(line));
        found.unwrap_or_else(|| panic!("no {line} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    for what in ["measured", "before", "predicted", "achieved", "bound"] {
        let found = value(&format!("eplb_balancedness{{rank=\"0\",set=\"main\",what=\"{what}\"}}"));
        assert!(found > 0.0 && found <= 1.0, "{what}: {found}");
    }
    let of_rank = |name: &str| value(&format!("eplb_{name}{{rank=\"0\"}}"));
    for name in ["moves_total", "link_bytes_total", "waves_total", "plan_seconds_total", "round_link_gbps"] {
        assert!(of_rank(name) > 0.0, "{name}");
    }
    for name in ["stalls_total", "stall_seconds_total", "stall_longest_seconds"] {
        assert!(of_rank(name) > 0.0, "{name}");
    }
    for name in ["commit_hold_seconds_total", "launch_seconds_total", "local_copies_total"] {
        assert!(of_rank(name) >= 0.0, "{name}");
    }
    for quantile in ["0.5", "0.99"] {
        assert!(value(&format!("eplb_stall_seconds{{rank=\"0\",quantile=\"{quantile}\"}}")) > 0.0);
    }
    // Time of each phase: the exchange went through these.
    for state in ["planning", "agreeing", "moving"] {
        value(&format!("eplb_state_seconds_total{{rank=\"0\",state=\"{state}\"}}"));
    }
    let states = text.lines().filter(|line| line.starts_with("eplb_state{") && line.ends_with(" 1"));
    assert_eq!(states.count(), 1, "{text}");
    assert!(value("eplb_layer_balancedness{rank=\"0\",set=\"main\",layer=\"0\"}") > 0.0);
    assert!(text.contains("# TYPE eplb_errors_total counter"), "{text}");
    assert!(value("eplb_rounds_total{rank=\"0\",outcome=\"moved\"}") > 0.0);
}

/// The deadline of a shutdown holds wherever the engine is; where its thread is in a call, that is said, and the engine is stopped all the same.
#[test]
fn a_shutdown_ends_from_every_state() {
    let threads = Threads::new(2);
    let barrier = Barrier::new(2);
    for from in ["idle", "collecting", "paused", "quiesced", "failed", "reforming"] {
        threads.run(|rank| {
            let config = match from {
                "reforming" => {
                    let mut config = config();
                    config.deadlines.insert("store.join".into(), 10_000);
                    config
                }
                _ => EngineConfig { dry_run: true, ..config() },
            };
            let (engine, set) = threads.engine(rank, config);
            barrier.wait();
            let name = |engine: &Engine| engine.state().name();
            match from {
                "collecting" => count(&engine, set, 0, 1),
                "paused" => engine.pause().unwrap(),
                "quiesced" => engine.quiesce(LONG).unwrap(),
                // A step before the one before is refused, and no failure; one engine is gone without a word.
                "failed" | "reforming" if rank.0 == 1 => {
                    drop(engine);
                    return;
                }
                "failed" => until("the failure", || name(&engine) == "failed"),
                "reforming" => {
                    // The other does not come.
                    let late = engine.reform(Duration::from_millis(20)).unwrap_err();
                    assert!(matches!(late, EngineError::Late { .. } | EngineError::State { .. }), "{late}");
                }
                _ => {}
            }
            if from != "reforming" {
                until(from, || name(&engine) == from);
            }
            // With next to no time: an error is no failure, and the state is the last.
            let at_once = engine.shutdown(Duration::from_millis(10));
            assert!(matches!(at_once, Ok(()) | Err(EngineError::Late { .. })), "{from}: {at_once:?}");
            assert_eq!(engine.state(), State::Stopped, "{from}");
            engine.shutdown(LONG).unwrap();
            assert_eq!(engine.state(), State::Stopped, "{from}");
        });
    }
}
