//! What the fake was asked for.

use std::collections::{HashMap, HashSet};

use eplb_comm_gloo::{GlooCommunicator, Options};

use crate::log::Log;
use crate::ranks::{World, connect, outcomes, ring, soon, submit};

/// No communicator waits for a device, or makes a stream wait; streams are its own; pinned memory is given back.
pub(crate) fn is_a_guest(log: &Log) {
    asks_for_nothing_forbidden(log);
    assert_eq!(log.count("cuMemHostAlloc"), log.count("cuMemFreeHost"), "pinned memory is given back");
}

fn asks_for_nothing_forbidden(log: &Log) {
    for name in ["cuCtxSynchronize", "default_stream", "outside", "cuStreamWaitEvent", "cuLaunchHostFunc"] {
        assert_eq!(log.count(name), 0, "{name}");
    }
    let made = || log.0.iter().filter(|call| call.name == "cuStreamCreate");
    assert!(made().all(|call| call.text("flags") == "1"), "a stream that waits for the default stream");
    let own: HashSet<&str> = made().map(|call| call.text("stream")).collect();
    for name in
        ["cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync", "cuMemcpyAsync", "cuMemcpy2DAsync", "cuEventRecord"]
    {
        let mut of = log.0.iter().filter(|call| call.name == name);
        assert!(of.all(|call| own.contains(call.text("stream"))), "{name} on another stream");
    }
    // Streams that inspectors wait for are never those of lanes, on which events are recorded. An address is that of another stream when it is made again.
    let mut uses: HashMap<&str, HashSet<&str>> = HashMap::new();
    for call in &log.0 {
        match &*call.name {
            "cuStreamCreate" => drop(uses.remove(call.text("stream"))),
            "cuEventRecord" | "cuStreamSynchronize" => {
                let uses = uses.entry(call.text("stream")).or_default();
                uses.insert(&call.name);
                assert!(uses.len() < 2, "a lane waits for its stream: {call:?}");
            }
            _ => {}
        }
    }
    assert!(log.first("cuMemcpyHtoDAsync").is_some() && log.first("cuMemcpyDtoHAsync").is_some());
}

const RANKS: usize = 3;
/// Pieces of 1 MiB, eight cells for each of four lanes.
const PACKING_BYTES: usize = 32 << 20;
/// What an inspector has.
const LOOK_BYTES: usize = 4 << 20;

pub(crate) fn bounded() {
    let mut world = World::new(RANKS, &[10 << 20, 5 << 20, 7000]);
    let mut ranks = connect(&world.memories, |_| Options::default().staged());
    assert_eq!(ranks.iter().map(GlooCommunicator::packing_bytes).collect::<Vec<_>>(), [PACKING_BYTES; RANKS]);
    for _ in 0..2 {
        let tickets = submit(&mut ranks, &ring(RANKS), soon());
        assert_eq!(outcomes(&mut ranks, &tickets), [Ok(()), Ok(()), Ok(())]);
    }
    assert_eq!(world.wrong_after_ring(), [0; RANKS]);
}

/// Far less pinned memory than slots take, and all of it before the first byte moves.
pub(crate) fn is_bounded(log: &Log) {
    is_a_guest(log);
    let of = |name: &str| -> u64 {
        log.0.iter().filter(|call| call.name == name).map(|call| call.number("bytes")).sum()
    };
    assert_eq!(of("cuMemHostAlloc") as usize, RANKS * (PACKING_BYTES + LOOK_BYTES));
    let last = log.0.iter().rposition(|call| call.name == "cuStreamCreate").unwrap();
    let later = log.0[last..].iter().find(|call| ["cuMemAlloc", "cuMemHostAlloc"].contains(&&*call.name));
    assert!(later.is_none(), "memory after the start: {later:?}");
}

/// Of the lane whose device came to no end, pinned memory stays.
pub(crate) fn keeps_what_is_used(log: &Log) {
    asks_for_nothing_forbidden(log);
    let kept = log.count("cuMemHostAlloc") - log.count("cuMemFreeHost");
    assert_eq!(kept, 1, "that of the lane whose copy did not end");
}
