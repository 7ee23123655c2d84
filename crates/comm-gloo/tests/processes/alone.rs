//! A group of one rank costs nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::host::HostMemory;
use eplb_comm::store::InProcessStore;
use eplb_comm::{Communicator, Fence};
use eplb_comm_gloo::{Device, GlooCommunicator, Options};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};

/// Threads and open descriptors of this process, the one of the count itself aside.
fn held() -> (usize, usize) {
    let count = |folder| std::fs::read_dir(folder).unwrap().count();
    (count("/proc/self/task"), count("/proc/self/fd") - 1)
}

/// Waits until a thread that was joined has left the system's list too, which it does a moment later.
fn left(expected: (usize, usize)) -> (usize, usize) {
    let limit = Instant::now() + Duration::from_secs(10);
    while held() != expected && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(1));
    }
    held()
}

/// No thread, no descriptor, no key, no library; waves work all the same.
pub(crate) fn one_rank_alone_makes_nothing(_: SocketAddr) {
    let layout = Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 1000)]]).unwrap());
    let memory = HostMemory::new(RankId(0), layout, 0..2, 0).unwrap();
    memory.fill(LayerId(0), SlotId(0), ExpertId(5)).unwrap();
    let (store, before) = (InProcessStore::new(), held());
    // A device that there is not: nobody looks for it.
    let options = Options::on(Device::Interface("no-such-interface".into()));
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut alone =
        GlooCommunicator::connect(memory.clone(), 1, Arc::new(store.clone()), options, deadline).unwrap();
    assert_eq!(held(), before);
    assert!(store.is_empty() && alone.packing_bytes() == 0 && alone.generation().is_none());
    let wave: Arc<[Transfer]> = Arc::new([Transfer {
        layer: LayerId(0),
        expert: ExpertId(5),
        source: RankId(0),
        source_slot: SlotId(0),
        dest: RankId(0),
        dest_slot: SlotId(1),
        landing: Landing::InPlace,
    }]);
    let ticket = alone.submit(&wave, Fence::passed(), deadline).unwrap();
    alone.done(ticket).unwrap().wait(RankId(0), "the wave", deadline).unwrap();
    assert_eq!(memory.count_wrong(LayerId(0), SlotId(1), ExpertId(5)), Ok(0));
    assert_eq!((alone.backend(), alone.world_size(), alone.carried().local_bytes), ("gloo", 1, 1000));
    drop(alone);
    assert_eq!(left(before), before);
    assert!(!std::fs::read_to_string("/proc/self/maps").unwrap().contains("libgloo"));
}
