//! What the host may ask at any time, and ranks that stand still, stop or die.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eplb_core::RankId;
use eplb_engine::EngineError;
use eplb_engine::engine::{Engine, EngineConfig, Report, RoundOutcome, SetId, State};
use eplb_engine::process::MadeUp;

use super::support::{LONG, Threads, config, count, wrong};

/// Ends a wait that would otherwise never end.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The report of a round behind the first `rounds`, but of none that came too late for a step: that is tried again by itself.
pub(crate) fn settled(engine: &Engine, set: SetId, rounds: u64) -> Option<Report> {
    let over = |report: &Report| engine.rounds() > rounds && report.outcome != RoundOutcome::TooLate;
    engine.last_report(set).filter(over)
}

/// Counts, and lets rank 0 ask for a round.
fn ask(engine: &Engine, set: SetId, barrier: &Barrier, turn: usize) -> u64 {
    count(engine, set, 0, turn);
    let rounds = engine.rounds();
    barrier.wait();
    if engine.rank().0 == 0 {
        engine.rebalance_now().unwrap();
    }
    rounds
}

#[test]
fn without_any_step_or_tick_a_round_waits_and_nothing_fails() {
    let threads = Threads::new(2);
    let barrier = Barrier::new(2);
    threads.run(|rank| {
        let mut config = config();
        config.deadlines.insert("exchange.answer".into(), 3_000);
        config.deadlines.insert("exchange.settle".into(), 60_000);
        let (engine, set) = threads.engine(rank, config);
        let rounds = ask(&engine, set, &barrier, 1);
        until("the round", || engine.state().is_exchanging());
        std::thread::sleep(Duration::from_secs(4));
        let state = engine.state();
        assert!(state.is_exchanging() || matches!(state, State::Idle | State::Collecting), "{state}");
        assert_eq!(wrong(&engine, set), 0);
        // Traffic comes, with ids that leave gaps and that are not the same on both ranks.
        let mut step = u64::from(rank.0);
        until("the end of the round", || {
            step += 3;
            engine.step(step).unwrap();
            engine.rounds() > rounds
        });
        let report = engine.wait_round(rounds, LONG).unwrap();
        assert!(!matches!(engine.state(), State::Failed { .. }), "{report:?}");
        engine.step(step + 1).unwrap();
        assert_eq!(wrong(&engine, set), 0);
        // A rank that is done with this goes on stepping until the other is, too.
        barrier.wait();
    });
}

#[test]
fn a_rank_that_only_ticks_and_one_that_is_slow_delay_a_round_and_no_more() {
    let threads = Threads::new(3);
    let (barrier, over) = (Barrier::new(3), AtomicU64::new(0));
    threads.run(|rank| {
        let (engine, set) = threads.engine(rank, config());
        let rounds = ask(&engine, set, &barrier, 2);
        let (mut step, start) = (0, Instant::now());
        let report = loop {
            assert!(start.elapsed() < LONG);
            match rank.0 {
                // Idle at first: an agreed step is reached only when it serves again.
                2 if start.elapsed() < Duration::from_millis(200) => engine.tick().unwrap(),
                1 => {
                    std::thread::sleep(Duration::from_millis(5));
                    step += 1;
                    engine.step(step * 40).unwrap();
                }
                _ => {
                    step += 1;
                    engine.step(step).unwrap();
                }
            }
            std::thread::sleep(Duration::from_micros(100));
            assert_eq!(wrong(&engine, set), 0);
            if engine.rounds() > rounds {
                // A round that was aborted is tried again, and its report would follow this one.
                break engine.last_report(set).unwrap();
            }
        };
        over.fetch_add(1, Ordering::SeqCst);
        until("the others", || over.load(Ordering::SeqCst) == 3 || engine.step(1 << 40 | next()).is_err());
        assert!(!matches!(engine.state(), State::Failed { .. }), "{}", engine.state());
        if let RoundOutcome::Aborted { cause } = &report.outcome {
            assert!(cause.contains("past the proposed step"), "{report:?}");
        }
        // No engine ends while another asks for its state.
        barrier.wait();
    });
}

/// Numbers that rise.
fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::SeqCst)
}

#[test]
fn a_commit_that_is_decided_is_applied_by_a_quiesce() {
    // As many slots as experts: everything is staged, and needs an agreed step.
    let threads = Threads::new(2);
    let (barrier, committed) = (Barrier::new(2), AtomicBool::new(false));
    let maps = threads.run(|rank| {
        let (mut builder, set) = threads.builder(rank, config());
        drop(builder.placement(set, eplb_core::Placement::round_robin(3, 12, 16).unwrap()));
        let engine = builder.start().unwrap();
        super::support::fill(&engine, set);
        let mut step = 0;
        for turn in 0..100 {
            ask(&engine, set, &barrier, turn as usize);
            let start = Instant::now();
            while !matches!(engine.state(), State::Armed { .. })
                && start.elapsed() < Duration::from_millis(300)
            {
                engine.step(step).unwrap();
                step += 1;
                std::thread::sleep(Duration::from_micros(300));
            }
            // Nobody steps any more, and what is decided meanwhile has no step to be applied at.
            barrier.wait();
            std::thread::sleep(Duration::from_millis(50));
            engine.quiesce(LONG).unwrap();
            assert_eq!(engine.state(), State::Quiesced);
            assert_eq!(wrong(&engine, set), 0);
            committed.fetch_or(engine.maps(set).version > 0, Ordering::SeqCst);
            barrier.wait();
            // Where no turn came that far in its time, another does.
            let over = turn >= 5 && committed.load(Ordering::SeqCst);
            engine.reopen(LONG).unwrap();
            engine.step(step).unwrap();
            step += 1;
            if over {
                break;
            }
        }
        barrier.wait();
        engine.step(step).unwrap();
        assert_eq!(wrong(&engine, set), 0);
        barrier.wait();
        assert!(!matches!(engine.state(), State::Failed { .. }), "{}", engine.state());
        (engine.maps(set).phy2log.clone(), engine.maps(set).version)
    });
    assert_eq!(maps[0].0, maps[1].0);
    assert!(maps[0].1 > 0, "something was committed");
}

#[test]
fn a_rank_that_leaves_an_exchange_runs_no_step_that_others_switch_at() {
    let threads = Threads::new(2);
    let barrier = Barrier::new(2);
    let ran = threads.run(|rank| {
        // The step is far ahead: no rank comes to it before the other has acknowledged it.
        let (mut builder, set) = threads.builder(rank, EngineConfig { margin: 1 << 14, ..config() });
        drop(builder.placement(set, eplb_core::Placement::round_robin(3, 12, 16).unwrap()));
        let engine = builder.start().unwrap();
        super::support::fill(&engine, set);
        ask(&engine, set, &barrier, 1);
        let (mut next, mut agreed) = (0, None);
        until("an agreed step", || {
            if let State::Armed { step } = engine.state() {
                agreed = Some(step);
                return true;
            }
            engine.step(next).unwrap();
            next += 1;
            false
        });
        let agreed = agreed.unwrap();
        // Both have acknowledged the step, and it becomes a commit.
        barrier.wait();
        std::thread::sleep(Duration::from_millis(50));
        if rank.0 == 0 {
            // No time for an orderly end; then the end itself.
            drop(engine.shutdown(Duration::ZERO));
            engine.shutdown(LONG).unwrap();
        }
        barrier.wait();
        for step in next..agreed {
            engine.step(step).unwrap();
        }
        let maps = engine.step(agreed).map(|()| engine.maps(set).phy2log.clone());
        barrier.wait();
        drop(engine.shutdown(Duration::from_millis(100)));
        maps
    });
    let switched = ran[1].as_ref().expect("the rank that stayed obeys the decision");
    match &ran[0] {
        // It was still in time to apply the commit.
        Ok(maps) => assert_eq!(maps, switched),
        Err(error) => assert!(matches!(error, EngineError::Undecided { .. }), "{error}"),
    }
}

#[test]
fn a_pause_keeps_rounds_from_beginning_and_a_dry_run_moves_nothing() {
    let threads = Threads::new(2);
    let barrier = Barrier::new(2);
    threads.run(|rank| {
        let (engine, set) = threads.engine(rank, config());
        if rank.0 == 1 {
            engine.pause().unwrap();
            assert_eq!(engine.state(), State::Paused);
        }
        // The leading rank has to see it.
        std::thread::sleep(Duration::from_millis(50));
        let rounds = ask(&engine, set, &barrier, 1);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(engine.rounds(), rounds, "a round began while a rank was paused");
        barrier.wait();
        if rank.0 == 1 {
            engine.resume().unwrap();
        }
        let mut step = 0;
        until("the round", || {
            step += 1;
            engine.step(step).unwrap();
            engine.rounds() > rounds
        });
        barrier.wait();
    });
    let threads = Threads::new(2);
    threads.run(|rank| {
        let (engine, set) = threads.engine(rank, EngineConfig { dry_run: true, ..config() });
        let rounds = ask(&engine, set, &barrier, 1);
        let report = engine.wait_round(rounds, LONG).unwrap();
        assert_eq!(report.outcome, RoundOutcome::DryRun);
        assert!(
            report.moves > 0 && report.predicted > report.before && report.reached == report.before,
            "{report:?}"
        );
        engine.step(0).unwrap();
        assert_eq!(engine.maps(set).version, 0);
        // Both have seen it before one goes.
        barrier.wait();
        assert!(matches!(engine.state(), State::Idle | State::Collecting), "{}", engine.state());
    });
}

#[test]
fn a_rank_that_dies_is_named_and_may_come_back() {
    let threads = Threads::new(2);
    let (barrier, gone) = (Barrier::new(2), AtomicBool::new(false));
    threads.run(|rank| {
        let mut config = config();
        config.deadlines.insert("store.peer_timeout".into(), 4_000);
        let start = || {
            let (mut builder, set) = threads.builder(rank, config.clone());
            builder.source(std::sync::Arc::new(MadeUp));
            (builder.start().unwrap(), set)
        };
        let (engine, set) = start();
        super::support::fill(&engine, set);
        let rounds = ask(&engine, set, &barrier, 3);
        let mut step = 0;
        until("the round", || {
            step += 1;
            engine.step(step).unwrap();
            settled(&engine, set, rounds).is_some()
        });
        engine.step(step + 1).unwrap();
        barrier.wait();
        let before = engine.maps(set).phy2log.clone();
        if rank.0 == 1 {
            drop(engine);
            until("the failure on the other rank", || gone.load(Ordering::SeqCst));
            // A process that was started anew, whose slots hold what a checkpoint says for the start.
            let (engine, set) = start();
            assert_eq!(engine.maps(set).phy2log, before);
            barrier.wait();
            return;
        }
        until("the failure", || matches!(engine.state(), State::Failed { .. }));
        let cause = engine.state().to_string();
        assert!(cause.contains(&RankId(1).to_string()) && cause.contains("no sign of life"), "{cause}");
        // It serves on, and counts.
        engine.step(step + 2).unwrap();
        count(&engine, set, step + 2, 1);
        assert!(engine.rebalance_now().unwrap_err().to_string().contains("no sign of life"));
        gone.store(true, Ordering::SeqCst);
        engine.reform(LONG).unwrap();
        engine.step(step + 3).unwrap();
        assert_eq!(engine.maps(set).phy2log, before);
        assert_eq!(wrong(&engine, set), 0);
        barrier.wait();
    });
}

/// Starts and stops, each at another moment of a round. In a process of its own, where no other test starts threads or allocates.
#[test]
fn many_starts_and_stops_leave_nothing_behind() {
    if alone("many_starts_and_stops_leave_nothing_behind") {
        let turns = if std::env::var("EPLB_FAULTS").is_ok_and(|which| which == "all") { 1000 } else { 20 };
        let (exchanging, growth) = start_and_stop(turns, 0);
        assert!(exchanging > 0, "no shutdown struck an exchange");
        assert!(growth < LEAK / 2, "{growth} bytes more after each of {turns} starts and stops");
    }
}

/// What [`start_and_stop`] may find at most, for each start, is less than this.
const LEAK: usize = 1024;

#[test]
fn a_leak_of_a_kibibyte_is_noticed() {
    if alone("a_leak_of_a_kibibyte_is_noticed") {
        let (_, growth) = start_and_stop(20, LEAK);
        assert!(growth >= LEAK / 2, "{growth} bytes, and {LEAK} were leaked by each");
    }
}

/// Whether this process was started to run one test alone; else it has done that.
fn alone(test: &str) -> bool {
    if std::env::var_os("EPLB_TEST_ALONE").is_some() {
        return true;
    }
    let name = format!("control::{test}");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output =
        child.args([&name, "--exact", "--test-threads=1"]).env("EPLB_TEST_ALONE", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

/// Starts and stops engines `turns` times, each of which leaks `leak` bytes. How many shutdowns struck an exchange, and the bytes by which each
/// start and stop behind the first quarter has grown what is allocated; threads and files are those of the beginning.
fn start_and_stop(turns: u64, leak: usize) -> (usize, usize) {
    let held = || {
        let count = |path: &str| std::fs::read_dir(path).unwrap().count();
        (count("/proc/self/task"), count("/proc/self/fd"))
    };
    let before = held();
    let (mut exchanging, mut turn, mut warm) = (0, 0, 0);
    // On a machine so busy that no exchange has begun in those moments, later ones follow.
    while turn < turns || (exchanging == 0 && turn < 20 * turns) {
        if turn == turns / 4 {
            warm = crate::MEMORY.allocated();
        }
        let moment = Duration::from_micros(400 * (turn % 25) * (1 + turn / turns));
        let threads = Threads::new(2);
        let barrier = Barrier::new(2);
        let states = threads.run(|rank| {
            let mut config = config();
            config.deadlines.insert("exchange.answer".into(), 2_000);
            let (engine, set) = threads.engine(rank, config);
            ask(&engine, set, &barrier, turn as usize);
            let start = Instant::now();
            let mut step = 0;
            // Another moment in each turn, from before the first wave to after the last.
            while start.elapsed() < moment {
                engine.step(step).unwrap();
                step += 1;
                std::thread::sleep(Duration::from_micros(50));
            }
            let state = engine.state();
            let ended = engine.shutdown(Duration::from_secs(20));
            assert!(ended.is_ok(), "{ended:?} from {state}");
            assert_eq!(engine.state(), State::Stopped);
            // What is in the slots is still what the maps say.
            drop(engine.tick());
            state.is_exchanging()
        });
        exchanging += states.iter().filter(|&&exchanging| exchanging).count();
        drop((states, threads));
        std::mem::forget(vec![0u8; leak]);
        // Threads of copies end by themselves, soon after.
        until("the end of all threads", || held().0 <= before.0);
        turn += 1;
    }
    assert_eq!(held(), before, "threads and files after {turn} starts and stops");
    let growth = crate::MEMORY.allocated().saturating_sub(warm);
    (exchanging, growth / (turn - turns / 4) as usize)
}
