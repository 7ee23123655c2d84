//! Rounds between ranks on threads.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use eplb_engine::engine::{RoundOutcome, State};

use super::support::{LONG, Threads, config, count, wrong};

#[test]
fn a_round_on_demand_moves_experts_while_steps_run() {
    rounds_move_experts(&Threads::new(4));
}

/// Ranks that pull from memory which they all map, and talk through its pages, as processes of one host do.
#[cfg(target_os = "linux")]
#[test]
fn rounds_move_experts_through_shared_memory() {
    let transport = std::sync::Arc::new(eplb_engine::process::PeerTransport);
    rounds_move_experts(&Threads { transport, ..Threads::new(3) });
}

fn rounds_move_experts(threads: &Threads) {
    let (barrier, over) = (Barrier::new(threads.ranks), AtomicBool::new(false));
    let placements = threads.run(|rank| {
        let (engine, set) = threads.engine(rank, config());
        let mut step = 0;
        let mut reports = Vec::new();
        for turn in 0..4 {
            count(&engine, set, step, turn);
            let before = engine.rounds();
            barrier.wait();
            over.store(false, Ordering::SeqCst);
            if rank.0 == 2 {
                engine.rebalance_now().unwrap();
            }
            loop {
                engine.step(step).unwrap();
                assert_eq!(wrong(&engine, set), 0, "{rank} in step {step}");
                step += 1;
                // All ranks leave after the same step.
                barrier.wait();
                if rank.0 == 0 && engine.rounds() > before {
                    over.store(true, Ordering::SeqCst);
                }
                barrier.wait();
                if over.load(Ordering::SeqCst) {
                    break;
                }
            }
            let report = engine.wait_round(before, LONG).unwrap();
            reports.push(report.clone());
            engine.step(step).unwrap();
            step += 1;
            // How much of the counts the plan saw is a matter of time: it may find that all is well.
            let fine = [RoundOutcome::Moved, RoundOutcome::TooLate, RoundOutcome::NothingToMove];
            assert!(fine.contains(&report.outcome), "{report:?}");
        }
        assert!(
            reports.iter().any(|report| report.moves > 0 && report.reached > report.before),
            "{reports:?}"
        );
        let maps = engine.maps(set);
        assert!(maps.version > 0);
        assert_eq!(wrong(&engine, set), 0);
        engine.shutdown(LONG).unwrap();
        assert_eq!(engine.state(), State::Stopped);
        maps.phy2log.clone()
    });
    assert!(placements.windows(2).all(|pair| pair[0] == pair[1]), "{placements:?}");
}
