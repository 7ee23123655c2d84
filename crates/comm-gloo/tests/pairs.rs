//! Batches of messages between ranks that know no plan.

mod support;

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::Store;
use eplb_comm::{CommError, Message, Pairs};
use eplb_comm_gloo::{GlooPairs, Options, Planted};
use eplb_core::RankId;
use support::{Meeting, soon, store};

/// Runs one thread per rank, each with its end.
fn ranks<T: Send>(
    world: usize,
    options: impl Fn() -> Options + Sync,
    work: impl Fn(usize, GlooPairs) -> T + Sync,
) -> Vec<T> {
    let store: Arc<dyn Store> = store();
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..world)
            .map(|rank| {
                let (store, options, work) = (store.clone(), &options, &work);
                scope.spawn(move || {
                    let pairs =
                        GlooPairs::connect(RankId::at(rank), world, store, options(), soon()).unwrap();
                    work(rank, pairs)
                })
            })
            .collect();
        started.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn message(peer: usize, bytes: &mut [u8]) -> Message {
    let base = NonNull::new(bytes.as_mut_ptr()).unwrap();
    Message { peer: RankId::at(peer), base, bytes: bytes.len() }
}

/// What the `at`th message of a batch from one rank to another must hold, computed from who they are.
fn content(round: usize, from: usize, to: usize, at: usize) -> Vec<u8> {
    let bytes = (round * 131 + from * 17 + to * 7 + at * 977) % 5000;
    (0..bytes).map(|i| (i * 31 + round * 7 + from * 3 + to + at) as u8).collect()
}

/// How many messages there are.
fn count(round: usize, from: usize, to: usize) -> usize {
    if from == to { 0 } else { (round + 2 * from + 3 * to) % 4 }
}

fn exchange(
    pairs: &mut GlooPairs,
    sends: &[Message],
    receives: &[Message],
    deadline: Instant,
) -> Result<(), CommError> {
    // SAFETY: the buffers of the tests outlive the call, and no two overlap.
    unsafe { pairs.exchange(sends, receives, deadline) }
}

/// Rounds of batches; whether all bytes were right.
fn rounds(rank: usize, world: usize, pairs: &mut GlooPairs) -> bool {
    let mut right = true;
    for round in 0..30 {
        let parts = |way: fn(usize, usize) -> (usize, usize)| -> Vec<(usize, usize, usize, usize)> {
            let of = |peer| {
                let (from, to) = way(rank, peer);
                (0..count(round, from, to)).map(move |at| (peer, from, to, at))
            };
            (0..world).flat_map(of).collect()
        };
        let (out, into) = (parts(|me, peer| (me, peer)), parts(|me, peer| (peer, me)));
        let mut sent: Vec<_> = out.iter().map(|&(_, from, to, at)| content(round, from, to, at)).collect();
        let expected: Vec<_> = into.iter().map(|&(_, from, to, at)| content(round, from, to, at)).collect();
        let mut got: Vec<_> = expected.iter().map(|bytes| vec![0xee; bytes.len()]).collect();
        let sends: Vec<_> = out.iter().zip(&mut sent).map(|(&(peer, ..), b)| message(peer, b)).collect();
        let receives: Vec<_> = into.iter().zip(&mut got).map(|(&(peer, ..), b)| message(peer, b)).collect();
        exchange(pairs, &sends, &receives, soon()).unwrap();
        right &= got == expected;
    }
    right
}

#[test]
fn every_byte_arrives_in_the_order_of_each_pair() {
    let parting = Meeting::of(3);
    let right = ranks(3, Options::default, |rank, mut pairs| {
        let right = rounds(rank, 3, &mut pairs);
        parting.wait();
        right
    });
    assert_eq!(right, [true; 3]);
}

#[test]
fn ranks_that_have_nothing_to_say_need_not_call() {
    // Who leaves ends the batches of others: all part together.
    let parting = Meeting::of(3);
    let done = ranks(3, Options::default, |rank, mut pairs| {
        let mut bytes = vec![rank as u8 + 1; 1 << 20];
        match rank {
            0 => exchange(&mut pairs, &[message(1, &mut bytes)], &[], soon()).unwrap(),
            1 => exchange(&mut pairs, &[], &[message(0, &mut bytes)], soon()).unwrap(),
            _ => {}
        }
        exchange(&mut pairs, &[], &[], soon()).unwrap();
        parting.wait();
        (bytes[0], bytes[bytes.len() - 1], pairs.received_bytes())
    });
    assert_eq!(done, [(1, 1, 0), (1, 1, 1 << 20), (3, 3, 0)]);
}

/// Two ranks that disagree about sizes; what each says.
fn disagree(options: impl Fn() -> Options + Sync, time: Duration) -> Vec<String> {
    ranks(2, options, |rank, mut pairs| {
        let mut bytes = vec![7u8; if rank == 0 { 100 } else { 90 }];
        let one = message(1 - rank, &mut bytes);
        let (sends, receives): (&[_], &[_]) = if rank == 0 { (&[one], &[]) } else { (&[], &[one]) };
        let error = exchange(&mut pairs, sends, receives, Instant::now() + time).unwrap_err();
        // Spent: the cause of the first failure stays.
        let again = exchange(&mut pairs, &[], &[], soon()).unwrap_err();
        assert_eq!(again, error);
        error.to_string()
    })
}

#[test]
fn sizes_that_differ_are_named_before_a_byte_lands() {
    let said = disagree(Options::default, Duration::from_secs(60));
    assert!(said[1].contains("1 messages of 100 bytes in all; expected 1 messages of 90"), "{said:?}");
}

/// Without a look at the header the sizes still never meet: their slots differ. The deadline is what ends it.
#[test]
fn without_the_header_only_the_deadline_would_tell() {
    let ignored = || Options { planted: vec![Planted::HeaderIgnored], ..Options::default() };
    let said = disagree(ignored, Duration::from_secs(2));
    assert!(!said.iter().any(|said| said.contains("expected 1 messages")), "{said:?}");
    // The other may only see that one leave.
    assert!(said.iter().any(|said| said.contains("not done after")), "{said:?}");
}

#[test]
fn a_peer_that_never_comes_is_a_deadline_and_one_that_leaves_an_error_at_once() {
    let said = ranks(2, Options::default, |rank, mut pairs| {
        if rank == 1 {
            std::thread::sleep(Duration::from_millis(300));
            return String::new();
        }
        let mut bytes = vec![0u8; 64];
        let begin = Instant::now();
        let receives = [message(1, &mut bytes)];
        let error = exchange(&mut pairs, &[], &receives, begin + Duration::from_secs(100)).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(60), "the peer's leaving went unnoticed");
        error.to_string()
    });
    assert!(said[0].contains("rank 1"), "{said:?}");
    let said = ranks(2, Options::default, |rank, mut pairs| {
        let mut bytes = vec![0u8; 64];
        let deadline = Instant::now() + Duration::from_millis(200);
        let receives = [message(1 - rank, &mut bytes)];
        exchange(&mut pairs, &[], &receives, deadline).unwrap_err().to_string()
    });
    assert!(said.iter().any(|said| said.contains("the messages of a batch not done after")), "{said:?}");
}

#[test]
fn a_rank_that_is_none_is_refused_and_harms_nothing() {
    let parting = Meeting::of(2);
    let right = ranks(2, Options::default, |rank, mut pairs| {
        let mut bytes = [0u8; 8];
        for peer in [rank, 2] {
            let error = exchange(&mut pairs, &[message(peer, &mut bytes)], &[], soon()).unwrap_err();
            assert!(error.to_string().contains("name another rank"), "{error}");
        }
        let right = rounds(rank, 2, &mut pairs);
        parting.wait();
        right
    });
    assert_eq!(right, [true; 2]);
}

#[test]
fn a_group_of_one_is_refused() {
    let error = GlooPairs::connect(RankId(0), 1, store(), Options::default(), soon()).unwrap_err();
    assert!(error.to_string().contains("world_size cannot be 1"), "{error}");
}
