//! Ranks of a Gloo group as threads of one process, with a store of their own.

#![allow(dead_code)] // Each test uses some of it.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use eplb_comm::conformance::{Rank, Setup};
use eplb_comm::host::HostMemory;
use eplb_comm::store::{InProcessStore, Store};
use eplb_comm_gloo::{GlooCommunicator, GlooError, Options};
use eplb_core::{LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Memories as a setup of the conformance suite wants them.
pub(crate) fn memories(setup: &Setup) -> Vec<Arc<HostMemory>> {
    let memory = |rank: usize| {
        let (layout, slots) = (setup.layouts[rank].clone(), setup.slots[rank].clone());
        HostMemory::new(RankId::at(rank), layout, slots, setup.staging_bytes).unwrap()
    };
    (0..setup.slots.len()).map(memory).collect()
}

/// One rank per memory, each connected on a thread of its own.
pub(crate) fn connect(
    memories: &[Arc<HostMemory>],
    store: &Arc<dyn Store>,
    options: impl Fn(usize) -> Options,
    deadline: Instant,
) -> Vec<Result<GlooCommunicator, GlooError>> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> = memories
            .iter()
            .enumerate()
            .map(|(rank, memory)| {
                let (memory, store, options) = (memory.clone(), store.clone(), options(rank));
                let world = memories.len();
                scope.spawn(move || GlooCommunicator::connect(memory, world, store, options, deadline))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

pub(crate) fn store() -> Arc<dyn Store> {
    Arc::new(InProcessStore::new())
}

/// Communicators that must come up.
pub(crate) fn group(
    memories: &[Arc<HostMemory>],
    options: impl Fn(usize) -> Options,
) -> Vec<GlooCommunicator> {
    connect(memories, &store(), options, soon()).into_iter().map(Result::unwrap).collect()
}

/// Ranks for the conformance suite.
pub(crate) fn ranks(setup: &Setup, options: impl Fn(usize) -> Options) -> Vec<Rank> {
    let memories = memories(setup);
    group(&memories, options).into_iter().zip(memories).map(|(c, m)| Rank::new(c, m)).collect()
}

/// Ranks of two slots each, one layer of a large and a small tensor; slot `p` holds expert `p`.
pub(crate) fn small_world(ranks: usize, bytes: usize) -> Vec<Arc<HostMemory>> {
    let tensors = vec![TensorLayout::contiguous("w", bytes), TensorLayout::contiguous("scale", 40)];
    let layout = Arc::new(ModelLayout::new(vec![tensors]).unwrap());
    let memory = |rank: usize| {
        let slots = 2 * rank..2 * rank + 2;
        let memory = HostMemory::new(RankId::at(rank), layout.clone(), slots.clone(), 0).unwrap();
        for slot in slots {
            memory.fill(LayerId(0), SlotId::at(slot), eplb_core::ExpertId::at(slot)).unwrap();
        }
        memory
    };
    (0..ranks).map(memory).collect()
}

/// The expert of the first slot of each rank to the second slot of the next.
pub(crate) fn ring(ranks: usize) -> Arc<[Transfer]> {
    (0..ranks)
        .map(|rank| Transfer {
            layer: LayerId(0),
            expert: eplb_core::ExpertId::at(2 * rank),
            source: RankId::at(rank),
            source_slot: SlotId::at(2 * rank),
            dest: RankId::at((rank + 1) % ranks),
            dest_slot: SlotId::at(2 * ((rank + 1) % ranks) + 1),
            landing: eplb_core::Landing::InPlace,
        })
        .collect()
}

/// Where ranks wait for each other, once. If one of them fails before, the others fail too.
pub(crate) struct Meeting {
    ranks: usize,
    come: Mutex<usize>,
    changed: Condvar,
}

impl Meeting {
    pub(crate) fn of(ranks: usize) -> Self {
        Self { ranks, come: Mutex::new(0), changed: Condvar::new() }
    }

    pub(crate) fn wait(&self) {
        let mut come = self.come.lock().unwrap();
        *come += 1;
        self.changed.notify_all();
        let limit = Duration::from_secs(60);
        let (come, late) = self.changed.wait_timeout_while(come, limit, |come| *come < self.ranks).unwrap();
        let come = *come;
        assert!(!late.timed_out(), "of {} ranks {come} have come to the end", self.ranks);
    }
}
