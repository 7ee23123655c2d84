//! The main job with faults in it. Under the weather of a transport it ends in the right bytes or in a named error; a planted
//! fault, which breaks a promise in silence, is caught by the checks of steps and bytes.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::Communicator;
use eplb_comm::fault::{FaultLog, Faults, FaultyCommunicator, FaultyStream, Planted, StreamFault, Strike};
use eplb_comm::host::{HostMemory, HostStream};
use eplb_core::{LoadMatrix, Placement, RankId, Topology};
use eplb_engine::EngineError;
use eplb_engine::board::{Board, BoardIntercept, InterceptedBoard, Reader};
use eplb_engine::cluster::{Cluster, Hooks, Moved, ServingStream, Settings, Verify, weights};
use eplb_engine::rebalance::{Rebalance, Report};
use eplb_exchange::{Cause, Note, Phase, Record, Verdict};
use eplb_plan::{Options, Planner, Policy, Request};
use eplb_trace::Trace;
use ndarray::Array2;

const LAYERS: usize = 2;
const EXPERTS: usize = 12;

fn topology() -> Topology {
    Topology::uniform(4, 16).unwrap()
}

fn random(seed: u64) -> Placement {
    let loads = LoadMatrix::from_sum(Array2::from_elem((LAYERS, EXPERTS), 1.0)).unwrap();
    let options = Options { policy: Policy::Random, seed, ..Options::default() };
    let request = Request::new(&loads, &TOPOLOGY, &options);
    Planner::new(1).unwrap().plan(&request).unwrap().placement
}

static TOPOLOGY: std::sync::LazyLock<Topology> = std::sync::LazyLock::new(topology);

/// How long a wave may take of which bytes are stalled for ever: as short as a rank that is only held up allows.
const STALLED: Duration = Duration::from_secs(2);

/// Runs exchanges between random placements with the given hooks; returns what they found, or the first error.
fn run(hooks: impl Hooks + 'static, exchanges: Range<u64>) -> (Cluster, Result<Moved, EngineError>) {
    run_with(hooks, exchanges, |_| ())
}

/// The same with settings that `change` has changed.
fn run_with(
    hooks: impl Hooks + 'static,
    exchanges: Range<u64>,
    change: impl FnOnce(&mut Settings),
) -> (Cluster, Result<Moved, EngineError>) {
    let layout = weights::layout(LAYERS, 2000).unwrap();
    let mut settings = Settings::new(&layout, &TOPOLOGY);
    settings.limits.staging_bytes = 4 * layout.largest_staged();
    settings.step_time = Duration::from_micros(200);
    settings.hooks = Arc::new(hooks);
    change(&mut settings);
    let start = random(99);
    let mut cluster = Cluster::start(&TOPOLOGY, layout, start, settings).unwrap();
    let loads = Array2::from_shape_fn((LAYERS, EXPERTS), |(l, e)| (1 + (l * 7 + e * 5) % 11) as f64);
    let mut last = None;
    for seed in exchanges {
        let moved = match cluster.rebalance(&random(seed), &loads) {
            Err(error) => return (cluster, Err(error)),
            Ok(mut moved) => {
                moved.bytes_wrong += cluster.check().unwrap_or(1);
                moved
            }
        };
        let wrong = moved.bytes_wrong > 0;
        last = Some(moved);
        if wrong {
            break;
        }
    }
    (cluster, Ok(last.unwrap()))
}

/// The communicators of all ranks, or of one, with faults around them.
#[derive(Debug)]
struct Around {
    faults: Faults,
    only: Option<RankId>,
    /// Made for each communicator, because it needs the rank's memory.
    planted: Option<fn(&Arc<HostMemory>) -> Planted>,
    strike: Strike,
    log: std::sync::Mutex<Vec<FaultLog>>,
}

impl Around {
    fn weather(faults: Faults) -> Arc<Self> {
        Arc::new(Self { faults, only: None, planted: None, strike: Strike::Never, log: Default::default() })
    }

    fn planted(planted: fn(&Arc<HostMemory>) -> Planted, strike: Strike) -> Arc<Self> {
        let planted = Some(planted);
        Arc::new(Self { faults: Faults::default(), only: None, planted, strike, log: Default::default() })
    }

    fn struck(&self) -> usize {
        self.log.lock().unwrap().iter().map(|log| log.struck().len()).sum()
    }
}

#[derive(Debug)]
struct Shared<T>(Arc<T>);

impl Hooks for Shared<Around> {
    fn communicator(
        &self,
        rank: RankId,
        memory: &Arc<HostMemory>,
        communicator: Box<dyn Communicator>,
    ) -> Box<dyn Communicator> {
        if self.0.only.is_some_and(|only| only != rank) {
            return communicator;
        }
        let mut faults = self.0.faults.clone();
        faults.planted.extend(self.0.planted.map(|planted| (self.0.strike, planted(memory))));
        let faulty = FaultyCommunicator::around(communicator, faults);
        self.0.log.lock().unwrap().push(faulty.log());
        Box::new(faulty)
    }
}

#[test]
fn late_and_reordered_transfers_end_in_the_right_bytes() {
    for seed in 0..3 {
        let around = Around::weather(Faults {
            seed,
            delay: Some(Duration::ZERO..Duration::from_millis(3)),
            reorder: true,
            ..Faults::default()
        });
        let (_cluster, result) = run(Shared(around), 0..3);
        let moved = result.unwrap();
        assert_eq!((moved.bytes_wrong, moved.first_wrong), (0, None));
    }
}

#[test]
fn failed_and_stalled_transfers_end_in_a_named_error_and_a_true_placement() {
    let mut stopped = 0;
    for seed in 0..6 {
        let strike = Strike::Chance(0.2);
        let mut faults = Faults { seed, ..Faults::default() };
        let stalls = seed % 2 == 1;
        if stalls {
            faults.stall = strike;
        } else {
            faults.fail = strike;
        }
        let around = Around::weather(faults);
        let (mut cluster, result) = run_with(Shared(around.clone()), 0..3, |settings| {
            if stalls {
                settings.deadlines.transfer = STALLED;
            }
        });
        match result {
            Ok(moved) => assert_eq!((moved.bytes_wrong, moved.first_wrong, around.struck()), (0, None, 0)),
            Err(EngineError::Aborted {
                cause:
                    Cause::Transfer { .. }
                    | Cause::Timeout { phase: Phase::Moving, .. }
                    | Cause::PeerFailed { .. },
                ..
            }) => {
                assert!(around.struck() > 0);
                stopped += 1;
            }
            Err(other) => panic!("{other}"),
        }
        // Whatever happened, the placement in force is valid, and every slot that it names holds its expert.
        assert_eq!(cluster.placement().missing().count(), 0);
        assert_eq!(cluster.check().unwrap(), 0);
    }
    assert!(stopped >= 2, "the faults struck in {stopped} runs only");
}

/// A planted fault must be caught: as wrong bytes, or as an error.
fn caught(result: Result<Moved, EngineError>) -> bool {
    match result {
        Ok(moved) => moved.bytes_wrong > 0,
        Err(_) => true,
    }
}

#[test]
fn nothing_planted_is_nothing_caught() {
    let around = Around::weather(Faults::default());
    assert!(!caught(run(Shared(around), 0..4).1));
}

#[test]
fn a_transfer_left_out_is_caught() {
    let around = Around::planted(|_| Planted::DropTransfer { nth: 0 }, Strike::Always);
    assert!(caught(run(Shared(around.clone()), 0..100).1) && around.struck() > 0);
}

#[test]
fn a_tensor_not_moved_is_caught() {
    for tensor in 0..3 {
        let planted = |tensor| match tensor {
            0 => |memory: &Arc<HostMemory>| Planted::SkipTensor { nth: 0, tensor: 0, memory: memory.clone() },
            1 => |memory: &Arc<HostMemory>| Planted::SkipTensor { nth: 0, tensor: 1, memory: memory.clone() },
            _ => |memory: &Arc<HostMemory>| Planted::SkipTensor { nth: 0, tensor: 2, memory: memory.clone() },
        };
        let around = Around::planted(planted(tensor), Strike::Always);
        assert!(caught(run(Shared(around.clone()), 0..100).1) && around.struck() > 0, "tensor {tensor}");
    }
}

#[test]
fn a_fence_removed_behind_the_transfers_is_caught() {
    let around = Around::planted(|_| Planted::DoneEarly { late: Duration::from_millis(200) }, Strike::Always);
    assert!(caught(run(Shared(around.clone()), 0..100).1) && around.struck() > 0);
}

#[test]
fn a_stray_write_is_caught() {
    // Slot 5 belongs to rank 1: the waves of the other ranks have no such slot.
    let planted = |_: &Arc<HostMemory>| Planted::Stray { nth: 0, slot: 5 };
    let around = Arc::new(Around {
        only: Some(RankId(1)),
        ..Arc::into_inner(Around::planted(planted, Strike::Always)).unwrap()
    });
    assert!(caught(run(Shared(around.clone()), 0..100).1) && around.struck() > 0);
}

/// One rank's stream with a fault.
#[derive(Debug)]
struct OneStream(StreamFault);

impl Hooks for OneStream {
    fn stream(&self, rank: RankId, stream: HostStream) -> Box<dyn ServingStream> {
        let strike = if rank == RankId(2) { Strike::Always } else { Strike::Never };
        Box::new(FaultyStream::new(stream, self.0, strike, 0))
    }
}

#[test]
fn a_commit_skipped_on_one_rank_is_caught() {
    assert!(caught(run(OneStream(StreamFault::CommitSkipped), 0..400).1));
}

#[test]
fn a_copy_left_out_of_a_commit_is_caught() {
    assert!(caught(run(OneStream(StreamFault::LastCopySkipped), 0..400).1));
}

/// One rank reads or writes another board than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// It learns an agreed step one too small: its map is switched one step early.
    EarlyStep,
    /// It believes that everybody has drained long ago: drained slots are filled too soon.
    DrainedLongAgo,
    /// Hashes of others are rewritten to its own: the comparison is left out.
    HashNotCompared,
}

#[derive(Debug)]
struct Liar {
    lie: Option<Lie>,
    /// It hears nothing before.
    hears_from: Instant,
    own_hash: std::sync::Mutex<Option<Note>>,
}

impl Liar {
    fn twist(&self, record: Record) -> Record {
        match (self.lie, record.verdict) {
            (Some(Lie::EarlyStep), Verdict::Commit { step: Some(step) }) => {
                Record { verdict: Verdict::Commit { step: Some(step - 1) }, ..record }
            }
            _ => record,
        }
    }
}

impl BoardIntercept for Liar {
    fn publish(&self, inner: &dyn Board, from: RankId, note: Note) {
        if matches!(note, Note::Plan { .. }) {
            *self.own_hash.lock().unwrap() = Some(note.clone());
        }
        inner.publish(from, note);
    }

    fn collect(&self, inner: &dyn Board, reader: &mut Reader) -> Vec<(RankId, Note)> {
        if Instant::now() < self.hears_from {
            return Vec::new();
        }
        let mut notes = inner.collect(reader);
        for (_, note) in &mut notes {
            match (self.lie, &mut *note) {
                (Some(Lie::DrainedLongAgo), Note::Drained { first_step, .. }) => *first_step = 0,
                (Some(Lie::HashNotCompared), Note::Plan { .. }) => {
                    if let Some(own) = self.own_hash.lock().unwrap().clone() {
                        *note = own;
                    }
                }
                _ => {}
            }
        }
        notes
    }

    fn record(&self, inner: &dyn Board) -> Record {
        self.twist(inner.record())
    }

    fn decide(&self, inner: &dyn Board, from: Record, to: Record, until: Option<Instant>) -> Option<Record> {
        inner.decide(from, to, until).map(|record| self.twist(record))
    }
}

#[derive(Debug, Default)]
struct OneBoard {
    lie: Option<Lie>,
    /// The rank that lies, or all of them.
    liar: Option<RankId>,
    /// A rank that believes another placement was planned.
    misled: Option<(RankId, u64)>,
    /// A rank that hears nothing in the first so long of an exchange: it drains some steps after the others.
    deaf: Option<(RankId, Duration)>,
}

impl Hooks for OneBoard {
    fn board(&self, rank: RankId, board: Arc<dyn Board>) -> Arc<dyn Board> {
        let lie = self.lie.filter(|_| self.liar.is_none_or(|liar| liar == rank));
        let deaf = self.deaf.filter(|(deaf, _)| *deaf == rank).map(|(_, time)| time);
        if lie.is_none() && deaf.is_none() {
            return board;
        }
        let hears_from = Instant::now() + deaf.unwrap_or_default();
        Arc::new(InterceptedBoard::new(board, Liar { lie, hears_from, own_hash: Default::default() }))
    }

    fn placement(&self, rank: RankId, placement: Arc<Placement>) -> Arc<Placement> {
        match self.misled {
            Some((misled, seed)) if misled == rank => Arc::new(random(seed)),
            _ => placement,
        }
    }
}

#[test]
fn a_map_switched_one_step_early_is_caught() {
    // The liar is not the leader, which knows the step without reading it.
    let hooks = OneBoard { lie: Some(Lie::EarlyStep), liar: Some(RankId(3)), ..OneBoard::default() };
    assert!(caught(run(hooks, 0..400).1));
}

#[test]
fn a_drained_slot_filled_too_soon_is_caught() {
    // Bytes land in the step before the last rank's drain, which is long enough for that.
    let step = Duration::from_millis(5);
    let caught_with = |lie, exchanges| {
        let hooks = OneBoard { lie, deaf: Some((RankId(3), 3 * step)), ..OneBoard::default() };
        caught(run_with(hooks, exchanges, |settings| settings.step_time = step).1)
    };
    assert!(caught_with(Some(Lie::DrainedLongAgo), 0..100));
    assert!(!caught_with(None, 0..4), "a rank that drains late breaks nothing");
}

#[test]
fn a_rank_with_another_plan_is_refused_before_the_first_byte() {
    let hooks = OneBoard { misled: Some((RankId(1), 77)), ..OneBoard::default() };
    let (mut cluster, result) = run(hooks, 0..1);
    let error = result.unwrap_err();
    assert!(
        matches!(&error, EngineError::Aborted { wave: 0, cause: Cause::PlanMismatch { .. }, .. }),
        "{error}"
    );
    assert_eq!(cluster.placement(), &random(99));
    assert_eq!(cluster.check().unwrap(), 0);
}

#[test]
fn hashes_not_compared_are_caught() {
    let (lie, misled) = (Some(Lie::HashNotCompared), Some((RankId(1), 77)));
    let hooks = OneBoard { lie, misled, ..OneBoard::default() };
    assert!(caught(run(hooks, 0..1).1));
}

/// The main job on the shipped trace, as the command runs it, with the given faults.
fn walk(faults: Faults) -> (Arc<Around>, Result<Report, EngineError>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/day_26x64.npz");
    let trace = Trace::open(path).unwrap().select_steps(40..100).unwrap();
    let job = Rebalance {
        topology: Topology::uniform(8, 72).unwrap(),
        window: NonZeroUsize::new(20).unwrap(),
        plan: Options { policy: Policy::Incremental, target: Some(0.95), ..Options::default() },
        threads: 1,
        expert_bytes: 700,
        staging_bytes: None,
        verify: Verify::Full,
    };
    let (layout, mut settings) = job.settings(trace.layers()).unwrap();
    if faults.stall != Strike::Never {
        settings.deadlines.transfer = STALLED;
    }
    let around = Around::weather(faults);
    settings.hooks = Arc::new(Shared(around.clone()));
    let report = job.run_with(&trace, layout, settings, &mut |_| ());
    (around, report)
}

#[test]
fn the_main_job_under_faults_ends_in_the_right_bytes_or_in_a_named_error() {
    let (mut right, mut stopped) = (0, 0);
    for seed in 0..6 {
        let late = Some(Duration::ZERO..Duration::from_millis(2));
        let faults = Faults {
            seed,
            delay: late,
            reorder: true,
            fail: if seed % 3 == 1 { Strike::Chance(0.1) } else { Strike::Never },
            stall: if seed % 3 == 2 { Strike::Chance(0.1) } else { Strike::Never },
            ..Faults::default()
        };
        let (_, report) = walk(faults);
        match report {
            Ok(report) => {
                assert_eq!((report.bytes_wrong, report.first_wrong, report.windows.len()), (0, None, 3));
                right += 1;
            }
            Err(EngineError::Aborted {
                cause:
                    Cause::Transfer { .. }
                    | Cause::Timeout { phase: Phase::Moving, .. }
                    | Cause::PeerFailed { .. },
                ..
            }) => stopped += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(right >= 2 && stopped >= 1, "{right} right, {stopped} stopped");
}
