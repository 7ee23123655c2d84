//! Collectives: agreement, named failures, keys that do not add up.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use eplb_core::RankId;

use super::{connect, serve, shortly, soon, until};
use crate::store::deadlines::after;
use crate::store::group::{Collective, Group, GroupError};
use crate::store::tcp::ServerOptions;
use crate::store::{InProcessStore, Limits, PrefixStore, Store, StoreError};

fn ranks(ranks: &[u32]) -> Vec<RankId> {
    ranks.iter().copied().map(RankId).collect()
}

/// Runs one closure per member, each on its thread with its group, and returns what they return.
fn on_members<T: Send>(groups: Vec<Group>, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = groups.into_iter().map(|group| scope.spawn(move || work(group))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn groups(store: &Arc<dyn Store>, epoch: u64, members: &[u32]) -> Vec<Group> {
    let members = ranks(members);
    members.iter().map(|rank| Group::new(Arc::clone(store), epoch, *rank, &members).unwrap()).collect()
}

fn shared(store: &InProcessStore) -> Arc<dyn Store> {
    Arc::new(store.clone())
}

#[test]
fn members_gather_broadcast_and_agree_over_many_rounds_with_few_keys() {
    let store = InProcessStore::new();
    let members = [0, 2, 5, 6];
    let most_keys = on_members(groups(&shared(&store), 1, &members), |mut group| {
        let me = group.rank().0;
        let mut most_keys = 0;
        for round in 0..50u32 {
            let mine = [me, round].map(u32::to_le_bytes).concat();
            let all = group.all_gather("counts", &mine, soon()).unwrap();
            let wanted: Vec<Vec<u8>> =
                members.iter().map(|rank| [*rank, round].map(u32::to_le_bytes).concat()).collect();
            assert_eq!(all, wanted);
            let root = members[round as usize % members.len()];
            let plan = group.broadcast("plan", RankId(root), &mine, soon()).unwrap();
            assert_eq!(plan, [root, round].map(u32::to_le_bytes).concat());
            group.agree_hash("waves", u64::from(round) << 40, soon()).unwrap();
            group.barrier("round", soon()).unwrap();
            most_keys = most_keys.max(store.len());
        }
        most_keys
    });
    assert!(most_keys.into_iter().all(|keys| keys <= 2 * members.len()));
}

#[test]
fn group_works_over_tcp_and_behind_a_prefix() {
    let server = serve(ServerOptions::default());
    let members = ranks(&[0, 1, 2]);
    let groups = members.iter().map(|rank| {
        let store = PrefixStore::new(Arc::new(connect(&server)), "ep0").unwrap();
        Group::new(Arc::new(store), 9, *rank, &members).unwrap()
    });
    let outcomes = on_members(groups.collect(), |mut group| {
        let rank = group.rank();
        for round in 0..20u64 {
            group.agree_hash("plan", round, soon()).unwrap();
        }
        // The others are named, also behind the prefix.
        if rank == RankId(1) {
            group.barrier("alone", after(Duration::from_secs(2))).unwrap_err()
        } else {
            GroupError::NotMember { rank, epoch: 9, members: vec![] }
        }
    });
    match &outcomes[1] {
        GroupError::Missing {
            collective: Collective::Barrier,
            ranks: missing,
            sequence: 21,
            epoch: 9,
            ..
        } => {
            assert_eq!(*missing, ranks(&[0, 2]));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn disagreement_names_hashes_and_ranks_on_every_member_and_breaks_nothing() {
    let store = shared(&InProcessStore::new());
    let outcomes = on_members(groups(&store, 3, &[0, 1, 2, 3]), |mut group| {
        let hash = if group.rank() == RankId(2) { 0xbad } else { 0x900d };
        let outcome = group.agree_hash("wave list", hash, soon());
        group.barrier("after it", soon()).unwrap();
        outcome.unwrap_err()
    });
    for outcome in &outcomes {
        let values = vec![(0x900d, ranks(&[0, 1, 3])), (0xbad, ranks(&[2]))];
        assert_eq!(*outcome, GroupError::Disagree { label: "wave list".to_owned(), epoch: 3, values });
    }
    let text = outcomes[0].to_string();
    assert!(text.contains("0x0000000000000bad on rank 2") && text.contains("ranks 0, 1, 3"), "{text}");
}

#[test]
fn missing_member_is_named_and_the_group_is_broken_after_it() {
    let inner = InProcessStore::new();
    let mut all = groups(&shared(&inner), 1, &[0, 1, 2]);
    let _never_comes = all.remove(1);
    let outcomes = on_members(all, |mut group| {
        // Both have come when either gives up.
        let deadline = if group.rank() == RankId(0) {
            until("the other's entry", || !inner.is_empty());
            after(Duration::from_millis(400))
        } else {
            after(Duration::from_secs(3))
        };
        let first = group.all_gather("loads", b"", deadline);
        (first, group.barrier("next", soon()))
    });
    for (first, second) in outcomes {
        assert!(matches!(first, Err(GroupError::Missing { ranks: missing, .. }) if missing == ranks(&[1])));
        assert!(
            matches!(second, Err(GroupError::Broken { cause, .. }) if cause.contains("rank 1 did not come"))
        );
    }
}

#[test]
fn members_at_different_calls_are_told_so() {
    let store = shared(&InProcessStore::new());
    let outcomes = on_members(groups(&store, 1, &[0, 1]), |mut group| match group.rank().0 {
        0 => group.barrier("start", soon()),
        _ => group.all_gather("loads", b"", soon()).map(drop),
    });
    for (outcome, (other, found)) in
        outcomes.iter().zip([(1, "all-gather \"loads\""), (0, "barrier \"start\"")])
    {
        match outcome {
            Err(GroupError::Mismatch { rank, found: seen, .. }) => {
                assert_eq!((rank.0, &seen[..]), (other, found))
            }
            other => panic!("{other:?}"),
        }
    }
    // The same call under another label is another call.
    let outcomes = on_members(groups(&store, 2, &[0, 1]), |mut group| {
        let label = if group.rank() == RankId(0) { "before" } else { "after" };
        group.barrier(label, soon())
    });
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(GroupError::Mismatch { .. }))));
}

#[test]
fn member_that_gives_up_tells_the_others_at_once() {
    let store = shared(&InProcessStore::new());
    let outcomes = on_members(groups(&store, 1, &[0, 1, 2]), |mut group| {
        group.barrier("start", soon()).unwrap();
        if group.rank() == RankId(1) {
            group.give_up("its layout cannot be read", soon()).unwrap();
            return group.barrier("plan", soon()).unwrap_err();
        }
        group.barrier("plan", soon()).unwrap_err()
    });
    let gave_up =
        GroupError::GaveUp { rank: RankId(1), epoch: 1, reason: "its layout cannot be read".to_owned() };
    assert_eq!([&outcomes[0], &outcomes[2]], [&gave_up, &gave_up]);
    assert!(matches!(&outcomes[1], GroupError::Broken { .. }));
}

#[test]
fn message_too_large_for_the_store_fails_on_all_members() {
    let store = InProcessStore::with_limits(Limits { max_value: 1000, ..Limits::default() });
    let outcomes = on_members(groups(&shared(&store), 1, &[0, 1]), |mut group| {
        group.broadcast("plan", RankId(0), &[0; 1000], soon()).unwrap_err()
    });
    assert!(matches!(&outcomes[0], GroupError::Store(StoreError::TooLarge { limit: 1000, .. })));
    assert!(
        matches!(&outcomes[1], GroupError::GaveUp { rank: RankId(0), reason, .. } if reason.contains("larger"))
    );
}

#[test]
fn values_of_an_earlier_epoch_are_never_read() {
    let inner = InProcessStore::new();
    let store = shared(&inner);
    // An earlier run left its entries of the same calls.
    on_members(groups(&store, 7, &[0, 1]), |mut group| group.all_gather("x", b"old", soon()).unwrap());
    assert!(!inner.is_empty());
    let mut alone = groups(&store, 8, &[0, 1]).remove(0);
    let outcome = alone.all_gather("x", b"new", after(Duration::from_millis(400)));
    assert!(matches!(outcome, Err(GroupError::Missing { ranks: missing, .. }) if missing == ranks(&[1])));
}

#[test]
fn keys_do_not_add_up_over_epochs_and_deaths() {
    let inner = InProcessStore::new();
    let store = shared(&inner);
    let mut epoch = 1;
    let mut all = groups(&store, epoch, &[0, 1, 2, 3]);
    for _ in 0..6 {
        all = on_members(all, |mut group| {
            group.post("prepared", b"1", soon()).unwrap();
            let key = crate::store::liveness::counter_key(group.epoch(), group.rank());
            group.store().set(&key, b"1", soon()).unwrap();
            for _ in 0..3 {
                group.barrier("b", soon()).unwrap();
            }
            group
        });
        // Rank 3 dies in every epoch, in the call after, and a new one comes.
        let dead = all.pop().unwrap();
        let mut survivors = on_members(all, |mut group| {
            group.barrier("without 3", shortly()).unwrap_err();
            group
        });
        drop(dead);
        epoch += 1;
        survivors = on_members(survivors, |group| {
            let mut next = group.succeed(epoch, &ranks(&[0, 1, 2])).unwrap();
            next.barrier("gone on", soon()).unwrap();
            next
        });
        epoch += 1;
        all = on_members(survivors, |group| group.succeed(epoch, &ranks(&[0, 1, 2, 3])).unwrap());
        all.push(Group::new(Arc::clone(&store), epoch, RankId(3), &ranks(&[0, 1, 2, 3])).unwrap());
    }
    all = on_members(all, |mut group| {
        group.barrier("a", soon()).unwrap();
        group.barrier("b", soon()).unwrap();
        group
    });
    // One key each of the last call; of the one before, whoever is slow may still hold one.
    assert!(inner.len() <= 2 * all.len(), "{} keys are left", inner.len());
}

#[test]
fn posts_show_the_latest_message_of_each_member() {
    let store = shared(&InProcessStore::new());
    let mut all = groups(&store, 1, &[0, 1]);
    assert_eq!(all[0].posts("prepared", soon()).unwrap(), [None, None]);
    all[1].post("prepared", b"wave 1", soon()).unwrap();
    all[1].post("prepared", b"wave 2", soon()).unwrap();
    assert_eq!(all[0].posts("prepared", soon()).unwrap(), [None, Some(b"wave 2".to_vec())]);
}

#[test]
fn rank_outside_the_members_is_refused() {
    let store = shared(&InProcessStore::new());
    let error = Group::new(Arc::clone(&store), 1, RankId(4), &ranks(&[0, 1])).unwrap_err();
    assert!(matches!(error, GroupError::NotMember { rank: RankId(4), .. }));
    let mut group = groups(&store, 1, &[0]).remove(0);
    assert!(matches!(group.broadcast("x", RankId(1), b"", soon()), Err(GroupError::NotMember { .. })));
    // Alone there is nobody to wait for.
    group.barrier("alone", soon()).unwrap();
    assert_eq!(group.all_gather("alone", b"me", soon()).unwrap(), [b"me"]);
}

#[test]
fn lost_store_is_named_by_the_collective_under_way() {
    let inner = InProcessStore::new();
    let mut group = groups(&shared(&inner), 1, &[0, 1]).remove(0);
    let outcome = thread::scope(|scope| {
        let waiting = scope.spawn(|| group.barrier("b", soon()));
        until("the entry of the barrier", || !inner.is_empty());
        inner.close("its server died");
        waiting.join().unwrap()
    });
    match outcome {
        Err(GroupError::Store(error)) => assert_eq!(super::lost_cause::<()>(Err(error)), "its server died"),
        other => panic!("{other:?}"),
    }
}
