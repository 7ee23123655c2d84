//! Waits that are left, and a barrier that all members pass or none.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use eplb_core::RankId;
use proptest::prelude::*;

use super::{connect, serve, soon};
use crate::store::deadlines::after;
use crate::store::group::{Group, GroupError};
use crate::store::tcp::ServerOptions;
use crate::store::{
    CasOutcome, InProcessStore, InterceptedStore, Interrupt, InterruptibleStore, Store, StoreError,
    StoreIntercept,
};

/// Never reached: a wait that is not left until then is a failure of the test's own.
fn never() -> Instant {
    after(Duration::from_secs(600))
}

const GRACE: Duration = Duration::from_secs(60);

/// Whether a wait of a store ends when it is told to, within a time that its deadline is far beyond.
fn is_left(store: Arc<dyn Store>, told: &AtomicBool) -> bool {
    let (tell, ended) = mpsc::channel();
    type Wait = fn(&dyn Store) -> Result<(), StoreError>;
    let waits: [Wait; 2] = [
        |store| store.wait(&["never there"], never()),
        |store| store.wait_change("never there", None, never()).map(drop),
    ];
    for wait in waits {
        let (store, tell) = (store.clone(), tell.clone());
        // Left behind where it does not end.
        thread::spawn(move || drop(tell.send(wait(&*store))));
    }
    assert!(ended.recv_timeout(Duration::from_millis(120)).is_err(), "nothing was said yet");
    told.store(true, Ordering::SeqCst);
    let left =
        |_| matches!(ended.recv_timeout(Duration::from_secs(20)), Ok(Err(error)) if error.is_interrupted());
    (0..2).all(left)
}

fn interruptible(inner: Arc<dyn Store>) -> (Arc<dyn Store>, Arc<AtomicBool>) {
    let told = Arc::new(AtomicBool::new(false));
    let asked = told.clone();
    let interrupt = Interrupt::new(move || asked.load(Ordering::SeqCst));
    (Arc::new(InterruptibleStore::new(inner, interrupt)), told)
}

#[test]
fn waits_are_left_when_the_rank_is_told_to_and_nothing_else_is() {
    let server = serve(ServerOptions::default());
    for inner in [Arc::new(InProcessStore::new()) as Arc<dyn Store>, Arc::new(connect(&server))] {
        let (store, told) = interruptible(inner);
        assert!(is_left(store.clone(), &told));
        store.set("k", b"v", soon()).unwrap();
        assert_eq!(store.get("k", soon()).unwrap().as_deref(), Some(&b"v"[..]));
        let error = store.wait(&["k", "l"], soon()).unwrap_err();
        assert!(error.to_string().contains("\"k\", \"l\" was left"), "{error}");
    }
}

#[test]
fn a_key_that_was_there_once_is_waited_for_no_longer() {
    let inner = InProcessStore::new();
    let pieces = Arc::new(AtomicUsize::new(0));
    let counted = pieces.clone();
    let interrupt = Interrupt::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        false
    });
    let store = InterruptibleStore::new(Arc::new(inner.clone()), interrupt);
    let one_more = |whole: usize| {
        let before = pieces.load(Ordering::SeqCst);
        super::until("a piece of the wait", || pieces.load(Ordering::SeqCst) > before + whole);
    };
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.wait(&["a", "b"], soon()));
        one_more(0);
        inner.set("a", b"", soon()).unwrap();
        one_more(1);
        inner.delete("a", soon()).unwrap();
        inner.set("b", b"", soon()).unwrap();
        waiting.join().unwrap().unwrap();
    });
}

/// Plants a fault: waits as long as it was told at first.
#[derive(Debug)]
struct Deaf;

impl StoreIntercept for Deaf {}

#[test]
fn a_wait_that_is_not_left_is_noticed() {
    let told = AtomicBool::new(false);
    let inner = InProcessStore::new();
    let store = Arc::new(InterceptedStore::new(Arc::new(inner.clone()), Deaf));
    let found = thread::scope(|scope| {
        let found = scope.spawn(|| is_left(store, &told));
        // Ends what would wait for ten minutes, as an error that is no interruption.
        super::until("the word", || told.load(Ordering::SeqCst));
        inner.close("the test is over");
        found.join().unwrap()
    });
    assert!(!found);
}

/// A member of a barrier: after how many operations of its store it is told to leave, and how long each takes it.
#[derive(Debug, Clone, Copy)]
struct Member {
    leaves_after: usize,
    slowness: [u8; 4],
}

/// Ends the wait of a member at a chosen operation, and takes its time with each.
#[derive(Debug)]
struct Paced {
    member: Member,
    done: AtomicUsize,
    /// A verdict of its own is forgotten: the fault to be found.
    forgets: bool,
}

impl Paced {
    fn pace(&self) -> usize {
        let at = self.done.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_micros(u64::from(self.member.slowness[at % 4])));
        at
    }
}

impl StoreIntercept for Paced {
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        self.pace();
        inner.set(key, value, deadline)
    }

    fn wait(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        loop {
            if self.pace() >= self.member.leaves_after {
                let keys = keys.iter().map(|&key| key.to_owned()).collect();
                return Err(StoreError::Interrupted { op: crate::store::StoreOp::Wait, keys });
            }
            match inner.wait(keys, deadline.min(after(Duration::from_micros(20)))) {
                Err(StoreError::Timeout { .. }) => {}
                ended => return ended,
            }
        }
    }

    fn compare_and_set(
        &self,
        inner: &dyn Store,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        self.pace();
        if self.forgets {
            return Ok(CasOutcome::Swapped);
        }
        inner.compare_and_set(key, expected, new, deadline)
    }
}

/// What came of a barrier on each member.
fn meet(members: &[Member], forgets: bool) -> Vec<Result<(), GroupError>> {
    let inner: Arc<dyn Store> = Arc::new(InProcessStore::new());
    let ranks: Vec<RankId> = (0..members.len()).map(RankId::at).collect();
    thread::scope(|scope| {
        let met: Vec<_> = (0..members.len())
            .map(|at| {
                let paced = Paced { member: members[at], done: AtomicUsize::new(0), forgets };
                let store = Arc::new(InterceptedStore::new(inner.clone(), paced));
                let mut group = Group::new(store, 1, ranks[at], &ranks).unwrap();
                scope.spawn(move || {
                    let met = group.barrier_all_or_none("connecting", never(), GRACE);
                    if let Err(error) = &met {
                        let next = group.barrier("the next", soon()).unwrap_err();
                        assert!(matches!(next, GroupError::Broken { .. }), "{next} after {error}");
                    }
                    met
                })
            })
            .collect();
        met.into_iter().map(|member| member.join().unwrap()).collect()
    })
}

fn members() -> impl Strategy<Value = Vec<Member>> {
    let member = (prop_oneof![2 => 0..12usize, 1 => Just(usize::MAX)], any::<[u8; 4]>())
        .prop_map(|(leaves_after, slowness)| Member { leaves_after, slowness });
    // One that never leaves waits for ever for one that has left without a word: it has written an entry, so it does not.
    proptest::collection::vec(member, 2..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn all_members_pass_or_none_whoever_leaves_when(members in members()) {
        let met = meet(&members, false);
        let passed = met.iter().filter(|met| met.is_ok()).count();
        prop_assert!(passed == 0 || passed == met.len(), "{met:?}");
        if members.iter().all(|member| member.leaves_after == usize::MAX) {
            prop_assert_eq!(passed, met.len());
        }
    }
}

#[test]
fn a_barrier_that_some_pass_is_found() {
    // Rank 1 leaves before it looks, rank 0 finds its entry.
    let leaves = Member { leaves_after: 0, slowness: [0; 4] };
    let stays = Member { leaves_after: usize::MAX, slowness: [0; 4] };
    let met = meet(&[stays, leaves], true);
    assert!(met[0].is_ok() && met[1].is_err(), "{met:?}");
    // With its word kept: whoever writes first.
    for _ in 0..20 {
        let met = meet(&[stays, leaves], false);
        match &met[0] {
            Ok(()) => assert!(met[1].is_ok(), "{met:?}"),
            Err(GroupError::CalledOff { rank: RankId(1), reason, .. }) => {
                assert!(reason.contains("was left") && met[1].is_err(), "{met:?}");
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_member_that_has_ended_calls_a_barrier_off() {
    let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
    let ranks = [RankId(0), RankId(1)];
    let [mut stays, mut ends] = ranks.map(|rank| Group::new(store.clone(), 1, rank, &ranks).unwrap());
    ends.give_up("its engine was shut down", soon()).unwrap();
    let error = stays.barrier_all_or_none("connecting", never(), GRACE).unwrap_err();
    let gave_up = GroupError::GaveUp { rank: RankId(1), epoch: 1, reason: "its engine was shut down".into() };
    assert_eq!(error, gave_up);
}

#[test]
fn verdicts_do_not_add_up() {
    let inner = InProcessStore::new();
    let store: Arc<dyn Store> = Arc::new(inner.clone());
    let ranks = [RankId(0), RankId(1), RankId(2)];
    thread::scope(|scope| {
        for rank in ranks {
            let mut group = Group::new(store.clone(), 1, rank, &ranks).unwrap();
            scope.spawn(move || {
                for _ in 0..20 {
                    group.barrier_all_or_none("connecting", soon(), GRACE).unwrap();
                }
                group.barrier("a", soon()).unwrap();
                group.barrier("b", soon()).unwrap();
            });
        }
    });
    assert!(inner.len() <= 2 * ranks.len(), "{} keys are left", inner.len());
    let verdict = |sequence| inner.get(&format!("1/group/{sequence}/verdict"), soon()).unwrap();
    assert!((1..=20).all(|sequence| verdict(sequence).is_none()));
}
