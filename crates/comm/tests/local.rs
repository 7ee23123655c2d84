//! Transfers between host memories through the `local` backend.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::host::{HostFence, HostMemory};
use eplb_comm::local::{LocalCommunicator, LocalGroup};
use eplb_comm::{Communicator, Fence, Place, Progress};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};

fn wait(communicator: &mut LocalCommunicator, ticket: eplb_comm::Ticket) {
    while communicator.poll(ticket).unwrap() == Progress::Pending {
        std::thread::sleep(Duration::from_micros(50));
    }
}

#[test]
fn an_expert_goes_from_slot_to_slot_after_its_gate() {
    let tensors = vec![TensorLayout::contiguous("w", 1000), TensorLayout::contiguous("s", 3)];
    let layout = Arc::new(ModelLayout::new(vec![tensors]).unwrap());
    let memories: Vec<_> = (0..2)
        .map(|r| {
            HostMemory::new(RankId(r), layout.clone(), r as usize * 2..r as usize * 2 + 2, 4096).unwrap()
        })
        .collect();
    memories[0].fill(LayerId(0), SlotId(0), ExpertId(7)).unwrap();
    let mut group = LocalGroup::new(memories.clone(), 2).unwrap();
    let wave: Arc<[Transfer]> = Arc::new([Transfer {
        layer: LayerId(0),
        expert: ExpertId(7),
        source: RankId(0),
        source_slot: SlotId(0),
        dest: RankId(1),
        dest_slot: SlotId(3),
        landing: Landing::InPlace,
    }]);
    let gate = HostFence::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    let ticket = group[1].submit(&wave, gate.fence(), deadline).unwrap();
    assert_eq!(group[1].poll(ticket).unwrap(), Progress::Pending);
    assert!(memories[1].count_wrong(LayerId(0), SlotId(3), ExpertId(7)).unwrap() > 0);
    gate.pass();
    wait(&mut group[1], ticket);
    assert_eq!(memories[1].count_wrong(LayerId(0), SlotId(3), ExpertId(7)).unwrap(), 0);
    let _ = (Fence::passed(), Place::slot(LayerId(0), SlotId(0)));
}
