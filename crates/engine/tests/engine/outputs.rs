//! Outputs do not change because experts move: the server of the example, over many rounds, some of them broken off, and with
//! faults planted that it must notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use eplb_comm::fault::{FaultyStream, StreamFault, Strike};
use eplb_comm::store::InProcessStore;
use eplb_comm::{CommError, Fence, Stream};
use eplb_core::{RankId, SlotCommit, Topology};
use eplb_engine::EngineError;
use eplb_engine::engine::{Engine, EngineConfig, InlineStream, RoundOutcome, SetId, TriggerConfig, World};
use eplb_engine::process::{LocalTransport, Transport};
use eplb_plan::Policy;
use eplb_trace::Trace;

use super::serve::mail::Mail;
use super::serve::model::{Model, small_tensors};
use super::serve::rank::{Plain, Seen, Server};
use super::serve::storm::Stormy;
use super::support::{LONG, fill};

const RANKS: usize = 3;

/// A stream that carries a commit out one boundary after it was asked to: the maps are a step early.
#[derive(Debug)]
struct Late {
    inner: InlineStream,
    pending: Vec<SlotCommit>,
}

impl Stream for Late {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        self.pending.extend_from_slice(commits);
        Ok(Fence::passed())
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        let pending = std::mem::take(&mut self.pending);
        self.inner.commit(&pending)
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        self.inner.wait(fence)
    }
}

/// What is wrong with rank 1, in the tests that want it so.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Planted {
    Nothing,
    CommitSkipped,
    MapsEarly,
}

struct Outcome {
    seen: Vec<Result<Seen, String>>,
    moved: u64,
    aborted: u64,
}

/// Serves until `rounds` rounds have ended. `slots`: without spare ones all moves pass through staging and need an agreed step.
fn serve(rounds: u64, slots: usize, stormy: bool, planted: Planted) -> Outcome {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/day_26x64.npz");
    let server = Server {
        model: Model::new(&Trace::open(file).unwrap(), 2, small_tensors()).unwrap(),
        topology: Topology::uniform(RANKS, slots).unwrap(),
        mail: Mail::boxed(RANKS),
        tokens: 6,
        // Every few steps other experts are popular, so that every plan differs from the one before.
        steps_per_moment: 7,
        token_time: Duration::ZERO,
        over: AtomicBool::new(false),
    };
    let mut config = EngineConfig {
        policy: Policy::Incremental,
        trigger: TriggerConfig { interval_s: Some(0.0), rest_s: 0.0, ..TriggerConfig::default() },
        window: 2,
        sample_ms: 1,
        poll_ms: 1,
        margin: 64,
        ..EngineConfig::default()
    };
    // What a round moves is limited, so that the next finds something to do.
    config.budget.moves = Some(12);
    let store = Arc::new(InProcessStore::new());
    let local = LocalTransport::new(1);
    let transport: Arc<dyn Transport> = if stormy { Stormy::around(local, 0.04) } else { local };
    let start = |rank: usize| -> Result<(Engine, SetId), EngineError> {
        let (store, transport) = (store.clone(), transport.clone());
        let world = World::Group { rank: RankId::at(rank), world_size: RANKS, store, transport };
        let mut builder = Engine::builder(config.clone(), world);
        let set = builder.layer_set("main", server.topology.clone(), server.model.experts(), 2)?;
        for layer in 0..2 {
            builder.lend_layer(set, layer, &server.model.tensors)?;
        }
        if rank == 1 {
            builder.stream_on(set, move |memory| match planted {
                Planted::Nothing => Box::new(InlineStream::new(memory)),
                Planted::MapsEarly => {
                    Box::new(Late { inner: InlineStream::new(memory), pending: Vec::new() })
                }
                Planted::CommitSkipped => {
                    let inner = InlineStream::new(memory);
                    Box::new(FaultyStream::new(inner, StreamFault::CommitSkipped, Strike::Always, 1))
                }
            })?;
        }
        let engine = builder.start()?;
        fill(&engine, set);
        Ok((engine, set))
    };
    let (moved, aborted) = (AtomicU64::new(0), AtomicU64::new(0));
    let run = |rank: usize| -> Result<Seen, String> {
        let (engine, set) =
            start(rank).inspect_err(|_| server.mail.leave()).map_err(|error| error.to_string())?;
        let (mut known, mut late) = (0, 0);
        let seen = server.serve(&engine, set, &mut Plain, |_| {
            if rank == 0 && engine.rounds() > known {
                known = engine.rounds();
                match engine.last_report(set).map(|report| report.outcome) {
                    Some(RoundOutcome::Moved) => drop(moved.fetch_add(1, Ordering::SeqCst)),
                    Some(RoundOutcome::Aborted { .. }) => drop(aborted.fetch_add(1, Ordering::SeqCst)),
                    // It is tried again by itself.
                    Some(RoundOutcome::TooLate) => late += 1,
                    _ => {}
                }
            }
            if rank == 0 && known >= rounds + late {
                server.over.store(true, Ordering::SeqCst);
            }
            Ok(())
        });
        let state = engine.state();
        engine.shutdown(LONG).map_err(|error| error.to_string())?;
        seen.map_err(|error| format!("{error}; the engine was {state}"))
    };
    let seen = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..RANKS).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    Outcome { seen, moved: moved.into_inner(), aborted: aborted.into_inner() }
}

fn assert_right(outcome: &Outcome) {
    for seen in &outcome.seen {
        let seen = seen.as_ref().unwrap();
        assert_eq!((seen.wrong, &seen.first_wrong), (0, &None));
        assert!(seen.steps > 0 && seen.switches > 0);
    }
}

/// Twenty rounds, or a thousand where all faults are wanted.
fn rounds() -> u64 {
    if std::env::var("EPLB_FAULTS").is_ok_and(|which| which == "all") { 1000 } else { 20 }
}

#[test]
fn outputs_are_those_of_a_server_that_never_rebalances() {
    let outcome = serve(rounds(), 72, false, Planted::Nothing);
    assert_right(&outcome);
    assert!(outcome.moved > rounds() / 2, "{} rounds moved experts", outcome.moved);
}

#[test]
fn outputs_stay_right_where_every_move_is_staged_and_waves_fail() {
    let outcome = serve(rounds(), 64, true, Planted::Nothing);
    assert_right(&outcome);
    assert!(outcome.moved > 0 && outcome.aborted > 0, "{} moved, {} aborted", outcome.moved, outcome.aborted);
}

fn assert_noticed(outcome: &Outcome) {
    let wrong: u64 = outcome.seen.iter().flatten().map(|seen| seen.wrong).sum();
    let failed = outcome.seen.iter().filter(|seen| seen.is_err()).count();
    assert!(wrong > 0 || failed > 0, "{} rounds moved experts, and nothing was noticed", outcome.moved);
    assert!(wrong > 0, "{:?}", outcome.seen.iter().filter_map(|seen| seen.as_ref().err()).next());
}

#[test]
fn a_commit_that_one_rank_skips_is_noticed() {
    assert_noticed(&serve(3, 64, false, Planted::CommitSkipped));
}

#[test]
fn maps_that_are_a_step_early_are_noticed() {
    assert_noticed(&serve(3, 64, false, Planted::MapsEarly));
}
