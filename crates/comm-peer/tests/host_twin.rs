//! The host twin: memories that processes could share, joined through a store, under the suite of communicators and under faults.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::conformance::{Options, Rank, Setup, run_all};
use eplb_comm::host::HostMemory;
use eplb_comm::store::{InProcessStore, Store};
use eplb_comm::{CommError, Communicator, Fence, Progress};
use eplb_comm_peer::process::{Meeting, PeerError, join_host};
use eplb_comm_peer::{HOST_BACKEND, Options as PeerOptions, PeerCommunicator};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};

fn meeting(rank: usize, world_size: usize, store: &Arc<dyn Store>) -> Meeting {
    let deadline = Instant::now() + Duration::from_secs(20);
    Meeting { rank: RankId::at(rank), world_size, store: store.clone(), host: "here".into(), deadline }
}

fn store() -> Arc<dyn Store> {
    Arc::new(InProcessStore::new())
}

/// Joins all memories, each on a thread of its own, as processes would; `change` makes the meetings of ranks that are not alike.
fn join(
    memories: &[Arc<HostMemory>],
    store: &Arc<dyn Store>,
    change: impl Fn(&mut Meeting) + Sync,
) -> Vec<Result<PeerCommunicator, PeerError>> {
    std::thread::scope(|scope| {
        let joined: Vec<_> = memories
            .iter()
            .enumerate()
            .map(|(rank, memory)| {
                let change = &change;
                scope.spawn(move || {
                    let mut meeting = meeting(rank, memories.len(), store);
                    change(&mut meeting);
                    join_host(&meeting, memory.clone(), &PeerOptions::default())
                })
            })
            .collect();
        joined.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn the_suite_of_communicators_passes() {
    let mut twin = |setup: &Setup| -> Result<Vec<Rank>, CommError> {
        let memory = |(rank, slots): (usize, &std::ops::Range<usize>)| {
            let layout = setup.layouts[rank].clone();
            HostMemory::shared(RankId::at(rank), layout, slots.clone(), setup.staging_bytes)
        };
        let memories = setup.slots.iter().enumerate().map(memory).collect::<Result<Vec<_>, _>>()?;
        let joined = join(&memories, &store(), |_| ());
        joined.into_iter().zip(memories).map(|(c, m)| Ok(Rank::new(c?, m))).collect()
    };
    run_all(&mut twin, &Options { waves: 20, ..Options::default() }).unwrap();
}

fn layout(bytes: usize) -> Arc<ModelLayout> {
    Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("w", bytes)]]).unwrap())
}

fn shared(rank: usize, bytes: usize) -> Arc<HostMemory> {
    HostMemory::shared(RankId::at(rank), layout(bytes), 2 * rank..2 * rank + 2, 0).unwrap()
}

/// Rank 1 pulls the expert of rank 0's first slot into its own second.
fn transfer(expert: u32) -> Arc<[Transfer]> {
    Arc::new([Transfer {
        layer: LayerId(0),
        expert: ExpertId(expert),
        source: RankId(0),
        source_slot: SlotId(0),
        dest: RankId(1),
        dest_slot: SlotId(3),
        landing: Landing::InPlace,
    }])
}

fn end(communicator: &mut PeerCommunicator, ticket: eplb_comm::Ticket) -> Result<(), CommError> {
    let begin = Instant::now();
    while communicator.poll(ticket)? != Progress::Done {
        assert!(begin.elapsed() < Duration::from_secs(20), "the wave does not end");
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

#[test]
fn it_is_never_taken_for_gpus() {
    let memories = [shared(0, 8), shared(1, 8)];
    let joined = join(&memories, &store(), |_| ());
    for communicator in joined {
        assert_eq!(communicator.unwrap().backend(), HOST_BACKEND);
    }
    assert!(HOST_BACKEND.contains("host memory"));
}

#[test]
fn a_slot_that_holds_something_else_is_not_copied() {
    let memories = [shared(0, 8), shared(1, 8)];
    memories[0].fill(LayerId(0), SlotId(0), ExpertId(4)).unwrap();
    let mut ranks: Vec<_> = join(&memories, &store(), |_| ()).into_iter().map(Result::unwrap).collect();
    let soon = || Instant::now() + Duration::from_secs(20);
    let tickets: Vec<_> =
        ranks.iter_mut().map(|rank| rank.submit(&transfer(5), Fence::passed(), soon()).unwrap()).collect();
    assert_eq!(end(&mut ranks[0], tickets[0]), Ok(()));
    let error = end(&mut ranks[1], tickets[1]).unwrap_err().to_string();
    assert!(error.contains("rank 0") && error.contains("expert 4") && error.contains("expert 5"), "{error}");
    // The reader gave up, and the other hears of it.
    let back = Transfer {
        source: RankId(1),
        dest: RankId(0),
        source_slot: SlotId(2),
        dest_slot: SlotId(1),
        ..transfer(1)[0]
    };
    let back: Arc<[Transfer]> = Arc::new([back]);
    let next = ranks[0].submit(&back, Fence::passed(), soon()).unwrap();
    let error = end(&mut ranks[0], next).unwrap_err();
    assert!(matches!(error, CommError::Transfer { rank: RankId(0), peer: RankId(1), .. }), "{error}");
}

#[test]
fn a_peer_that_hangs_up_is_named_long_before_the_deadline() {
    let memories = [shared(0, 8), shared(1, 8)];
    memories[0].fill(LayerId(0), SlotId(0), ExpertId(4)).unwrap();
    let mut ranks: Vec<_> = join(&memories, &store(), |_| ()).into_iter().map(Result::unwrap).collect();
    let mut reader = ranks.pop().unwrap();
    // Rank 0 never submits the wave.
    let ticket =
        reader.submit(&transfer(4), Fence::passed(), Instant::now() + Duration::from_secs(3600)).unwrap();
    drop(ranks);
    let error = end(&mut reader, ticket).unwrap_err();
    assert!(matches!(error, CommError::Transfer { rank: RankId(1), peer: RankId(0), .. }), "{error}");
    // What was open stays readable: the memory lives as long as it is mapped.
    drop(memories);
}

/// What all ranks said of a meeting that must fail.
fn refused(memories: &[Arc<HostMemory>], change: impl Fn(&mut Meeting) + Sync) -> Vec<String> {
    let joined = join(memories, &store(), change);
    joined.into_iter().map(|rank| rank.unwrap_err().to_string()).collect()
}

#[test]
fn what_cannot_be_shared_is_named_by_all() {
    let private = HostMemory::new(RankId(1), layout(8), 2..4, 0).unwrap();
    for said in refused(&[shared(0, 8), private, shared(2, 8)], |_| ()) {
        assert!(said.contains("rank 1") && said.contains("memory of the process alone"), "{said}");
    }
    let said = refused(&[shared(0, 8), shared(1, 8), shared(2, 8)], |meeting| {
        if meeting.rank == RankId(2) {
            meeting.host = "there".into();
        }
    });
    assert!(said.iter().all(|said| said.contains("here") && said.contains("there")), "{said:?}");
    let said = refused(&[shared(0, 8), shared(1, 9)], |_| ());
    assert!(said.iter().all(|said| said.contains("layout")), "{said:?}");
}

#[test]
fn a_rank_that_does_not_come_is_named_and_a_stale_card_opens_nothing() {
    let store = store();
    let memories = [shared(0, 8), shared(1, 8)];
    // Nobody comes, and nothing but time ends that.
    let alone = Meeting { deadline: Instant::now() + Duration::from_secs(3), ..meeting(0, 2, &store) };
    let error = join_host(&alone, memories[0].clone(), &PeerOptions::default()).unwrap_err().to_string();
    assert!(error.contains("card/1"), "{error}");
    // That rank's card is still there, and it is gone: who comes now finds nobody behind it.
    let late = meeting(1, 2, &store);
    let error = join_host(&late, memories[1].clone(), &PeerOptions::default()).unwrap_err();
    assert!(matches!(&error, PeerError::NotOpened { rank: RankId(1), owner: RankId(0), .. }), "{error}");
    assert!(error.to_string().contains("has ended"), "{error}");
    // In a corner of its own, a new meeting of the same memories works.
    let corner: Arc<dyn Store> = Arc::new(eplb_comm::store::PrefixStore::new(store, "2").unwrap());
    assert!(join(&memories, &corner, |_| ()).iter().all(Result::is_ok));
}
