//! Slots, staging and guards of host memory.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use eplb_comm::host::{Content, HostMemory, copy};
use eplb_comm::{CommError, Memory, Place, pattern};
use eplb_core::{ExpertId, LayerId, ModelLayout, RankId, SlotId, TensorLayout};

const L: LayerId = LayerId(0);

fn pitched(name: &str, rows: usize, row_bytes: usize, pitch: usize, slot_stride: usize) -> TensorLayout {
    TensorLayout { name: name.into(), rows, row_bytes, pitch, slot_stride }
}

fn memory(tensors: Vec<TensorLayout>, slots: std::ops::Range<usize>, staging: usize) -> Arc<HostMemory> {
    let layout = Arc::new(ModelLayout::new(vec![tensors]).unwrap());
    HostMemory::new(RankId(0), layout, slots, staging).unwrap()
}

fn slot(slot: u32) -> Place {
    Place::slot(L, SlotId(slot))
}

#[test]
fn one_writer_or_many_readers_and_a_refusal_names_the_place() {
    let memory = memory(vec![TensorLayout::contiguous("w", 32)], 4..6, 64);
    for place in [slot(4), Place::staged(L, 32)] {
        let readers = [memory.read(place).unwrap(), memory.read(place).unwrap()];
        let Err(CommError::Conflict { rank, place: named, wanted, .. }) = memory.write(place) else {
            panic!("{place} was given to a writer beside readers");
        };
        assert_eq!((rank, named, wanted), (RankId(0), place, "written"));
        drop(readers);
        let writer = memory.write(place).unwrap();
        assert!(matches!(memory.read(place), Err(CommError::Conflict { wanted: "read", .. })));
        assert!(matches!(memory.write(place), Err(CommError::Conflict { wanted: "written", .. })));
        // Its neighbour is free.
        drop((memory.write(slot(5)).unwrap(), memory.write(Place::staged(L, 0)).unwrap()));
        drop(writer);
        drop(memory.read(place).unwrap());
    }
}

#[test]
fn places_outside_are_errors() {
    let memory = memory(vec![TensorLayout::contiguous("w", 20)], 4..6, 64);
    let outside = [
        slot(3),
        slot(6),
        Place::slot(LayerId(1), SlotId(4)),
        Place::staged(LayerId(1), 0),
        Place::staged(L, 48),
        Place::staged(L, 8),
        Place::staged(L, usize::MAX - 15),
    ];
    for place in outside {
        assert!(matches!(memory.read(place), Err(CommError::NoSuchPlace { .. })), "{place}");
        assert!(matches!(memory.write(place), Err(CommError::NoSuchPlace { .. })), "{place}");
    }
    assert_eq!((memory.slots(), memory.staging_bytes()), (4..6, 64));
    assert!(memory.check(Place::staged(L, 32)).is_ok());
}

#[test]
fn content_follows_what_is_written() {
    let memory = memory(vec![TensorLayout::contiguous("w", 16)], 0..2, 16);
    assert_eq!(memory.content(slot(0)).unwrap(), (Content::Empty, 0));
    memory.fill(L, SlotId(0), ExpertId(9)).unwrap();
    assert_eq!(memory.content(slot(0)).unwrap(), (Content::Expert(ExpertId(9)), 1));
    // A guard that writes nothing changes nothing.
    drop(memory.write(slot(0)).unwrap());
    assert_eq!(memory.content(slot(0)).unwrap(), (Content::Expert(ExpertId(9)), 1));
    // One that writes and does not say what leaves unknown bytes.
    memory.write(slot(0)).unwrap().rows_mut(0).for_each(|row| row.fill(0));
    assert_eq!(memory.content(slot(0)).unwrap(), (Content::Unknown, 2));
    memory.declare(slot(0), Content::Empty).unwrap();
    assert_eq!(memory.content(slot(0)).unwrap().0, Content::Empty);
}

#[test]
fn a_copy_of_the_wrong_expert_is_refused_and_changes_nothing() {
    let memory = memory(vec![TensorLayout::contiguous("w", 16)], 0..2, 16);
    memory.fill(L, SlotId(0), ExpertId(1)).unwrap();
    memory.fill(L, SlotId(1), ExpertId(2)).unwrap();
    let before = memory.content(slot(1)).unwrap();
    let refused = {
        let (source, mut dest) = (memory.read(slot(0)).unwrap(), memory.write(slot(1)).unwrap());
        copy(&source, &mut dest, ExpertId(7))
    };
    let Err(CommError::WrongContent { place, expected: ExpertId(7), found, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((place, found.as_str()), (slot(0), "expert 1"));
    assert_eq!(memory.content(slot(1)).unwrap(), before);
    assert_eq!(memory.count_wrong(L, SlotId(1), ExpertId(2)).unwrap(), 0);
}

#[test]
fn layers_of_other_shapes_do_not_mix() {
    let small = memory(vec![TensorLayout::contiguous("w", 16)], 0..1, 0);
    let large = memory(vec![TensorLayout::contiguous("w", 32)], 0..1, 0);
    small.fill(L, SlotId(0), ExpertId(1)).unwrap();
    let (source, mut dest) = (small.read(slot(0)).unwrap(), large.write(slot(0)).unwrap());
    assert!(matches!(copy(&source, &mut dest, ExpertId(1)), Err(CommError::Core(_))));
    assert_eq!(dest.content(), (Content::Empty, 0));
}

#[test]
fn borrowed_tensors_keep_every_byte_that_is_no_experts() {
    const GAP: u8 = 0xa5;
    let tensors = vec![pitched("w", 3, 7, 10, 40), pitched("scale", 1, 5, 5, 8)];
    let layout = Arc::new(ModelLayout::new(vec![tensors.clone()]).unwrap());
    // Three slots, and bytes before and after that are not the memory's.
    let mut buffers: Vec<Vec<u8>> = tensors.iter().map(|t| vec![GAP; 16 + 3 * t.slot_stride]).collect();
    let bases: Vec<NonNull<u8>> =
        buffers.iter_mut().map(|buffer| NonNull::new(buffer[8..].as_mut_ptr()).unwrap()).collect();
    // SAFETY: each buffer has 8 + 3 * slot_stride bytes from its base on, outlives the memory, and is not touched while
    // the memory lives; the buffers are apart.
    let memory =
        unsafe { HostMemory::from_raw(RankId(0), layout.clone(), 6..9, std::slice::from_ref(&bases), 64) }
            .unwrap();
    assert_eq!(memory.content(slot(7)).unwrap().0, Content::Unknown);
    memory.fill(L, SlotId(6), ExpertId(3)).unwrap();
    let through = [(slot(6), Place::staged(L, 0)), (Place::staged(L, 0), slot(8))];
    for (from, to) in through {
        let (source, mut dest) = (memory.read(from).unwrap(), memory.write(to).unwrap());
        copy(&source, &mut dest, ExpertId(3)).unwrap();
    }
    assert_eq!(memory.count_wrong(L, SlotId(8), ExpertId(3)).unwrap(), 0);
    drop(memory);
    for (index, (tensor, buffer)) in tensors.iter().zip(&buffers).enumerate() {
        let mut expected = vec![GAP; buffer.len()];
        for local in [0, 2] {
            for row in 0..tensor.rows {
                let at = 8 + local * tensor.slot_stride + row * tensor.pitch;
                let bytes = &mut expected[at..at + tensor.row_bytes];
                pattern::fill(L, ExpertId(3), index, row * tensor.row_bytes, bytes);
            }
        }
        assert_eq!(*buffer, expected, "tensor {index}");
    }
    // SAFETY: refused before an address is used.
    let refused = unsafe { HostMemory::from_raw(RankId(0), layout, 6..9, &[bases[..1].to_vec()], 0) };
    assert!(matches!(refused, Err(CommError::Core(_))));
}

#[test]
fn a_renumbered_memory_is_the_same_bytes_under_other_numbers() {
    let memory = memory(vec![TensorLayout::contiguous("w", 100)], 4..6, 100);
    memory.fill(LayerId(0), SlotId(5), ExpertId(3)).unwrap();
    let other = memory.renumbered(RankId(7), 1);
    assert_eq!((other.rank(), other.slots()), (RankId(7), 1..3));
    assert_eq!(other.count_wrong(LayerId(0), SlotId(2), ExpertId(3)).unwrap(), 0);
    assert!(other.read(slot(5)).is_err());
    // Locks are shared: who holds a slot under one number keeps it under the other.
    let held = memory.write(slot(5)).unwrap();
    assert!(matches!(other.read(slot(2)), Err(CommError::Conflict { rank: RankId(7), .. })));
    drop(held);
    other.fill(LayerId(0), SlotId(2), ExpertId(1)).unwrap();
    drop(other);
    assert_eq!(memory.count_wrong(LayerId(0), SlotId(5), ExpertId(1)).unwrap(), 0);
}

#[test]
fn more_memory_than_there_is_is_an_error() {
    let layout = Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 1 << 50)]]).unwrap());
    let refused = HostMemory::new(RankId(2), layout.clone(), 0..64, 0);
    assert!(matches!(refused, Err(CommError::NoMemory { rank: RankId(2), .. })), "{refused:?}");
    let refused = HostMemory::new(RankId(2), layout, 0..usize::MAX, 0);
    assert!(matches!(refused, Err(CommError::Core(_))), "{refused:?}");
}

#[test]
fn counting_finds_every_byte_and_sampling_the_ends() {
    let memory = memory(vec![TensorLayout::contiguous("scale", 3), pitched("w", 50, 33, 40, 2000)], 0..1, 0);
    let flip = |row: usize, at: usize| {
        memory.fill(L, SlotId(0), ExpertId(1)).unwrap();
        let mut guard = memory.write(slot(0)).unwrap();
        guard.rows_mut(1).nth(row).unwrap()[at] ^= 1;
    };
    for (row, at) in [(0, 0), (49, 32)] {
        flip(row, at);
        assert_eq!(memory.count_wrong(L, SlotId(0), ExpertId(1)).unwrap(), 1);
        assert_eq!(memory.sample_wrong(L, SlotId(0), ExpertId(1), 0, 3).unwrap(), 1);
    }
    // A byte in the middle is found by some seeds and not by others, and the same for the same seed.
    flip(25, 16);
    let found: Vec<u64> =
        (0..200).map(|seed| memory.sample_wrong(L, SlotId(0), ExpertId(1), 6, seed).unwrap()).collect();
    assert!(found.contains(&1) && found.contains(&0));
    let again: Vec<u64> =
        (0..200).map(|seed| memory.sample_wrong(L, SlotId(0), ExpertId(1), 6, seed).unwrap()).collect();
    assert_eq!(found, again);
    memory.fill(L, SlotId(0), ExpertId(1)).unwrap();
    assert_eq!(memory.count_wrong(L, SlotId(0), ExpertId(1)).unwrap(), 0);
    assert!(memory.count_wrong(L, SlotId(0), ExpertId(2)).unwrap() > 1000);
}

#[test]
fn racing_readers_and_writers_never_see_half_a_write() {
    let memory =
        memory(vec![TensorLayout::contiguous("w", 2048), pitched("s", 4, 9, 16, 64)], 0..3, 3 * 2112);
    let staged = |nth: usize| Place::staged(L, nth * 2112);
    let (written, read) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (memory, written, read) = (&memory, &written, &read);
            scope.spawn(move || {
                // A linear congruential generator is random enough to choose places.
                let mut state = thread + 1;
                let mut below = |end: u64| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 33) % end
                };
                for _ in 0..3000 {
                    let any = |n: u64| if n < 3 { slot(n as u32) } else { staged(n as usize - 3) };
                    let (from, to) = (any(below(6)), any(below(6)));
                    match below(4) {
                        0 => {
                            let expert = ExpertId(below(100) as u32);
                            if memory.fill(L, SlotId(below(3) as u32), expert).is_ok() {
                                written.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        1 => {
                            let (Ok(source), Ok(mut dest)) = (memory.read(from), memory.write(to)) else {
                                continue;
                            };
                            if let (Content::Expert(expert), _) = source.content() {
                                copy(&source, &mut dest, expert).unwrap();
                            }
                        }
                        _ => {
                            let Ok(guard) = memory.read(from) else { continue };
                            if let (Content::Expert(expert), _) = guard.content() {
                                assert_eq!(guard.count_wrong(expert), 0, "{from} is not {expert}");
                                read.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
    });
    assert!(written.into_inner() > 100 && read.into_inner() > 100);
    // Nobody is left inside.
    for n in 0..3 {
        drop((memory.write(slot(n)).unwrap(), memory.write(staged(n as usize)).unwrap()));
    }
}

#[test]
fn a_write_after_the_content_was_stated_makes_it_unknown_again() {
    let memory = memory(vec![TensorLayout::contiguous("w", 32)], 0..2, 64);
    for place in [slot(1), Place::staged(L, 0)] {
        let mut guard = memory.write(place).unwrap();
        guard.rows_mut(0).next().unwrap()[0] = 1;
        guard.set_content(Content::Expert(ExpertId(3)));
        let (_, stated) = guard.content();
        guard.rows_mut(0).next().unwrap()[0] = 2;
        let (content, generation) = guard.content();
        assert_eq!(content, Content::Unknown, "{place}");
        assert_ne!(generation, stated, "{place}: readers in other processes tell writes apart by it");
    }
}
