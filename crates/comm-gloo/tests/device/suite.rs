//! The suite of communicators, and groups of both kinds of memory.

use std::sync::Arc;

use eplb_comm::conformance::{Options as Suite, Rank, Setup, run_all};
use eplb_comm::host::HostMemory;
use eplb_comm::store::{InProcessStore, Store};
use eplb_comm::{CommError, Memory};
use eplb_comm_gloo::{GlooCommunicator, Options};
use eplb_core::RankId;
use eplb_cuda::Inspector;

use crate::ranks::{memories, ranks, soon};

fn passes(suite: &Suite, options: &Options) {
    let mut backend = |setup: &Setup| ranks(setup, |_| options.clone());
    run_all(&mut backend, suite).unwrap();
}

pub(crate) fn two_ranks() {
    passes(&Suite { ranks: 2, waves: 12, ..Suite::default() }, &Options::default());
}

pub(crate) fn three_ranks() {
    passes(&Suite { ranks: 3, waves: 12, ..Suite::default() }, &Options::default().staged());
}

/// Pieces of odd sizes that begin and end amid rows, one or two messages at a time, two cells.
pub(crate) fn small_pieces() {
    for (window, small_bytes, piece_bytes) in [(1, 0, 70_001), (2, 0, 13)] {
        let options = Options { window, small_bytes, piece_bytes, packing_bytes: 0, ..Options::default() };
        let suite = Suite { ranks: 3, waves: 6, ..Suite::default() };
        let mut backend = |setup: &Setup| -> Result<Vec<Rank>, CommError> {
            // Messages of 13 bytes are for small experts.
            let large = setup.layouts.iter().any(|layout| {
                (0..layout.layers())
                    .any(|layer| layout.layer(eplb_core::LayerId::at(layer)).expert_bytes() > 100_000)
            });
            let piece_bytes = if large { piece_bytes.max(70_001) } else { piece_bytes };
            ranks(setup, |_| Options { piece_bytes, ..options.clone() })
        };
        run_all(&mut backend, &suite).unwrap();
    }
}

/// Rank 1 has its slots in host memory, the others theirs on devices.
pub(crate) fn host_and_device() {
    let mut backend = |setup: &Setup| -> Result<Vec<Rank>, CommError> {
        let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
        let (devices, world) = (memories(setup), setup.slots.len());
        let make = |rank: usize| {
            let (store, options) = (store.clone(), Options::default());
            if rank != 1 {
                let memory = devices[rank].clone();
                let made = GlooCommunicator::connect_device(memory.clone(), world, store, options, soon());
                return Rank::new(made.unwrap(), Inspector::new(memory).unwrap());
            }
            let (layout, slots) = (setup.layouts[rank].clone(), setup.slots[rank].clone());
            let memory = HostMemory::new(RankId::at(rank), layout, slots, setup.staging_bytes).unwrap();
            assert_eq!(memory.staging_bytes(), devices[rank].staging_bytes());
            Rank::new(
                GlooCommunicator::connect(memory.clone(), world, store, options, soon()).unwrap(),
                memory,
            )
        };
        Ok(std::thread::scope(|scope| {
            let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || make(rank))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        }))
    };
    run_all(&mut backend, &Suite { ranks: 3, waves: 6, ..Suite::default() }).unwrap();
}
