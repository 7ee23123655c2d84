//! Rounds between ranks on threads.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(target_os = "linux")]
use {
    eplb_comm::Communicator,
    eplb_comm::host::HostMemory,
    eplb_comm::store::StoreAddress,
    eplb_core::{ModelLayout, RankId},
    eplb_engine::EngineError,
    eplb_engine::process::{AutoTransport, GlooTransport, HostId, Meeting, Transport},
    std::sync::Arc,
};

use eplb_engine::engine::{RoundOutcome, State};

use super::control::{settled, until};
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

/// What each of two halves of the ranks finds out, which are taken for ranks of two hosts.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct TwoHosts {
    ranks: usize,
    halves: [AutoTransport; 2],
}

#[cfg(target_os = "linux")]
impl TwoHosts {
    fn of(&self, rank: RankId) -> &AutoTransport {
        &self.halves[usize::from(2 * rank.index() >= self.ranks)]
    }
}

#[cfg(target_os = "linux")]
impl Transport for TwoHosts {
    fn name(&self) -> &'static str {
        "auto"
    }

    fn memory(
        &self,
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: std::ops::Range<usize>,
        staging_bytes: usize,
    ) -> Result<Arc<HostMemory>, EngineError> {
        self.of(rank).memory(rank, layout, slots, staging_bytes)
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        self.of(meeting.rank).connect(meeting)
    }
}

/// Two ranks on each of two hosts: shared memory inside them, Gloo between them, while steps run.
#[cfg(target_os = "linux")]
#[test]
fn rounds_move_experts_over_two_backends_in_one_wave() {
    let gloo = || GlooTransport::new(None, &StoreAddress::File("/".into()));
    if let Err(error) = gloo() {
        let allowed = std::env::var_os("EPLB_TESTS_WITHOUT_GLOO").is_some();
        assert!(allowed, "{error}; EPLB_TESTS_WITHOUT_GLOO=1 leaves out what needs it");
        eprintln!("not run: {error}");
        return;
    }
    let half = |host: &str| AutoTransport::new(gloo()).on_host(HostId::named(host));
    let transport = Arc::new(TwoHosts { ranks: 4, halves: [half("a"), half("b")] });
    rounds_move_experts(&Threads { transport: transport.clone(), ..Threads::new(4) });
    for half in &transport.halves {
        let taken = half.reasons().last().map(|reason| reason.backend);
        assert_eq!(taken, Some("peer (host memory) and gloo"));
    }
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
                if rank.0 == 0 && settled(&engine, set, before).is_some() {
                    over.store(true, Ordering::SeqCst);
                }
                barrier.wait();
                if over.load(Ordering::SeqCst) {
                    break;
                }
            }
            let mut report = None;
            until("the end of the round", || {
                report = settled(&engine, set, before);
                report.is_some()
            });
            let report = report.unwrap();
            engine.step(step).unwrap();
            step += 1;
            // How much of the counts the plan saw is a matter of time: it may find that all is well.
            let fine = [RoundOutcome::Moved, RoundOutcome::NothingToMove];
            assert!(fine.contains(&report.outcome), "{report:?}");
            reports.push(report);
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
