//! Each of the five triggers begins a round by itself, and what a round plans for is what it should be.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use eplb_core::{Topology, metrics};
use eplb_engine::EngineConfig;
use eplb_engine::engine::{Counts, Engine, Pass, Reason, Report, SetId, TriggerConfig, World, WorthConfig};
use ndarray::Array2;

use super::control::until;
use super::support::{EXPERTS, LAYERS, LONG, SLOTS, Threads, config, count, counts, tensors};

/// Rounds that plan, and move nothing: what began them is what matters.
fn dry() -> EngineConfig {
    EngineConfig { dry_run: true, ..config() }
}

/// What rank 0 reports of two ranks, of which it alone counts and asks; the other is there for as long.
fn report(config: EngineConfig, work: impl Fn(&Engine, SetId) -> Report + Sync) -> Report {
    let threads = Threads::new(2);
    let over = AtomicBool::new(false);
    let reports = threads.run(|rank| {
        let (engine, set) = threads.engine(rank, config.clone());
        if rank.0 == 0 {
            // Also when it panics.
            let _end = End(&over);
            return Some(work(&engine, set));
        }
        until("the end", || over.load(Ordering::SeqCst));
        None
    });
    reports.into_iter().flatten().next().unwrap()
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Waits for the next round, which nobody asks for.
fn by_itself(engine: &Engine, set: SetId, rounds: u64) -> Report {
    until("a round", || engine.rounds() > rounds);
    engine.last_report(set).unwrap()
}

fn on_demand(engine: &Engine, set: SetId) -> Report {
    let rounds = engine.rebalance_now().unwrap();
    engine.wait_round(rounds, LONG).unwrap();
    engine.last_report(set).unwrap()
}

/// Balancedness of what the slots hold at the start, for loads.
fn balancedness(engine: &Engine, set: SetId, loads: &Array2<u64>) -> f64 {
    let (loads, topology) = (loads.mapv(|n| n as f64), Topology::uniform(2, SLOTS).unwrap());
    metrics::balancedness(loads.view(), &engine.placement(set).unwrap(), None, &topology).unwrap().mean
}

#[test]
fn an_interval_begins_a_round() {
    let trigger = TriggerConfig { interval_s: Some(0.01), ..config().trigger };
    let found = report(EngineConfig { trigger, ..dry() }, |engine, set| {
        count(engine, set, 0, 1);
        by_itself(engine, set, 0)
    });
    assert_eq!(found.reason, Reason::Interval, "{found:?}");
}

#[test]
fn a_drift_of_the_loads_begins_a_round() {
    let trigger = TriggerConfig { drift: Some(0.3), ..config().trigger };
    let found = report(EngineConfig { trigger, ..dry() }, |engine, set| {
        count(engine, set, 0, 1);
        let first = on_demand(engine, set);
        assert_eq!(first.reason, Reason::Demand);
        // Other experts are popular now.
        count(engine, set, 1, 2);
        by_itself(engine, set, first.round)
    });
    assert_eq!(found.reason, Reason::Drift, "{found:?}");
}

#[test]
fn a_gain_is_weighed_against_its_cost() {
    let worth = |steps, link_gbps| {
        let worth = Some(WorthConfig { steps, layer_seconds: 1e-3, link_gbps });
        let trigger = TriggerConfig { worth, ..config().trigger };
        report(EngineConfig { trigger, ..dry() }, |engine, set| {
            count(engine, set, 0, 1);
            on_demand(engine, set)
        })
    };
    let (dear, cheap) = (worth(1.0, 1e-6), worth(1e6, 100.0));
    assert_eq!(dear.moves, 0, "a step's gain does not pay for minutes of its link: {dear:?}");
    assert!(cheap.moves > 0 && cheap.predicted > cheap.before, "{cheap:?}");
}

#[test]
fn kinds_of_passes_are_planned_for_together_or_by_choice() {
    for (plan_tags, tags) in
        [(vec![], [1, 1]), (vec!["decode".into()], [0, 1]), (vec!["prefill".into()], [1, 0])]
    {
        let config = EngineConfig { plan_tags, ..dry() };
        report(config, |engine, set| {
            for (tag, turn) in [(0, 1), (1, 2)] {
                let pass = Pass { tag, ..Pass::default() };
                engine.record(set, &pass, Counts::Experts(counts(turn).view())).unwrap();
            }
            let report = on_demand(engine, set);
            let expected = balancedness(engine, set, &(counts(1) * tags[0] + counts(2) * tags[1]));
            assert!((report.before - expected).abs() < 1e-9, "{tags:?}: {expected} of {report:?}");
            report
        });
    }
}

/// A window on disk with the loads of `counts(3)`, as an engine that was alone saves it.
fn saved(path: &Path) {
    let mut builder = Engine::builder(config(), World::Alone);
    let set = builder.layer_set("main", Topology::uniform(1, SLOTS).unwrap(), EXPERTS, LAYERS).unwrap();
    (0..LAYERS).for_each(|layer| builder.lend_layer(set, layer, &tensors()).unwrap());
    let engine = builder.start().unwrap();
    count(&engine, set, 0, 3);
    engine.save(set, path).unwrap();
}

#[test]
fn a_window_on_disk_is_planned_for_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first.npz"), folder.path().join("second.npz"));
    saved(&first);
    let loaded = |file: &Path| EngineConfig { load_window: Some(file.to_owned()), ..dry() };
    report(loaded(&first), |engine, set| {
        let report = on_demand(engine, set);
        let expected = balancedness(engine, set, &counts(3));
        assert!((report.before - expected).abs() < 1e-9, "{expected} of {report:?}");
        // What is counted now is added to it, and both are saved by the leading rank.
        count(engine, set, 1, 5);
        on_demand(engine, set);
        engine.save(set, &second).unwrap();
        report
    });
    report(loaded(&second), |engine, set| {
        let report = on_demand(engine, set);
        let expected = balancedness(engine, set, &(counts(3) + counts(5)));
        assert!((report.before - expected).abs() < 1e-9, "{expected} of {report:?}");
        report
    });
}
