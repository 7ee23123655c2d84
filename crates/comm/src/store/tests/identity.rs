//! Forming epochs: stale runs, restarts at any moment, stopped leaders, ranks that do not come.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use eplb_core::RankId;

use super::{shortly, soon, until};
use crate::store::deadlines::after;
use crate::store::identity::{Absent, EPOCH_KEY, EpochRecord, Formation, FormationError, Nonce};
use crate::store::{InProcessStore, InterceptedStore, Store, StoreError, StoreIntercept, StoreOp};

/// What a start of a rank is given, most often.
fn start(rank: u32, world: u32) -> Formation {
    Formation {
        rank: RankId(rank),
        nonce: Nonce::draw().unwrap(),
        expected: (0..world).map(RankId).collect(),
        last: None,
        absent: Absent::Fail,
        accept: Duration::from_secs(5),
    }
}

/// The same start, forming an epoch after `last` with `expected`.
fn again(formation: &Formation, last: u64, expected: &[u32]) -> Formation {
    let expected = expected.iter().copied().map(RankId).collect();
    Formation { last: Some(last), expected, ..formation.clone() }
}

type Outcome = Result<EpochRecord, FormationError>;

fn form_all(store: &dyn Store, starts: &[Formation], deadline: Instant) -> Vec<Outcome> {
    thread::scope(|scope| {
        let threads: Vec<_> =
            starts.iter().map(|start| scope.spawn(move || start.form(store, deadline))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The one record that all starts have formed.
#[track_caller]
fn agreed(outcomes: Vec<Outcome>, starts: &[Formation]) -> EpochRecord {
    let mut records: Vec<EpochRecord> = outcomes.into_iter().map(Result::unwrap).collect();
    records.dedup();
    assert_eq!(records.len(), 1, "{records:?}");
    let record = records.remove(0);
    let members: Vec<(RankId, Nonce)> = starts.iter().map(|start| (start.rank, start.nonce)).collect();
    assert!(record.formed);
    assert_eq!(record.members, members);
    record
}

#[test]
fn ranks_form_one_epoch_and_the_next_run_a_later_one() {
    let store = InProcessStore::new();
    let mut last = 0;
    let mut keys = 0;
    for run in 1..=5 {
        // Nothing of the run before is cleaned up; its hellos and its record stand.
        let starts: Vec<Formation> = (0..4).map(|rank| start(rank, 4)).collect();
        let record = agreed(form_all(&store, &starts, soon()), &starts);
        assert!(record.epoch > last, "{} after {last}", record.epoch);
        assert_eq!(record.ranks(), (0..4).map(RankId).collect::<Vec<_>>());
        last = record.epoch;
        if run == 1 {
            assert_eq!(last, 1);
            keys = store.len();
        }
    }
    assert_eq!(store.len(), keys);
}

#[test]
fn leader_that_is_early_does_not_form_an_epoch_with_an_earlier_run() {
    let store = InProcessStore::new();
    let old: Vec<Formation> = (0..3).map(|rank| start(rank, 3)).collect();
    let old_epoch = agreed(form_all(&store, &old, soon()), &old).epoch;

    // Only the leader of the new run is there. The hellos of the old ranks stand, and even say "accepted".
    let new: Vec<Formation> = (0..3).map(|rank| start(rank, 3)).collect();
    thread::scope(|scope| {
        let leader = scope.spawn(|| new[0].form(&store, soon()));
        until("a proposal with stale hellos", || {
            let record = store.get(EPOCH_KEY, soon()).unwrap().unwrap();
            record != encoded(&store, old_epoch) && !leader.is_finished()
        });
        let mut outcomes = form_all(&store, &new[1..], soon());
        outcomes.insert(0, leader.join().unwrap());
        let record = agreed(outcomes, &new);
        // The proposal with stale nonces, and then the one that formed.
        assert!(record.epoch >= old_epoch + 2);
    });
}

/// The record in the store if it is of this epoch; else nothing like it.
fn encoded(store: &InProcessStore, epoch: u64) -> Vec<u8> {
    let bytes = store.get(EPOCH_KEY, soon()).unwrap().unwrap();
    if bytes[2..10] == epoch.to_le_bytes() { bytes } else { Vec::new() }
}

#[test]
fn missing_ranks_are_named_by_the_leader_and_the_leader_by_the_others() {
    let store = InProcessStore::new();
    let (leader, follower) = (start(0, 4), start(2, 4));
    let outcomes = thread::scope(|scope| {
        let follower = scope.spawn(|| follower.form(&store, after(Duration::from_secs(1))));
        until("the follower's hello", || store.get("hello/2", soon()).unwrap().is_some());
        [leader.form(&store, after(Duration::from_millis(500))), follower.join().unwrap()]
    });
    match &outcomes[0] {
        Err(FormationError::Missing { ranks, .. }) => assert_eq!(*ranks, [RankId(1), RankId(3)]),
        other => panic!("{other:?}"),
    }
    match &outcomes[1] {
        Err(FormationError::NotListed { rank: RankId(2), leader: RankId(0), latest: None, .. }) => {}
        other => panic!("{other:?}"),
    }
    let text = outcomes[0].as_ref().unwrap_err().to_string();
    assert!(text.contains("ranks 1, 3"), "{text}");
}

#[test]
fn leader_whose_time_ends_when_all_have_come_names_who_was_waited_for() {
    let store = InProcessStore::new();
    let hello = start(1, 2);
    thread::scope(|scope| {
        let follower = scope.spawn(|| hello.form(&store, soon()));
        until("the follower's hello", || store.get("hello/1", soon()).unwrap().is_some());
        let deadline = after(Duration::from_millis(300));
        // All hellos stand, and the proposal comes too late.
        let slow = tapped(&store, |_, what| {
            if what == StoreOp::CompareAndSet {
                until("the deadline", || Instant::now() > deadline);
            }
            Ok(())
        });
        match start(0, 2).form(&slow, deadline) {
            Err(FormationError::Missing { ranks, .. }) => assert_eq!(ranks, [RankId(1)]),
            other => panic!("{other:?}"),
        }
        start(0, 2).form(&store, soon()).unwrap();
        follower.join().unwrap().unwrap();
    });
}

#[test]
fn stale_hello_of_a_rank_that_does_not_come_back_is_missing_as_well() {
    let store = InProcessStore::new();
    let old: Vec<Formation> = (0..2).map(|rank| start(rank, 2)).collect();
    agreed(form_all(&store, &old, soon()), &old);
    match start(0, 2).form(&store, shortly()) {
        Err(FormationError::Missing { ranks, .. }) => assert_eq!(ranks, [RankId(1)]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn epoch_forms_without_those_who_do_not_come_or_do_not_accept() {
    let store = InProcessStore::new();
    let old: Vec<Formation> = (0..4).map(|rank| start(rank, 4)).collect();
    let last = agreed(form_all(&store, &old, soon()), &old).epoch;
    // Rank 1 is dead, but its hello stands; rank 4 should join and does not come; rank 5 does.
    let everyone = &[0, 1, 2, 3, 4, 5];
    let joiner = Formation { expected: (0..6).map(RankId).collect(), ..start(5, 6) };
    let mut starts: Vec<Formation> = [0, 2, 3].map(|i| again(&old[i], last, everyone)).into();
    starts.push(joiner);
    for start in &mut starts {
        start.absent = Absent::LeaveOut { join_by: Instant::now() };
        start.accept = Duration::from_millis(500);
    }
    // The leader waits only when all who live have accepted what it has proposed: nobody is left out for being slow.
    let waiting = tapped(&store, |_, what| {
        if what == StoreOp::WaitChange {
            until("all who live accepting", || {
                let record = store.get(EPOCH_KEY, soon()).unwrap().unwrap();
                let hello = |rank| store.get(&format!("hello/{rank}"), soon()).unwrap().unwrap();
                [2, 3, 5].into_iter().all(|rank| hello(rank)[16..] == record[2..10])
            });
        }
        Ok(())
    });
    thread::scope(|scope| {
        let followers: Vec<_> =
            starts[1..].iter().map(|start| scope.spawn(|| start.form(&store, soon()))).collect();
        until("the joiner's hello", || store.get("hello/5", soon()).unwrap().is_some());
        let mut outcomes = vec![starts[0].form(&waiting, soon())];
        outcomes.extend(followers.into_iter().map(|follower| follower.join().unwrap()));
        assert!(agreed(outcomes, &starts).epoch > last);
    });
}

#[test]
fn rank_that_was_held_for_dead_is_told_that_it_is_excluded() {
    let store = InProcessStore::new();
    let old: Vec<Formation> = (0..3).map(|rank| start(rank, 3)).collect();
    let last = agreed(form_all(&store, &old, soon()), &old).epoch;
    let survivors = [0, 2].map(|i| again(&old[i], last, &[0, 2]));
    let epoch = agreed(form_all(&store, &survivors, soon()), &survivors).epoch;
    // It resumes, alone or with everyone in mind, as a follower or, without rank 0, as a leader.
    for expected in [&[0, 1, 2][..], &[1, 2], &[1]] {
        let outcome = again(&old[1], last, expected).form(&store, soon());
        assert_eq!(outcome, Err(FormationError::Excluded { rank: RankId(1), epoch }));
    }
    // It may join anew, when the others form an epoch with it.
    let mut starts = vec![again(&survivors[0], epoch, &[0, 1, 2]), start(1, 3)];
    starts.push(again(&survivors[1], epoch, &[0, 1, 2]));
    assert!(agreed(form_all(&store, &starts, soon()), &starts).epoch > epoch);
}

#[test]
fn leader_that_dies_after_its_proposal_is_replaced() {
    let store = InProcessStore::new();
    let old: Vec<Formation> = (0..3).map(|rank| start(rank, 3)).collect();
    let last = agreed(form_all(&store, &old, soon()), &old).epoch;
    // Rank 0 proposes an epoch with all and dies at once.
    let dying = tapped(&store, |_, what| if what == StoreOp::WaitChange { Err(died()) } else { Ok(()) });
    let outcome = again(&old[0], last, &[0, 1, 2]).form(&dying, soon());
    assert_eq!(outcome, Err(FormationError::Store(died())));
    let mut survivors = [1, 2].map(|i| again(&old[i], last, &[1, 2]));
    survivors.iter_mut().for_each(|start| start.accept = Duration::from_millis(20));
    let record = agreed(form_all(&store, &survivors, soon()), &survivors);
    assert_eq!(record.epoch, last + 2);
}

#[test]
fn leaders_that_disagree_on_who_lives_end_in_the_epoch_of_the_lower() {
    let store = InProcessStore::new();
    let old: Vec<Formation> = (0..3).map(|rank| start(rank, 3)).collect();
    let last = agreed(form_all(&store, &old, soon()), &old).epoch;
    // Rank 1 holds rank 0 for dead and leads. It is not, and proposes after rank 1 did and before that one forms.
    let starts = [(0, &[0, 1, 2][..]), (1, &[1, 2]), (2, &[0, 1, 2])]
        .map(|(i, expected)| again(&old[i], last, expected));
    let (proposed, swaps) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let higher = tapped(&store, |_, what| {
        if what == StoreOp::CompareAndSet && swaps.fetch_add(1, Ordering::SeqCst) == 1 {
            proposed.store(1, Ordering::SeqCst);
            until("the proposal of the lower", || leads(&store, 0));
        }
        Ok(())
    });
    thread::scope(|scope| {
        let one = scope.spawn(|| starts[1].form(&higher, soon()));
        let two = scope.spawn(|| starts[2].form(&store, soon()));
        until("the higher being about to form", || proposed.load(Ordering::SeqCst) == 1);
        assert!(leads(&store, 1));
        let zero = starts[0].form(&store, soon());
        agreed(vec![zero, one.join().unwrap(), two.join().unwrap()], &starts);
    });
}

/// Whether the record in the store is of an epoch whose lowest member is this rank.
fn leads(store: &InProcessStore, rank: u32) -> bool {
    store.get(EPOCH_KEY, soon()).unwrap().unwrap()[14..18] == rank.to_le_bytes()
}

#[test]
fn stopped_leader_that_resumes_cannot_form_its_old_epoch() {
    let store = InProcessStore::new();
    // Stopped before its second compare-and-set: all have accepted, and `formed` is about to be written.
    let (stopped, resume) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let swaps = AtomicUsize::new(0);
    let stopping = tapped(&store, |_, what| {
        if what == StoreOp::CompareAndSet && swaps.fetch_add(1, Ordering::SeqCst) == 1 {
            stopped.store(1, Ordering::SeqCst);
            until("resuming", || resume.load(Ordering::SeqCst) == 1);
        }
        Ok(())
    });
    let (old_leader, follower) = (start(0, 2), start(1, 2));
    let new_leader = start(0, 2);
    let (old, new, followed) = thread::scope(|scope| {
        let old = scope.spawn(|| old_leader.form(&stopping, soon()));
        let followed = scope.spawn(|| follower.form(&store, soon()));
        until("the leader being stopped", || stopped.load(Ordering::SeqCst) == 1);
        let new = new_leader.form(&store, soon());
        resume.store(1, Ordering::SeqCst);
        (old.join().unwrap(), new, followed.join().unwrap())
    });
    assert_eq!(old, Err(FormationError::Superseded { rank: RankId(0) }));
    let starts = [new_leader, follower];
    agreed(vec![new, followed], &starts);
}

#[test]
fn follower_whose_rank_was_started_again_is_told_so() {
    let store = InProcessStore::new();
    let (first, second, leader) = (start(1, 2), start(1, 2), start(0, 2));
    let hello = || store.get("hello/1", soon()).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| first.form(&store, soon()));
        until("the first hello", || hello().is_some());
        let before = hello();
        let second_formed = scope.spawn(|| second.form(&store, soon()));
        until("the second hello", || hello() != before);
        let led = leader.form(&store, soon());
        agreed(vec![led, second_formed.join().unwrap()], &[leader, second.clone()]);
        assert_eq!(first.join().unwrap(), Err(FormationError::Superseded { rank: RankId(1) }));
    });
}

#[test]
fn rank_that_does_not_expect_itself_is_refused() {
    let outcome = Formation { rank: RankId(9), ..start(0, 2) }.form(&InProcessStore::new(), soon());
    assert_eq!(outcome, Err(FormationError::NotExpected { rank: RankId(9) }));
}

#[test]
fn malformed_record_is_an_error_and_no_panic() {
    let store = InProcessStore::new();
    for junk in [&b""[..], b"x", &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255], &[9; 30]] {
        store.set(EPOCH_KEY, junk, soon()).unwrap();
        match start(1, 2).form(&store, soon()) {
            Err(FormationError::Store(StoreError::Protocol { detail, .. })) => {
                assert!(detail.contains("epoch record"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Kills a start of each rank before each of its store operations in turn, starts it again, and lets the others go
/// on. No two records of one epoch number may ever be returned, and all must end in one epoch with the last starts.
#[test]
fn rank_killed_at_any_operation_and_started_again_ends_in_one_epoch() {
    for victim in 0..3 {
        for operation in 0.. {
            let store = InProcessStore::new();
            let operations = AtomicUsize::new(0);
            let killed = tapped(&store, |count, _| {
                operations.store(count, Ordering::SeqCst);
                if count == operation { Err(died()) } else { Ok(()) }
            });
            let formed: Mutex<BTreeMap<u64, EpochRecord>> = Mutex::default();
            let note = |record: &EpochRecord| {
                let mut formed = formed.lock().unwrap();
                let first = formed.entry(record.epoch).or_insert_with(|| record.clone());
                assert_eq!(first, record, "two records of one epoch");
            };
            let starts: Vec<Formation> = (0..3).map(|rank| start(rank, 3)).collect();
            let second = start(victim, 3);
            let survived = thread::scope(|scope| {
                let others = starts.iter().filter(|start| start.rank != RankId(victim)).map(|start| {
                    let (store, second, note) = (&store, &second, &note);
                    scope.spawn(move || {
                        // As an engine does: an epoch whose member is found to be another start is closed.
                        let mut start = start.clone();
                        loop {
                            let record = start.form(store, soon()).unwrap();
                            note(&record);
                            if record.lists(second.rank, second.nonce) {
                                return record;
                            }
                            start.last = Some(record.epoch);
                        }
                    })
                });
                let others: Vec<_> = others.collect();
                let first = starts[victim as usize].form(&killed, soon());
                let survived = match first {
                    Ok(record) => {
                        note(&record);
                        true
                    }
                    Err(error) => {
                        assert_eq!(error, FormationError::Store(died()));
                        false
                    }
                };
                let last = second.form(&store, soon()).unwrap();
                note(&last);
                for other in others {
                    assert_eq!(other.join().unwrap(), last);
                }
                survived
            });
            if survived {
                assert!(operations.load(Ordering::SeqCst) < operation);
                assert!(operation > 5, "rank {victim} formed an epoch in {operation} operations");
                break;
            }
        }
    }
}

/// What an operation of a process that was killed returns, which nobody sees.
fn died() -> StoreError {
    StoreError::Lost { store: "test".to_owned(), cause: "this process was killed".to_owned() }
}

/// Calls `tap` with the number and kind of each operation before it.
struct Tapped<F> {
    count: AtomicUsize,
    tap: F,
}

/// A store that is tapped.
fn tapped<F: Fn(usize, StoreOp) -> Result<(), StoreError> + Send + Sync>(
    store: &InProcessStore,
    tap: F,
) -> InterceptedStore<Tapped<F>> {
    InterceptedStore::new(Arc::new(store.clone()), Tapped { count: AtomicUsize::new(0), tap })
}

impl<F> fmt::Debug for Tapped<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tapped")
    }
}

impl<F: Fn(usize, StoreOp) -> Result<(), StoreError> + Send + Sync> StoreIntercept for Tapped<F> {
    fn before(&self, operation: StoreOp, _keys: &[&str]) -> Result<(), StoreError> {
        (self.tap)(self.count.fetch_add(1, Ordering::SeqCst), operation)
    }
}
