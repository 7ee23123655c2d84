//! Ranks of a group as threads of this process, each with memory on a device of the fake.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::conformance::{Rank, RankMemory as _, Setup};
use eplb_comm::store::{InProcessStore, Store};
use eplb_comm::{CommError, Communicator, Fence, Progress, Ticket};
use eplb_comm_gloo::{GlooCommunicator, Options};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};
use eplb_cuda::{DeviceMemory, Inspector, probe};

pub(crate) const L: LayerId = LayerId(0);

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

/// Memories as a setup of the conformance suite wants them.
pub(crate) fn memories(setup: &Setup) -> Vec<Arc<DeviceMemory>> {
    let contexts = probe().unwrap().contexts(setup.slots.len()).unwrap();
    let memory = |rank: usize| {
        let (layout, slots) = (setup.layouts[rank].clone(), setup.slots[rank].clone());
        DeviceMemory::new(&contexts[rank], RankId::at(rank), layout, slots, setup.staging_bytes).unwrap()
    };
    (0..setup.slots.len()).map(memory).collect()
}

/// One communicator per memory, each connected on a thread of its own.
pub(crate) fn connect(
    memories: &[Arc<DeviceMemory>],
    options: impl Fn(usize) -> Options,
) -> Vec<GlooCommunicator> {
    let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = memories
            .iter()
            .enumerate()
            .map(|(rank, memory)| {
                let (memory, store, options) = (memory.clone(), store.clone(), options(rank));
                let world = memories.len();
                scope.spawn(move || GlooCommunicator::connect_device(memory, world, store, options, soon()))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    })
}

/// Ranks for the suite.
pub(crate) fn ranks(setup: &Setup, options: impl Fn(usize) -> Options) -> Result<Vec<Rank>, CommError> {
    let memories = memories(setup);
    let made = connect(&memories, options).into_iter().zip(memories);
    Ok(made.map(|(communicator, memory)| Rank::new(communicator, Inspector::new(memory).unwrap())).collect())
}

/// Ranks of two slots each, and how to look at them; slot `p` holds expert `p`.
pub(crate) struct World {
    pub(crate) memories: Vec<Arc<DeviceMemory>>,
    pub(crate) looks: Vec<Inspector>,
}

impl World {
    /// Of one layer with tensors of these bytes.
    pub(crate) fn new(ranks: usize, tensors: &[usize]) -> Self {
        let tensors = tensors.iter().enumerate();
        let tensors = tensors.map(|(number, &bytes)| TensorLayout::contiguous(format!("t{number}"), bytes));
        let layout = Arc::new(ModelLayout::new(vec![tensors.collect()]).unwrap());
        let contexts = probe().unwrap().contexts(ranks).unwrap();
        let memory = |rank: usize| {
            let slots = 2 * rank..2 * rank + 2;
            DeviceMemory::new(&contexts[rank], RankId::at(rank), layout.clone(), slots, 0).unwrap()
        };
        let memories: Vec<_> = (0..ranks).map(memory).collect();
        let looks = memories.iter().map(|memory| Inspector::new(memory.clone()).unwrap()).collect();
        let mut world = Self { memories, looks };
        for slot in 0..2 * ranks {
            world.looks[slot / 2].fill(L, SlotId::at(slot), ExpertId::at(slot)).unwrap();
        }
        world
    }

    /// A slot gets back the expert that it began with.
    pub(crate) fn refill(&mut self, slot: usize) {
        self.looks[slot / 2].fill(L, SlotId::at(slot), ExpertId::at(slot)).unwrap();
    }

    /// Bytes of a slot that are not those of an expert.
    pub(crate) fn wrong(&mut self, slot: usize, expert: usize) -> u64 {
        self.looks[slot / 2].count_wrong(L, SlotId::at(slot), ExpertId::at(expert)).unwrap()
    }

    /// Of each rank, bytes of its second slot that are not those of the ring.
    pub(crate) fn wrong_after_ring(&mut self) -> Vec<u64> {
        let ranks = self.memories.len();
        (0..ranks).map(|rank| self.wrong(2 * rank + 1, 2 * ((rank + ranks - 1) % ranks))).collect()
    }
}

/// The expert of the first slot of each rank to the second slot of the next.
pub(crate) fn ring(ranks: usize) -> Arc<[Transfer]> {
    let transfer = |rank: usize| Transfer {
        layer: L,
        expert: ExpertId::at(2 * rank),
        source: RankId::at(rank),
        source_slot: SlotId::at(2 * rank),
        dest: RankId::at((rank + 1) % ranks),
        dest_slot: SlotId::at(2 * ((rank + 1) % ranks) + 1),
        landing: Landing::InPlace,
    };
    (0..ranks).map(transfer).collect()
}

/// Submits on all ranks.
pub(crate) fn submit(
    group: &mut [GlooCommunicator],
    wave: &Arc<[Transfer]>,
    deadline: Instant,
) -> Vec<Ticket> {
    group.iter_mut().map(|rank| rank.submit(wave, Fence::passed(), deadline).unwrap()).collect()
}

/// Polls a rank until its wave ends.
pub(crate) fn outcome(rank: &mut GlooCommunicator, ticket: Ticket) -> Result<(), CommError> {
    let patience = soon();
    loop {
        match rank.poll(ticket) {
            Ok(Progress::Done) => return Ok(()),
            Err(error) => return Err(error),
            Ok(Progress::Pending) => assert!(Instant::now() < patience, "a wave never ended"),
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

pub(crate) fn outcomes(group: &mut [GlooCommunicator], tickets: &[Ticket]) -> Vec<Result<(), CommError>> {
    group.iter_mut().zip(tickets).map(|(rank, &ticket)| outcome(rank, ticket)).collect()
}
