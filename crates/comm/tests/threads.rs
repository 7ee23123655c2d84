//! Which threads a local group has, and that they end. A program of its own, so that no other test's threads count.
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::host::{HostFence, HostMemory};
use eplb_comm::local::{LocalCommunicator, LocalGroup};
use eplb_comm::{Communicator, Fence, Progress};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Waits until a thread that was joined has left the system's list too, which it does a moment later.
fn left(expected: usize) -> usize {
    let limit = Instant::now() + Duration::from_secs(10);
    while threads() > expected && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(1));
    }
    threads()
}

fn group(ranks: usize, copy_threads: usize) -> Vec<LocalCommunicator> {
    let layout = Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 64)]]).unwrap());
    let memories = (0..ranks)
        .map(|rank| {
            let memory =
                HostMemory::new(RankId::at(rank), layout.clone(), rank * 2..rank * 2 + 2, 0).unwrap();
            memory.fill(LayerId(0), SlotId::at(rank * 2), ExpertId::at(rank)).unwrap();
            memory
        })
        .collect();
    LocalGroup::new(memories, copy_threads).unwrap()
}

fn transfer(source: usize, dest: usize) -> Transfer {
    Transfer {
        layer: LayerId(0),
        expert: ExpertId::at(source),
        source: RankId::at(source),
        source_slot: SlotId::at(source * 2),
        dest: RankId::at(dest),
        dest_slot: SlotId::at(dest * 2 + 1),
        landing: Landing::InPlace,
    }
}

#[test]
fn threads_come_when_needed_and_go_with_the_last_rank() {
    let before = threads();
    let deadline = Instant::now() + Duration::from_secs(60);

    // A rank alone has none until a transfer, and an empty wave is none.
    let mut alone = group(1, 3);
    let nothing: Arc<[Transfer]> = Arc::new([]);
    let empty = alone[0].submit(&nothing, Fence::passed(), deadline).unwrap();
    assert_eq!(alone[0].poll(empty), Ok(Progress::Done));
    assert_eq!(threads(), before);
    let wave: Arc<[Transfer]> = Arc::new([transfer(0, 0)]);
    let ticket = alone[0].submit(&wave, Fence::passed(), deadline).unwrap();
    assert_eq!(threads(), before + 3);
    alone[0].done(ticket).unwrap().wait(RankId(0), "a copy", deadline).unwrap();
    drop(alone);
    assert_eq!(left(before), before);

    // Several ranks share the threads, made at the start.
    let mut ranks = group(4, 2);
    assert_eq!(threads(), before + 2);
    let last = ranks.pop().unwrap();
    drop(ranks);
    assert_eq!(threads(), before + 2);
    drop(last);
    assert_eq!(left(before), before);

    // A wave behind a fence that is never passed holds nothing up, and a fence that outlives the group nothing either.
    let gate = HostFence::new();
    let mut ranks = group(2, 2);
    let wave: Arc<[Transfer]> = Arc::new([transfer(0, 1)]);
    ranks[1].submit(&wave, gate.fence(), deadline).unwrap();
    drop(ranks);
    assert_eq!(left(before), before);
    gate.pass();
}
