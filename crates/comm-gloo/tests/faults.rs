//! Failures in a group: what each rank reports, how it goes on, and faults planted in the code that carries bytes.

mod support;

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use eplb_comm::host::{HostFence, HostMemory};
use eplb_comm::store::{CasOutcome, InterceptedStore, Store, StoreError, StoreIntercept};
use eplb_comm::{CommError, Communicator, Fence, Progress, Ticket};
use eplb_comm_gloo::{GlooCommunicator, GlooError, Options, Planted};
use eplb_core::{ExpertId, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};

use support::{ring, small_world, soon};

const SHORT: Duration = Duration::from_millis(300);

/// Submits on all ranks.
fn submit(
    group: &mut [GlooCommunicator],
    wave: &Arc<[Transfer]>,
    after: &Fence,
    time: Duration,
) -> Vec<Ticket> {
    let deadline = Instant::now() + time;
    group.iter_mut().map(|rank| rank.submit(wave, after.clone(), deadline).unwrap()).collect()
}

/// Polls a rank until its wave ends.
fn outcome(rank: &mut GlooCommunicator, ticket: Ticket) -> Result<(), CommError> {
    let patience = soon();
    loop {
        match rank.poll(ticket) {
            Ok(Progress::Done) => return Ok(()),
            Err(error) => return Err(error),
            Ok(Progress::Pending) => assert!(Instant::now() < patience, "a wave must end by its deadline"),
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn outcomes(group: &mut [GlooCommunicator], tickets: &[Ticket]) -> Vec<Result<(), CommError>> {
    group.iter_mut().zip(tickets).map(|(rank, &ticket)| outcome(rank, ticket)).collect()
}

/// Runs one ring with faults planted on rank 1 of three.
fn planted(
    planted: Planted,
    time: Duration,
) -> (Vec<Arc<eplb_comm::host::HostMemory>>, Vec<Result<(), CommError>>) {
    let memories = small_world(3, 200_000);
    let mut group = support::group(&memories, |rank| Options {
        planted: if rank == 1 { vec![planted] } else { Vec::new() },
        ..Options::default()
    });
    let tickets = submit(&mut group, &ring(3), &Fence::passed(), time);
    let outcomes = outcomes(&mut group, &tickets);
    (memories, outcomes)
}

/// Messages that each of two ranks sends for one expert whose tensors take these bytes.
fn messages(tensors: &[usize], small_bytes: usize) -> Vec<u64> {
    let tensors = tensors.iter().enumerate();
    let tensors = tensors.map(|(number, &bytes)| TensorLayout::contiguous(format!("t{number}"), bytes));
    let layout = Arc::new(ModelLayout::new(vec![tensors.collect()]).unwrap());
    let memory = |rank: usize| {
        let memory = HostMemory::new(RankId::at(rank), layout.clone(), 2 * rank..2 * rank + 2, 0).unwrap();
        memory.fill(LayerId(0), SlotId::at(2 * rank), ExpertId::at(2 * rank)).unwrap();
        memory
    };
    let memories = [memory(0), memory(1)];
    let options = |_| Options { small_bytes, piece_bytes: 100_000, ..Options::default() };
    let mut group = support::group(&memories, options);
    let tickets = submit(&mut group, &ring(2), &Fence::passed(), Duration::from_secs(30));
    assert_eq!(outcomes(&mut group, &tickets), [Ok(()), Ok(())]);
    for (rank, from) in [(0, 2), (1, 0)] {
        let slot = SlotId::at(2 * rank + 1);
        assert_eq!(memories[rank].count_wrong(LayerId(0), slot, ExpertId(from)).unwrap(), 0);
    }
    group.iter().map(GlooCommunicator::sent_messages).collect()
}

#[test]
fn small_tensors_of_an_expert_share_one_message() {
    // Weights of three pieces each, and their scales, zeros and biases.
    let tensors = [250_000, 40, 8, 250_000, 40, 8];
    assert_eq!(messages(&tensors, 1000), [1 + 2 * 3; 2]);
    // Where none counts as small, each has a message of its own beside the header's.
    assert_eq!(messages(&tensors, 0), [1 + 2 * 3 + 4; 2]);
}

#[test]
fn a_message_in_a_wrong_slot_is_never_taken() {
    for nth in 0..2 {
        let (memories, outcomes) = planted(Planted::WrongSlot { nth }, SHORT);
        // Rank 2 waits for what went elsewhere, and rank 1 for it to be taken; rank 0 may be done with its part.
        assert!(outcomes[1..].iter().all(Result::is_err), "{outcomes:?}");
        let content = memories[2].content(eplb_comm::Place::slot(LayerId(0), SlotId(5))).unwrap().0;
        assert_ne!(
            content,
            eplb_comm::host::Content::Expert(ExpertId(2)),
            "bytes of a wrong slot were named"
        );
    }
}

#[test]
fn a_header_that_names_another_expert_is_refused_by_name() {
    let (_, outcomes) = planted(Planted::OtherExpert, Duration::from_secs(20));
    let error = outcomes[2].clone().unwrap_err();
    let CommError::Transfer { rank: RankId(2), peer: RankId(1), cause } = &error else { panic!("{error:?}") };
    assert!(cause.contains("another layer and expert"), "{cause}");
    // The others may be done with their parts.
    for error in outcomes[..2].iter().filter_map(|outcome| outcome.clone().err()) {
        let error = error.to_string();
        assert!(error.contains("rank 2 says") && error.contains("another layer and expert"), "{error}");
    }
}

#[test]
fn what_is_not_unpacked_is_seen_in_the_bytes() {
    let (memories, outcomes) = planted(Planted::NotUnpacked, Duration::from_secs(20));
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let wrong = |rank: usize, expert: u32| {
        let slot = SlotId::at(2 * rank + 1);
        memories[rank].count_wrong(LayerId(0), slot, ExpertId(expert)).unwrap()
    };
    assert_eq!((wrong(2, 2), wrong(0, 4)), (0, 0));
    assert!(wrong(1, 0) > 0, "the planted fault must show");
}

/// Submits on all ranks of three, of which rank 0 is late: its part waits for the gate.
fn submit_late(group: &mut [GlooCommunicator], gate: &Arc<HostFence>) -> Vec<Ticket> {
    let deadline = soon();
    let after = |rank: usize| if rank == 0 { gate.fence() } else { Fence::passed() };
    let ranks = group.iter_mut().enumerate();
    ranks.map(|(rank, own)| own.submit(&ring(3), after(rank), deadline).unwrap()).collect()
}

#[test]
fn a_wait_that_runs_out_would_end_the_group() {
    let memories = small_world(3, 200_000);
    let mut group = support::group(&memories, |rank| Options {
        planted: if rank == 1 { vec![Planted::ExpiringWait] } else { Vec::new() },
        ..Options::default()
    });
    let gate = HostFence::new();
    // The wait of rank 1 must not run out, but does.
    let tickets = submit_late(&mut group, &gate);
    for outcome in outcomes(&mut group, &tickets) {
        // Every connection of rank 1 broke at once: who noticed first is on record, in the system's words.
        assert!(matches!(outcome, Err(CommError::Transfer { .. })), "{outcome:?}");
    }
}

#[test]
fn without_the_fault_a_late_rank_is_waited_for() {
    let memories = small_world(3, 200_000);
    let mut group = support::group(&memories, |_| Options::default());
    let gate = HostFence::new();
    let tickets = submit_late(&mut group, &gate);
    std::thread::sleep(Duration::from_millis(60));
    gate.pass();
    assert!(outcomes(&mut group, &tickets).iter().all(Result::is_ok));
}

#[test]
fn one_rank_that_fails_ends_the_wave_of_all_with_its_cause() {
    let memories = small_world(4, 200_000);
    let mut group = support::group(&memories, |_| Options::default());
    // Rank 2 does not hold what the wave says.
    memories[2].fill(LayerId(0), SlotId(4), ExpertId(77)).unwrap();
    let tickets = submit(&mut group, &ring(4), &Fence::passed(), Duration::from_secs(20));
    let outcomes = outcomes(&mut group, &tickets);
    assert!(matches!(outcomes[2], Err(CommError::WrongContent { rank: RankId(2), .. })), "{outcomes:?}");
    assert!(outcomes[3].is_err(), "{outcomes:?}");
    // Ranks 0 and 1 may be done with their parts.
    for rank in [0, 1, 3] {
        let Err(error) = outcomes[rank].clone() else { continue };
        let CommError::Transfer { rank: own, peer: RankId(2), cause } = &error else { panic!("{error:?}") };
        assert_eq!(own.index(), rank);
        assert!(cause.contains("rank 2 says") && cause.contains("holds expert 77, not expert 4"), "{cause}");
    }
}

#[test]
fn an_abort_reaches_the_others_as_an_abort() {
    let memories = small_world(3, 200_000);
    let mut group = support::group(&memories, |_| Options::default());
    let tickets = submit(&mut group, &ring(3), &HostFence::new().fence(), Duration::from_secs(20));
    let quiet = group[1].abort("the operator said so");
    quiet.wait(RankId(1), "quiet", soon()).unwrap();
    for (rank, outcome) in outcomes(&mut group, &tickets).into_iter().enumerate() {
        let error = outcome.unwrap_err();
        let CommError::Aborted { rank: own, cause } = &error else { panic!("{error:?}") };
        assert_eq!(own.index(), rank);
        assert!(cause.contains("the operator said so"), "{cause}");
    }
    // All others learn what became of later waves as well.
    let late = group[0].submit(&ring(3), Fence::passed(), soon()).unwrap();
    assert!(matches!(outcome(&mut group[0], late), Err(CommError::Aborted { .. })));
}

/// A store that is slow where two ranks report a failure: the one that asks first is answered last.
#[derive(Debug, Clone, Default)]
struct SlowRecord(Arc<(Mutex<Asked>, Condvar)>);

#[derive(Debug, Default)]
struct Asked {
    ranks: usize,
    is_recorded: bool,
}

impl SlowRecord {
    fn note(&self, what: impl FnOnce(&mut Asked)) {
        what(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn until(&self, what: &str, is_so: impl Fn(&Asked) -> bool) {
        let asked = self.0.0.lock().unwrap();
        let waited = self.0.1.wait_timeout_while(asked, Duration::from_secs(30), |asked| !is_so(asked));
        assert!(!waited.unwrap().1.timed_out(), "{what} never happened");
    }
}

impl StoreIntercept for SlowRecord {
    fn compare_and_set(
        &self,
        inner: &dyn Store,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        if !key.ends_with("/fault") {
            return inner.compare_and_set(key, expected, new, deadline);
        }
        let mut is_first = false;
        self.note(|asked| {
            is_first = asked.ranks == 0;
            asked.ranks += 1;
        });
        if is_first {
            self.until("another rank's record", |asked| asked.is_recorded);
        }
        let outcome = inner.compare_and_set(key, expected, new, deadline);
        self.note(|asked| asked.is_recorded = true);
        outcome
    }
}

#[test]
fn a_wave_that_comes_while_the_cause_is_asked_for_hears_the_record() {
    let memories = small_world(2, 1000);
    let slow = SlowRecord::default();
    let store: Arc<dyn Store> = Arc::new(InterceptedStore::new(support::store(), slow.clone()));
    let options = |_| Options { report: Duration::from_secs(60), ..Options::default() };
    let mut group: Vec<_> =
        support::connect(&memories, &store, options, soon()).into_iter().map(Result::unwrap).collect();
    // Rank 0 fails of its own deadline, and asks whether another rank has failed before it.
    let never = HostFence::new();
    let late = group[0].submit(&ring(2), never.fence(), Instant::now()).unwrap();
    slow.until("the report of rank 0", |asked| asked.ranks == 1);
    let between = group[0].submit(&ring(2), never.fence(), soon()).unwrap();
    assert_eq!(group[0].poll(between), Ok(Progress::Pending));
    group[1].abort("the operator said so");
    let error = outcome(&mut group[0], between).unwrap_err();
    let CommError::Aborted { rank: RankId(0), cause } = &error else { panic!("{error:?}") };
    assert_eq!(cause, "rank 1 says: the operator said so");
    assert!(matches!(outcome(&mut group[0], late), Err(CommError::Timeout { .. })));
}

#[test]
fn a_failure_that_is_not_spread_leaves_the_others_waiting() {
    // The planted fault against the two tests above: without record and bell the others wait for their own deadline.
    let memories = small_world(3, 200_000);
    let mut group = support::group(&memories, |_| Options {
        planted: vec![Planted::NotReported, Planted::NotRung],
        ..Options::default()
    });
    let tickets = submit(&mut group, &ring(3), &HostFence::new().fence(), Duration::from_secs(20));
    group[1].abort("the operator said so").wait(RankId(1), "quiet", soon()).unwrap();
    let error = outcome(&mut group[0], tickets[0]).unwrap_err();
    // It sees the connection close, and knows no cause.
    assert!(!error.to_string().contains("the operator"), "{error}");
}

#[test]
fn a_rebuilt_group_works_under_the_next_generation() {
    let memories = small_world(3, 200_000);
    let store = support::store();
    // An attempt is long enough for a machine that is busy with other things.
    let options = |_| Options { attempt: Duration::from_secs(60), ..Options::default() };
    let mut group: Vec<_> =
        support::connect(&memories, &store, options, soon()).into_iter().map(Result::unwrap).collect();
    for round in 0..3u64 {
        assert!(group.iter().all(|rank| rank.generation() == Some(round)));
        let tickets = submit(&mut group, &ring(3), &Fence::passed(), Duration::from_secs(20));
        assert!(outcomes(&mut group, &tickets).iter().all(Result::is_ok), "round {round}");
        for rank in 0..3 {
            let (slot, expert) = (SlotId::at(2 * rank + 1), ExpertId::at((2 * rank + 4) % 6));
            assert_eq!(memories[rank].count_wrong(LayerId(0), slot, expert), Ok(0));
        }
        if round == 1 {
            group[2].abort("to be rebuilt");
        }
        group = std::thread::scope(|scope| {
            let ranks: Vec<_> =
                group.drain(..).map(|rank| scope.spawn(move || rank.rebuild(soon()))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap().unwrap()).collect()
        });
    }
}

#[test]
fn ranks_that_do_not_fit_are_named() {
    let mut memories = small_world(3, 200_000);
    memories[1] = small_world(3, 200_004)[1].clone();
    let results = support::connect(&memories, &support::store(), |_| Options::default(), soon());
    for (rank, result) in results.into_iter().enumerate() {
        let error = result.unwrap_err();
        assert!(matches!(error, GlooError::Mismatch { .. }), "rank {rank}: {error}");
    }
    let memories = small_world(2, 200_000);
    let options = |rank: usize| Options { piece_bytes: 1000 + rank, ..Options::default() };
    for result in support::connect(&memories, &support::store(), options, soon()) {
        assert!(result.unwrap_err().to_string().contains("piece_bytes"));
    }
}

/// Keeps from a rank what others have said of themselves, as if they had left before it looked. Who asks for one key alone is told.
#[derive(Debug)]
struct TooLate;

impl StoreIntercept for TooLate {
    fn get_many(
        &self,
        inner: &dyn Store,
        keys: &[&str],
        deadline: Instant,
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let found = inner.get_many(keys, deadline)?;
        let hidden = |key: &&str| key.contains("/rank/");
        Ok(keys.iter().zip(found).map(|(key, found)| found.filter(|_| !hidden(key))).collect())
    }
}

#[test]
fn a_rank_that_is_late_is_told_that_ranks_do_not_fit_by_what_they_left() {
    let mut memories = small_world(3, 200_000);
    memories[1] = small_world(3, 200_004)[1].clone();
    let store = support::store();
    let late: Arc<dyn Store> = Arc::new(InterceptedStore::new(store.clone(), TooLate));
    std::thread::scope(|scope| {
        let ranks: Vec<_> = memories
            .iter()
            .enumerate()
            .map(|(rank, memory)| {
                let (memory, store) = (memory.clone(), if rank == 0 { late.clone() } else { store.clone() });
                scope.spawn(move || GlooCommunicator::connect(memory, 3, store, Options::default(), soon()))
            })
            .collect();
        for (rank, thread) in ranks.into_iter().enumerate() {
            let error = thread.join().unwrap().unwrap_err();
            assert!(matches!(error, GlooError::Mismatch { .. }), "rank {rank}: {error}");
        }
    });
}

#[test]
fn a_rank_that_never_comes_is_named_at_the_deadline() {
    let memories = small_world(3, 1000);
    let store = support::store();
    let begin = Instant::now();
    let deadline = begin + 10 * SHORT;
    let connect = |memory: &Arc<eplb_comm::host::HostMemory>| {
        let (memory, store) = (memory.clone(), store.clone());
        std::thread::spawn(move || GlooCommunicator::connect(memory, 3, store, Options::default(), deadline))
    };
    let ranks: Vec<_> = memories[..2].iter().map(connect).collect();
    for rank in ranks {
        let error = rank.join().unwrap().unwrap_err();
        assert!(matches!(&error, GlooError::NotConnected { world_size: 3, .. }), "{error}");
        // The cause of the rank that gave up first, unless the store's own deadline was first.
        assert!(error.to_string().contains("rank/"), "{error}");
    }
    // And when it comes, with the others trying again, they find each other.
    let group = support::connect(&memories, &store, |_| Options::default(), soon());
    assert!(group.iter().all(Result::is_ok), "{group:?}");
}

#[test]
fn a_rank_that_was_started_again_ends_its_old_group() {
    let memories = small_world(2, 1000);
    let store = support::store();
    let mut old: Vec<_> = support::connect(&memories, &store, |_| Options::default(), soon())
        .into_iter()
        .map(Result::unwrap)
        .collect();
    // Rank 1 as a new process: rank 0 must hear of it, and meet it in a new group.
    let again = small_world(2, 1000)[1].clone();
    let rank1 = {
        let store: Arc<dyn Store> = store.clone();
        std::thread::spawn(move || GlooCommunicator::connect(again, 2, store, Options::default(), soon()))
    };
    let patience = soon();
    let error = loop {
        let ticket = old[0].submit(&ring(2), HostFence::new().fence(), patience).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        match old[0].poll(ticket) {
            Err(error) => break error,
            Ok(_) => assert!(Instant::now() < patience),
        }
    };
    assert!(error.to_string().contains("rank 1 was started again"), "{error}");
    let new = old.remove(0).rebuild(soon()).unwrap();
    assert_eq!(new.generation(), rank1.join().unwrap().unwrap().generation());
}

#[test]
fn options_that_cannot_be_are_refused() {
    let memories = small_world(2, 1000);
    let connect = |world, options| {
        GlooCommunicator::connect(memories[1].clone(), world, support::store(), options, soon()).unwrap_err()
    };
    for options in [
        Options { lanes: 0, ..Options::default() },
        Options { window: 0, ..Options::default() },
        Options { piece_bytes: 0, ..Options::default() },
    ] {
        assert!(matches!(connect(2, options), GlooError::Options { found, .. } if found == "0"));
    }
    assert!(matches!(connect(1, Options::default()), GlooError::Options { what: "world_size", .. }));
}
