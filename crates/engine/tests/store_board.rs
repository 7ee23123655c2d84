//! The board on a store: what ranks say through it, what it keeps, and what becomes of an exchange when the store is lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eplb_comm::store::{
    CasOutcome, Deadlines, InProcessStore, InterceptedStore, Store, StoreError, StoreIntercept, StoreOp,
};
use eplb_core::{Placement, RankId, Topology};
use eplb_engine::board::{Board, Reader, StoreBoard};
use eplb_engine::cluster::{Cluster, Hooks, Settings, weights};
use eplb_engine::{BoardError, EngineError};
use eplb_exchange::{Cause, Note, Part, Record, Touched, Verdict};
use eplb_plan::{Options, Planner, Policy, Request};
use ndarray::Array2;

const MEMBERS: [RankId; 2] = [RankId(0), RankId(1)];

fn deadlines() -> Deadlines {
    Deadlines { renew: Duration::from_millis(20), operation: Duration::from_secs(2), ..Deadlines::DEFAULT }
}

fn in_process() -> Arc<dyn Store> {
    Arc::new(InProcessStore::new())
}

fn pair(store: &Arc<dyn Store>, epoch: u64) -> [Arc<StoreBoard>; 2] {
    MEMBERS.map(|rank| StoreBoard::open(store.clone(), epoch, rank, &MEMBERS, &deadlines()).unwrap())
}

/// What becomes of a question that threads answer soon.
fn soon<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn heard(board: &StoreBoard, count: usize) -> Vec<Note> {
    let mut reader = Reader::new(RankId(0));
    let mut notes = Vec::new();
    soon(|| {
        notes.extend(board.collect(&mut reader).into_iter().map(|(_, note)| note));
        (notes.len() >= count).then_some(())
    });
    notes
}

#[test]
fn notes_arrive_once_in_order_and_old_ones_are_forgotten() {
    let store = in_process();
    let [a, b] = pair(&store, 7);
    let deadline = Instant::now() + Duration::from_secs(60);
    for board in [&a, &b] {
        board.begin().unwrap();
        assert_eq!(board.position(), (1, 0));
    }
    for wave in 0..200 {
        let said = [
            Note::Drained { wave, part: Part::Late, first_step: 1 },
            Note::Committed { wave, first_step: 2 },
        ];
        said.iter().for_each(|note| a.publish(RankId(0), note.clone()));
        assert_eq!(heard(&b, 2), said);
        let held = store.get("7/notes/0", deadline).unwrap().unwrap().len();
        assert!(held < 200, "{held} bytes of notes at wave {wave}");
    }
    // A note of the next exchange waits for the reader to be in it, and the last notes of this one can still be read.
    a.publish(RankId(0), Note::Stopped { wave: 199, touched: Touched::default() });
    a.begin().unwrap();
    a.publish(RankId(0), Note::Plan { hash: 1, next_step: 0 });
    assert_eq!(heard(&b, 1), [Note::Stopped { wave: 199, touched: Touched::default() }]);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(b.collect(&mut Reader::new(RankId(1))), []);
    b.begin().unwrap();
    assert_eq!(heard(&b, 1), [Note::Plan { hash: 1, next_step: 0 }]);
    assert_eq!((a.position(), a.lost(), b.lost()), ((2, 0), None, None));
}

#[test]
fn one_record_counts_the_waves_of_all_exchanges_until_the_epoch_is_closed() {
    let store = in_process();
    let [a, b] = pair(&store, 3);
    a.begin().unwrap();
    b.begin().unwrap();
    let commit = Record { decided: 1, verdict: Verdict::Commit { step: Some(9) }, closed: false };
    let abort = Record { decided: 1, verdict: Verdict::Abort, closed: false };
    let until = Some(Instant::now() + Duration::from_secs(20));
    assert_eq!(a.decide(Record::OPEN, commit, until), Some(commit));
    assert_eq!(b.decide(Record::OPEN, abort, until), Some(commit), "the first has decided");
    // Without waiting the answer comes as any change of the record does.
    let second = Record { decided: 2, ..abort };
    assert_eq!(b.decide(commit, second, None), None);
    assert_eq!(soon(|| Some(a.record()).filter(|record| *record != commit)), second);
    assert_eq!(soon(|| Some(b.record()).filter(|record| *record != commit)), second);
    for board in [&a, &b] {
        board.begin().unwrap();
        assert_eq!((board.position(), board.record()), ((2, 2), Record::OPEN));
    }
    assert_eq!(a.decide(Record::OPEN, abort, until), Some(abort));
    a.close().unwrap();
    b.close().unwrap();
    let closed = Record { closed: true, ..abort };
    assert_eq!(soon(|| Some(b.record()).filter(|record| record.closed)), closed);
    assert_eq!(b.decide(abort, Record { decided: 2, ..abort }, until), Some(closed));
    assert_eq!(a.begin(), Err(BoardError::Closed { epoch: 3 }));
}

#[test]
fn a_rank_that_begins_late_begins_where_the_others_did() {
    let store = in_process();
    let [a, b] = pair(&store, 3);
    let abort = Record { decided: 1, verdict: Verdict::Abort, closed: false };
    let until = Some(Instant::now() + Duration::from_secs(20));
    for exchange in 1..4 {
        // Given up before the other has begun, for which it is an abort of this exchange and not of one before.
        a.begin().unwrap();
        assert_eq!(a.decide(Record::OPEN, abort, until), Some(abort));
        b.begin().unwrap();
        assert_eq!((a.position(), b.position()), ((exchange, exchange - 1), (exchange, exchange - 1)));
        assert_eq!([a.record(), b.record()], [abort, abort]);
        assert_eq!(b.decide(Record::OPEN, abort, until), Some(abort), "it is decided once");
    }
}

#[test]
fn who_is_known_to_have_left_has_been_heard_out() {
    let store = in_process();
    for epoch in 0..50 {
        let [a, b] = pair(&store, epoch);
        a.begin().unwrap();
        b.begin().unwrap();
        let said = Note::Committed { wave: 0, first_step: epoch };
        let leaver = std::thread::spawn(move || {
            a.publish(RankId(0), said);
            drop(a);
        });
        let mut notes = Vec::new();
        soon(|| {
            let left = b.left();
            notes.extend(b.collect(&mut Reader::new(RankId(1))));
            (left == [RankId(0)]).then_some(())
        });
        assert_eq!(notes, [(RankId(0), Note::Committed { wave: 0, first_step: epoch })]);
        leaver.join().unwrap();
        assert_eq!(b.left(), [RankId(0)], "this rank is here");
    }
}

#[test]
fn a_rank_that_makes_no_progress_shows_no_life() {
    let store = in_process();
    let [a, b] = pair(&store, 1);
    let sign = |rank: usize| a.signs()[rank].1;
    // The first sign of each tells that its board is open.
    soon(|| (sign(0) > 0 && sign(1) > 0).then_some(()));
    let (before, looks) = (sign(1), a.looks());
    soon(|| {
        b.renew(RankId(1));
        (sign(1) > before + 2).then_some(())
    });
    let silent = sign(0);
    soon(|| (a.looks() > looks + 5).then_some(()));
    assert_eq!(sign(0), silent, "rank 0 was not renewed");
}

#[test]
fn junk_under_its_keys_loses_the_board_by_name() {
    let deadline = Instant::now() + Duration::from_secs(60);
    for (key, epoch) in [("1/decision", 1), ("2/notes/1", 2)] {
        let store = in_process();
        let [a, _b] = pair(&store, epoch);
        store.set(key, b"\x63junk", deadline).unwrap();
        let why = soon(|| a.lost());
        assert!(why.contains(key) && why.contains("version"), "{why}");
        assert!(matches!(a.begin(), Err(BoardError::Lost { .. })));
    }
    let store = in_process();
    let stranger = StoreBoard::open(store, 1, RankId(5), &MEMBERS, &deadlines());
    assert_eq!(stranger.err(), Some(BoardError::NotMember { rank: RankId(5), epoch: 1 }));
}

/// A store whose answers to decisions come when nobody waits for them any more, as to a process that was stopped.
#[derive(Debug)]
struct Unheard {
    /// How many of them.
    answers: AtomicU64,
    /// Whether the store carried out what it was asked for.
    done: bool,
}

impl StoreIntercept for Unheard {
    fn compare_and_set(
        &self,
        inner: &dyn Store,
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        let fewer = |left: u64| left.checked_sub(1);
        if self.answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_err() {
            return inner.compare_and_set(key, expected, value, deadline);
        }
        if self.done {
            drop(inner.compare_and_set(key, expected, value, deadline)?);
        }
        let waited = deadline.saturating_duration_since(Instant::now());
        std::thread::sleep(waited);
        Err(StoreError::Timeout { op: StoreOp::CompareAndSet, keys: vec![key.into()], waited })
    }
}

#[test]
fn a_decision_whose_answer_was_not_heard_is_asked_for_once_more() {
    let commit = Record { decided: 1, verdict: Verdict::Commit { step: Some(9) }, closed: false };
    let abort = Record { verdict: Verdict::Abort, ..commit };
    // How many answers are not heard, whether the store did what was asked for, and whether another rank has decided.
    for (answers, done, decided) in
        [(1, true, false), (1, false, false), (1, false, true), (2, true, false), (2, false, true)]
    {
        let unheard = Unheard { answers: AtomicU64::new(answers), done };
        let inner = in_process();
        let store: Arc<dyn Store> = Arc::new(InterceptedStore::new(inner.clone(), unheard));
        let open = |store, rank| StoreBoard::open(store, 1, rank, &MEMBERS, &deadlines()).unwrap();
        let (a, b) = (open(store, RankId(0)), open(inner, RankId(1)));
        a.begin().unwrap();
        b.begin().unwrap();
        let long = Some(Instant::now() + Duration::from_secs(20));
        if decided {
            assert_eq!(b.decide(Record::OPEN, commit, long), Some(commit));
        }
        // At the step the rank aborts what it has heard nothing of.
        let answer = a.decide(Record::OPEN, abort, Some(Instant::now() + Duration::from_millis(40)));
        let expected = if decided { commit } else { abort };
        assert_eq!(answer, (answers < 2).then_some(expected), "{answers}, {done}, {decided}");
        assert_eq!(a.lost(), None);
    }
}

/// Loses a store after a number of mutations.
#[derive(Debug)]
struct Mortal {
    left: AtomicU64,
}

impl StoreIntercept for Mortal {
    fn before(&self, operation: StoreOp, keys: &[&str]) -> Result<(), StoreError> {
        // Signs of life and the bell depend on time; only what the protocol writes counts.
        let mutates = match operation {
            StoreOp::Set => !keys[0].contains("alive"),
            StoreOp::CompareAndSet | StoreOp::Delete => true,
            _ => false,
        };
        let less =
            |left: u64| if mutates { left.checked_sub(1) } else { Some(left).filter(|&left| left > 0) };
        let alive = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok();
        if alive {
            return Ok(());
        }
        self.left.store(0, Ordering::SeqCst);
        Err(StoreError::Lost { store: "mortal".into(), cause: "its time has come".into() })
    }
}

/// Every rank of a cluster speaks through a store; each exchange is an epoch of its own.
#[derive(Debug)]
struct ThroughStore {
    store: Arc<dyn Store>,
    ranks: u32,
    opened: Mutex<Vec<u64>>,
}

impl ThroughStore {
    fn new(store: Arc<dyn Store>, ranks: u32) -> Arc<Self> {
        Arc::new(Self { store, ranks, opened: Mutex::new(vec![0; ranks as usize]) })
    }
}

#[derive(Debug)]
struct Shared<T>(Arc<T>);

impl Hooks for Shared<ThroughStore> {
    fn board(&self, rank: RankId, board: Arc<dyn Board>) -> Arc<dyn Board> {
        let epoch = {
            let mut opened = self.0.opened.lock().unwrap();
            opened[rank.index()] += 1;
            opened[rank.index()]
        };
        let members: Vec<RankId> = (0..self.0.ranks).map(RankId).collect();
        let opened = StoreBoard::open(self.0.store.clone(), epoch, rank, &members, &deadlines()).unwrap();
        // A store that is lost already: the exchange finds out by itself.
        drop((opened.begin(), board));
        opened
    }
}

fn random(seed: u64, topology: &Topology) -> Placement {
    let loads = eplb_core::LoadMatrix::from_sum(Array2::from_elem((2, 12), 1.0)).unwrap();
    let options = Options { policy: Policy::Random, seed, ..Options::default() };
    Planner::new(1).unwrap().plan(&Request::new(&loads, topology, &options)).unwrap().placement
}

fn cluster(store: Arc<dyn Store>) -> (Topology, Cluster) {
    let topology = Topology::uniform(4, 16).unwrap();
    let layout = weights::layout(2, 1500).unwrap();
    let mut settings = Settings::new(&layout, &topology);
    settings.limits.staging_bytes = 4 * layout.largest_staged();
    settings.step_time = Duration::from_micros(200);
    settings.margin = 16;
    settings.hooks = Arc::new(Shared(ThroughStore::new(store, 4)));
    let start = random(99, &topology);
    let cluster = Cluster::start(&topology, layout, start, settings).unwrap();
    (topology, cluster)
}

#[test]
fn experts_move_with_all_control_traffic_through_a_store() {
    let (topology, mut cluster) = cluster(in_process());
    let loads = Array2::from_shape_fn((2, 12), |(l, e)| (1 + (l * 7 + e * 5) % 11) as f64);
    for seed in 0..3 {
        let moved = cluster.rebalance(&random(seed, &topology), &loads).unwrap();
        assert_eq!((moved.bytes_wrong, moved.first_wrong), (0, None));
        assert!(moved.totals.staged + moved.totals.in_place > 0);
        assert_eq!(cluster.check().unwrap(), 0);
    }
}

#[test]
fn a_store_that_is_lost_at_any_moment_ends_the_exchange_by_name_and_no_rank_waits() {
    let loads = Array2::from_shape_fn((2, 12), |(l, e)| (1 + (l * 7 + e * 5) % 11) as f64);
    let (mut lost, mut undecided, mut done) = (0, 0, 0);
    for left in [0, 3, 6, 9, 12, 14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 26, 29, 33, 40, 1000] {
        let mortal = Mortal { left: AtomicU64::new(left) };
        let store = Arc::new(InterceptedStore::new(in_process(), mortal));
        let (topology, mut cluster) = cluster(store);
        match cluster.rebalance(&random(5, &topology), &loads) {
            Ok(moved) => {
                assert_eq!((moved.bytes_wrong, moved.first_wrong), (0, None));
                done += 1;
            }
            Err(EngineError::Aborted { cause: Cause::StoreLost { detail, .. }, .. }) => {
                assert!(detail.contains("its time has come"), "{detail}");
                lost += 1;
            }
            // The agreed step came, or ranks were left with different knowledge: nobody guessed.
            Err(EngineError::Undecided { .. } | EngineError::Diverged { .. }) => undecided += 1,
            Err(other) => panic!("{left}: {other}"),
        }
    }
    assert!(lost > 2 && done > 0, "{lost} lost, {undecided} undecided, {done} done");
}
