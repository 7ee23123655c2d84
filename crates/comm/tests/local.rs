//! The `local` backend, beyond what every backend must do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::fault::{Faults, FaultyCommunicator, Planted, Strike};
use eplb_comm::host::{Content, HostFence, HostMemory, HostStream, StreamOptions};
use eplb_comm::local::{LocalCommunicator, LocalGroup};
use eplb_comm::{CommError, Communicator, Fence, FenceState, Place, Progress, Ticket};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};

const L: LayerId = LayerId(0);
const SLOTS: u32 = 4;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Slot `p` holds expert `p`, for the first `filled` slots over all ranks.
fn memories_filled(ranks: u32, tensors: &[usize], filled: usize) -> Vec<Arc<HostMemory>> {
    let tensors = tensors.iter().map(|&bytes| TensorLayout::contiguous(format!("t{bytes}"), bytes)).collect();
    let layout = Arc::new(ModelLayout::new(vec![tensors]).unwrap());
    let staging = 2 * layout.layer(L).staged_bytes();
    (0..ranks)
        .map(|rank| {
            let slots = (rank * SLOTS) as usize..((rank + 1) * SLOTS) as usize;
            let memory = HostMemory::new(RankId(rank), layout.clone(), slots.clone(), staging).unwrap();
            slots
                .filter(|&slot| slot < filled)
                .for_each(|slot| memory.fill(L, SlotId::at(slot), ExpertId::at(slot)).unwrap());
            memory
        })
        .collect()
}

fn memories(ranks: u32, tensors: &[usize]) -> Vec<Arc<HostMemory>> {
    memories_filled(ranks, tensors, usize::MAX)
}

fn transfer(from: u32, to: u32) -> Transfer {
    Transfer {
        layer: L,
        expert: ExpertId(from),
        source: RankId(from / SLOTS),
        source_slot: SlotId(from),
        dest: RankId(to / SLOTS),
        dest_slot: SlotId(to),
        landing: Landing::InPlace,
    }
}

fn staged(from: u32, to: u32, offset: usize) -> Transfer {
    Transfer { landing: Landing::Staged { offset }, ..transfer(from, to) }
}

fn end(rank: &mut impl Communicator, ticket: Ticket) -> Result<(), CommError> {
    let limit = soon();
    while rank.poll(ticket)? == Progress::Pending {
        assert!(Instant::now() < limit, "neither done nor failed");
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

fn run(rank: &mut impl Communicator, wave: &[Transfer]) -> Result<(), CommError> {
    let ticket = rank.submit(&wave.into(), Fence::passed(), soon())?;
    end(rank, ticket)
}

#[test]
fn a_copy_in_the_way_of_another_is_refused_by_name() {
    let memories = memories(2, &[300]);
    let mut group = LocalGroup::new(memories.clone(), 2).unwrap();
    let writer = memories[0].write(Place::slot(L, SlotId(1))).unwrap();
    let refused = run(&mut group[1], &[transfer(1, 5)]).unwrap_err();
    assert!(matches!(refused, CommError::Conflict { rank: RankId(0), wanted: "read", .. }), "{refused:?}");
    drop(writer);
    let reader = memories[1].read(Place::slot(L, SlotId(5))).unwrap();
    let refused = run(&mut group[1], &[transfer(1, 5)]).unwrap_err();
    assert!(matches!(refused, CommError::Conflict { rank: RankId(1), wanted: "written", .. }), "{refused:?}");
    assert_eq!(reader.count_wrong(ExpertId(5)), 0);
    drop(reader);
    run(&mut group[1], &[transfer(1, 5)]).unwrap();
    assert_eq!(memories[1].count_wrong(L, SlotId(5), ExpertId(1)).unwrap(), 0);
}

#[test]
fn a_source_that_was_overwritten_is_found_out() {
    let memories = memories(2, &[300]);
    let mut group = LocalGroup::new(memories.clone(), 2).unwrap();
    let gate = HostFence::new();
    let ticket = group[1].submit(&[transfer(1, 5)].as_slice().into(), gate.fence(), soon()).unwrap();
    memories[0].fill(L, SlotId(1), ExpertId(2)).unwrap();
    gate.pass();
    let refused = end(&mut group[1], ticket).unwrap_err();
    let CommError::WrongContent { place, expected, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!((*place, *expected), (Place::slot(L, SlotId(1)), ExpertId(1)));
    assert_eq!(memories[1].count_wrong(L, SlotId(5), ExpertId(5)).unwrap(), 0);
}

#[test]
fn a_wave_that_contradicts_itself_is_refused() {
    let memories = memories(2, &[300]);
    let mut group = LocalGroup::new(memories.clone(), 1).unwrap();
    let half = 304 / 2 / 16 * 16;
    let contradictions: [&[Transfer]; 4] = [
        &[transfer(0, 5), transfer(1, 5)],
        &[transfer(0, 5), transfer(5, 6)],
        &[staged(0, 5, 0), staged(1, 6, half)],
        &[staged(0, 5, 0), staged(1, 5, 0)],
    ];
    for wave in contradictions {
        let refused = group[1].submit(&wave.into(), Fence::passed(), soon()).unwrap_err();
        assert!(matches!(refused, CommError::Conflict { rank: RankId(1), .. }), "{wave:?}: {refused:?}");
    }
    // Neighbours in staging, and a staged expert whose slot is read, are well.
    run(&mut group[1], &[staged(0, 5, 0), staged(1, 6, 304), transfer(5, 7)]).unwrap();
    assert_eq!(memories[1].count_wrong(L, SlotId(7), ExpertId(5)).unwrap(), 0);
}

#[test]
fn memories_that_do_not_fit_together_are_refused() {
    let refuse = |memories: Vec<Arc<HostMemory>>, says: &str| {
        let refused = LocalGroup::new(memories, 1).unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
    };
    let pair = memories(2, &[300]);
    refuse(vec![pair[1].clone(), pair[0].clone()], "memory 0 of the group is that of rank 1");
    refuse(vec![pair[0].clone(), memories(2, &[301])[1].clone()], "rank 1 has other tensors");
    let layout = Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("t300", 300)]]).unwrap());
    let overlapping = HostMemory::new(RankId(1), layout, 3..8, 0).unwrap();
    refuse(vec![pair[0].clone(), overlapping], "rank 0 owns slots 0..4 and rank 1 owns slots 3..8");
    assert!(LocalGroup::new(Vec::new(), 1).unwrap().is_empty());
}

#[test]
fn a_copy_that_panics_fails_its_wave_and_nothing_else() {
    let memories = memories(3, &[300, 20]);
    let mut group = LocalGroup::new(memories.clone(), 1).unwrap().into_iter();
    let (_zero, one, mut two) = (group.next().unwrap(), group.next().unwrap(), group.next().unwrap());
    let panics = Planted::Panic { nth: 1, memory: memories[1].clone() };
    let faults = Faults { planted: vec![(Strike::Wave(0), panics)], ..Faults::default() };
    let mut one = FaultyCommunicator::around(one, faults);
    let wave: Arc<[Transfer]> = [transfer(0, 4), transfer(1, 5), transfer(2, 8)].as_slice().into();
    let tickets = (one.submit(&wave, Fence::passed(), soon()), two.submit(&wave, Fence::passed(), soon()));
    let failed = end(&mut one, tickets.0.unwrap()).unwrap_err();
    assert!(matches!(failed, CommError::Panicked { rank: RankId(1), .. }), "{failed:?}");
    assert_eq!(memories[1].content(Place::slot(L, SlotId(5))).unwrap().0, Content::Unknown);
    // The only copy thread lives on.
    end(&mut two, tickets.1.unwrap()).unwrap();
    run(&mut one, &[transfer(1, 5)]).unwrap();
    assert_eq!(memories[1].count_wrong(L, SlotId(5), ExpertId(1)).unwrap(), 0);
    assert_eq!(memories[2].count_wrong(L, SlotId(8), ExpertId(2)).unwrap(), 0);
}

#[test]
fn foreign_fences_are_watched_beside_work() {
    #[derive(Debug)]
    struct Foreign(Arc<HostFence>);
    impl FenceState for Foreign {
        fn poll(&self) -> Result<bool, CommError> {
            self.0.poll()
        }
        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    }
    for threads in [1, 3] {
        let memories = memories(2, &[300]);
        let mut group = LocalGroup::new(memories.clone(), threads).unwrap();
        let gates: Vec<_> = (0..3).map(|_| HostFence::new()).collect();
        let tickets: Vec<_> = (0..3u32)
            .map(|n| {
                let after = Fence::new(Arc::new(Foreign(gates[n as usize].clone())));
                group[1].submit(&[transfer(n, 4 + n)].as_slice().into(), after, soon()).unwrap()
            })
            .collect();
        run(&mut group[1], &[transfer(3, 7)]).unwrap();
        // Opened in another order than they were closed, one of them by a failure.
        gates[2].pass();
        end(&mut group[1], tickets[2]).unwrap();
        gates[0].fail(CommError::Aborted { rank: RankId(0), cause: "planted".into() });
        assert!(end(&mut group[1], tickets[0]).is_err());
        assert_eq!(group[1].poll(tickets[1]), Ok(Progress::Pending));
        gates[1].pass();
        end(&mut group[1], tickets[1]).unwrap();
        let found: Vec<bool> = (4..8)
            .map(|slot| memories[1].count_wrong(L, SlotId(slot), ExpertId(slot - 4)).unwrap() == 0)
            .collect();
        assert_eq!(found, [false, true, true, true]);
    }
}

#[test]
fn nothing_starts_after_its_deadline_even_if_nobody_polls() {
    let memories = memories(2, &[300]);
    let mut group = LocalGroup::new(memories.clone(), 1).unwrap();
    let gate = HostFence::new();
    let deadline = Instant::now() + Duration::from_millis(5);
    let late = group[1].submit(&[transfer(0, 4)].as_slice().into(), gate.fence(), deadline).unwrap();
    let fence = group[1].done(late).unwrap();
    std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    gate.pass();
    // The only thread has seen the late wave when the next one is done.
    run(&mut group[1], &[transfer(1, 5)]).unwrap();
    assert_eq!(memories[1].count_wrong(L, SlotId(4), ExpertId(4)).unwrap(), 0);
    assert!(matches!(fence.poll(), Err(CommError::Timeout { rank: RankId(1), .. })));
    assert!(matches!(group[1].poll(late), Err(CommError::Timeout { .. })));
}

#[test]
fn an_abort_amid_a_large_copy_never_leaves_a_wrong_name() {
    for round in 0..6u32 {
        let memories = memories_filled(2, &[9 << 20, 40], 3);
        let mut group = LocalGroup::new(memories.clone(), 3).unwrap();
        let wave: Vec<_> = (0..3).map(|n| transfer(n, 4 + n)).collect();
        group[1].submit(&wave.as_slice().into(), Fence::passed(), soon()).unwrap();
        std::thread::sleep(Duration::from_micros(200) * round);
        group[1].abort("the test").wait(RankId(1), "quiet", soon()).unwrap();
        for n in 0..3 {
            // Free again, and named only if whole.
            let slot = memories[1].write(Place::slot(L, SlotId(4 + n))).unwrap();
            let (content, _) = slot.content();
            drop(slot);
            if let Content::Expert(expert) = content {
                assert_eq!(memories[1].count_wrong(L, SlotId(4 + n), expert).unwrap(), 0, "round {round}");
            }
        }
    }
}

#[test]
fn a_large_copy_that_ran_out_of_time_lets_go_of_its_places() {
    for round in 1..5u32 {
        let memories = memories_filled(2, &[24 << 20], 1);
        let mut group = LocalGroup::new(memories.clone(), 2).unwrap();
        let deadline = Instant::now() + Duration::from_micros(800) * round;
        let ticket = group[1].submit(&[transfer(0, 5)].as_slice().into(), Fence::passed(), deadline).unwrap();
        let _ = end(&mut group[1], ticket);
        let limit = soon();
        for place in [(0, 0), (1, 5)].map(|(rank, slot)| (&memories[rank], Place::slot(L, SlotId(slot)))) {
            while place.0.write(place.1).is_err() {
                assert!(Instant::now() < limit, "{} is held for ever", place.1);
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }
}

#[test]
fn places_are_free_the_moment_their_wave_is_done() {
    let memories = memories_filled(2, &[5 << 20, 3], 1);
    let small = self::memories(2, &[40]);
    for (memories, rounds) in [(small, 4000), (memories, 20)] {
        let mut group = LocalGroup::new(memories.clone(), 2).unwrap();
        for _ in 0..rounds {
            let ticket =
                group[1].submit(&[transfer(0, 5)].as_slice().into(), Fence::passed(), soon()).unwrap();
            let fence = group[1].done(ticket).unwrap();
            // No pause: the thread that copies must have let go before it says so.
            while !fence.poll().unwrap() {
                std::hint::spin_loop();
            }
            drop(memories[0].write(Place::slot(L, SlotId(0))).unwrap());
            drop(memories[1].write(Place::slot(L, SlotId(5))).unwrap());
            assert_eq!(group[1].poll(ticket), Ok(Progress::Done));
        }
    }
}

#[test]
fn steps_run_while_a_wave_is_in_flight() {
    let memories = memories(2, &[300]);
    let mut group = LocalGroup::new(memories.clone(), 1).unwrap();
    let mut stream = HostStream::new(memories[1].clone(), StreamOptions::default()).unwrap();
    let gate = HostFence::new();
    let wave: Arc<[Transfer]> = [staged(0, 4, 0), transfer(1, 7)].as_slice().into();
    let ticket = group[1].submit(&wave, gate.fence(), soon()).unwrap();
    let step = |stream: &mut HostStream| {
        stream.run(|memory| {
            for slot in 4..7 {
                assert_eq!(memory.count_wrong(L, SlotId(slot), ExpertId(slot))?, 0);
            }
            Ok(())
        })
    };
    let steps: Vec<Fence> = (0..50).map(|_| step(&mut stream)).collect();
    for fence in &steps {
        fence.wait(RankId(1), "a step", soon()).unwrap();
    }
    assert_eq!(group[1].poll(ticket), Ok(Progress::Pending));
    // More steps race with the bytes; the commit waits for them on the stream, not on the host.
    let racing = step(&mut stream);
    gate.pass();
    eplb_comm::Stream::wait(&mut stream, &group[1].done(ticket).unwrap()).unwrap();
    let commit = eplb_core::SlotCommit {
        layer: L,
        slot: SlotId(4),
        fill: eplb_core::Fill::Staged { expert: ExpertId(0), offset: 0 },
    };
    let committed = eplb_comm::Stream::commit(&mut stream, &[commit]).unwrap();
    for fence in [racing, committed] {
        fence.wait(RankId(1), "step or commit", soon()).unwrap();
    }
    assert_eq!(group[1].poll(ticket), Ok(Progress::Done));
    assert_eq!(memories[1].count_wrong(L, SlotId(4), ExpertId(0)).unwrap(), 0);
    assert_eq!(memories[1].count_wrong(L, SlotId(7), ExpertId(1)).unwrap(), 0);
}

/// One rank on a thread of its own: each wave moves every expert one rank on, by way of alternating slots.
fn walk(mut rank: LocalCommunicator, memory: &Arc<HostMemory>, ranks: u32, waves: u32, met: &AtomicU32) {
    for wave in 0..waves {
        let (from, to) = (wave % 2, (wave + 1) % 2);
        let transfers: Arc<[Transfer]> = (0..ranks)
            .map(|source| {
                let expert = ExpertId(((source + ranks - wave % ranks) % ranks) * SLOTS);
                Transfer { expert, ..transfer(source * SLOTS + from, (source + 1) % ranks * SLOTS + to) }
            })
            .collect();
        let ticket = rank.submit(&transfers, Fence::passed(), soon()).unwrap();
        end(&mut rank, ticket).unwrap();
        let own = rank.rank().0;
        let expert = ExpertId(((own + ranks - (wave + 1) % ranks) % ranks) * SLOTS);
        assert_eq!(memory.count_wrong(L, SlotId(own * SLOTS + to), expert).unwrap(), 0);
        // The contract: a source is overwritten only after all readers have reported.
        met.fetch_add(1, Ordering::Release);
        let limit = soon();
        while met.load(Ordering::Acquire) < (wave + 1) * ranks {
            assert!(Instant::now() < limit, "another rank is gone");
            std::thread::yield_now();
        }
    }
    let bytes = u64::from(waves) * 1324;
    let carried = rank.carried();
    assert_eq!((carried.link_bytes, carried.local_bytes, carried.transfers), (bytes, 0, u64::from(waves)));
}

#[test]
fn ranks_on_their_own_threads_move_experts_in_step() {
    let (ranks, waves) = (5, 200);
    let memories = memories(ranks, &[1300, 24]);
    let group = LocalGroup::new(memories.clone(), 3).unwrap();
    let met = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for (rank, memory) in group.into_iter().zip(&memories) {
            let met = &met;
            scope.spawn(move || walk(rank, memory, ranks, waves, met));
        }
    });
}
