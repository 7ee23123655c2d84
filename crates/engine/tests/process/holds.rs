//! The one wait in a step: the step of a commit has come, and this rank does not know what was decided.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eplb_comm::store::deadlines::after;
use eplb_comm::store::{ServerOptions, StoreAddress, StoreServer};
use eplb_core::RankId;
use eplb_engine::EngineError;
use eplb_engine::board::{Board, BoardIntercept, InterceptedBoard};
use eplb_engine::cluster::Hooks;
use eplb_engine::driver::Held;
use eplb_engine::process::{Member, Session};
use eplb_exchange::{Cause, Record, Verdict};

use super::support::{Threads, deadlines, job, loads, on_threads, random, topology};

const RANKS: usize = 3;
const MARGIN: u64 = 4;
/// Decisions for a step that are held up.
const HELD_UP: u64 = 3;

/// What becomes of the first decisions for a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// They get lost on the way to the store.
    Lost,
    /// They get there just before the first rank asks that comes to the step.
    Late,
    /// They get lost, and the store does not answer ranks that come to the step.
    NoAnswer,
}

#[derive(Debug)]
struct Weather {
    fate: Fate,
    left: AtomicU64,
    /// How often ranks asked in a step what was decided.
    asked: AtomicU64,
    /// A decision on its way.
    late: Mutex<Option<(Record, Record)>>,
    /// Whether the store answers again.
    fair: AtomicBool,
}

impl Weather {
    fn new(fate: Fate) -> Arc<Self> {
        Arc::new(Self {
            fate,
            left: AtomicU64::new(HELD_UP),
            asked: AtomicU64::new(0),
            late: Mutex::default(),
            fair: AtomicBool::new(false),
        })
    }

    fn take(&self) -> bool {
        let fewer = |left: u64| left.checked_sub(1);
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok()
    }
}

#[derive(Debug)]
struct HeldUp(Arc<Weather>);

impl BoardIntercept for HeldUp {
    fn decide(&self, inner: &dyn Board, from: Record, to: Record, until: Option<Instant>) -> Option<Record> {
        let Weather { fate, asked, late, fair, .. } = self.0.as_ref();
        if until.is_some() {
            asked.fetch_add(1, Ordering::SeqCst);
            if *fate == Fate::NoAnswer && !fair.load(Ordering::SeqCst) {
                return None;
            }
            // Nobody else asks before it has arrived.
            let mut late = late.lock().unwrap();
            if let Some((from, to)) = late.take() {
                inner.decide(from, to, until).unwrap();
            }
            drop(late);
        } else if matches!(to.verdict, Verdict::Commit { step: Some(_) }) && self.0.take() {
            if *fate == Fate::Late {
                *late.lock().unwrap() = Some((from, to));
            }
            return None;
        }
        inner.decide(from, to, until)
    }
}

#[derive(Debug)]
struct HoldsUp(Arc<Weather>);

impl Hooks for HoldsUp {
    fn board(&self, _rank: RankId, inner: Arc<dyn Board>) -> Arc<dyn Board> {
        Arc::new(InterceptedBoard::new(inner, HeldUp(self.0.clone())))
    }
}

/// Runs ranks over a store on TCP, a thread each.
fn ranks<T: Send>(weather: &Arc<Weather>, run: impl Fn(Member) -> T + Sync) -> Vec<T> {
    let options = ServerOptions { deadlines: deadlines().store, ..ServerOptions::default() };
    let server = StoreServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options).unwrap();
    let address: StoreAddress = format!("tcp://{}", server.local_address()).parse().unwrap();
    let transport = Arc::new(Threads::default());
    on_threads(RANKS, |rank| {
        let store = address.open(None, &deadlines().store, after(Duration::from_secs(60))).unwrap();
        let mut job = job(RANKS, &transport);
        job.settings.hooks = Arc::new(HoldsUp(weather.clone()));
        job.settings.margin = MARGIN;
        job.settings.deadlines.peer = Duration::from_secs(60);
        job.settings.deadlines.transfer = Duration::from_secs(60);
        job.settings.deadlines.commit_hold = Duration::from_secs(60);
        let session = Session::join(store, rank, RANKS, &deadlines()).unwrap();
        run(Member::start(session, job).unwrap())
    })
}

/// Makes exchanges until all decisions that were to be held up have been.
fn exchanges(weather: &Weather, mut member: Member) -> Held {
    // Every rank counts the same: decisions are held up before an exchange ends, and collectives stand between two.
    let mut round = 0;
    while round == 0 || weather.left.load(Ordering::SeqCst) > 0 {
        let done = member.rebalance(&random(round, &topology(RANKS)), &loads()).unwrap();
        assert_eq!((done.bytes_wrong, member.check().unwrap()), (0, 0));
        // Nobody looks before all have ended.
        member.session().hosts().unwrap();
        round += 1;
    }
    let held = member.held();
    if weather.fate == Fate::Lost {
        // Four times as large after each loss, half as large after each exchange that completes.
        assert!(member.margin() > MARGIN, "{}", member.margin());
        let shrinks = (round..round + 100).any(|round| {
            let before = member.margin();
            member.rebalance(&random(round, &topology(RANKS)), &loads()).unwrap();
            member.margin() < before
        });
        assert!(shrinks, "still {}", member.margin());
    }
    held
}

fn sum(all: Vec<Held>) -> Held {
    all.into_iter().fold(Held::default(), |mut sum, held| {
        sum += held;
        sum
    })
}

fn assert_counted(weather: &Weather, all: Held) {
    assert!(all.steps <= weather.asked.load(Ordering::SeqCst), "{all:?}");
    assert!(all.steps >= HELD_UP && !all.time.is_zero(), "{all:?}");
    assert!(all.commits > 0 && !all.commit_time.is_zero(), "{all:?}");
}

#[test]
fn a_step_that_comes_before_the_decision_waits_and_obeys_it() {
    let weather = Weather::new(Fate::Late);
    let all = sum(ranks(&weather, |member| exchanges(&weather, member)));
    assert_counted(&weather, all);
}

#[test]
fn a_wave_whose_decision_got_lost_is_given_up_by_all_and_made_again() {
    let weather = Weather::new(Fate::Lost);
    let all = sum(ranks(&weather, |member| exchanges(&weather, member)));
    assert_counted(&weather, all);
}

/// Whether a rank ended without knowing what was decided, or because of one that did.
fn is_unknown(error: &EngineError) -> bool {
    match error {
        EngineError::AtStage { error, .. } => is_unknown(error),
        EngineError::Unknown { .. } => true,
        EngineError::Aborted { cause, .. } => {
            // The rank that does not know stops taking part, and closes the epoch when it joins the next.
            let followed = matches!(
                cause,
                Cause::PeerSilent { .. } | Cause::PeerFailed { .. } | Cause::EpochClosed { .. }
            );
            assert!(followed, "{error}");
            false
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_step_does_not_run_when_nobody_says_what_was_decided() {
    let weather = Weather::new(Fate::NoAnswer);
    let ended = ranks(&weather, |mut member| {
        let before = member.placement().clone();
        let error = member.rebalance(&random(0, &topology(RANKS)), &loads()).unwrap_err();
        assert_eq!(member.check().unwrap(), 0);
        let mut member = member.rejoin(None).unwrap();
        weather.fair.store(true, Ordering::SeqCst);
        weather.left.store(0, Ordering::SeqCst);
        member.session().hosts().unwrap();
        member.rebalance(&random(1, &topology(RANKS)), &loads()).unwrap();
        assert_eq!(member.check().unwrap(), 0);
        assert_ne!(member.placement(), &before);
        is_unknown(&error)
    });
    assert!(ended.contains(&true), "some rank came to the step first");
}
