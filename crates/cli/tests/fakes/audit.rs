//! What no run may do to a server that it is a guest of.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::libraries::exchange;
use crate::log::{Call, Log};

/// Most sends and receives of a rank in a group, the default.
const OPERATIONS: usize = 256;

/// Everything in a log that must not be there.
pub(crate) fn audit(log: &Log) -> Vec<String> {
    let mut found = Vec::new();
    for name in ["cuCtxSynchronize", "default_stream", "outside", "nccl_mismatch", "nccl_error"] {
        if log.count(name) > 0 {
            found.push(format!("{name}: {} times", log.count(name)));
        }
    }
    found.extend(streams(log));
    found.extend(allocations(log));
    found.extend(groups(log));
    found.extend(pairs(log));
    found
}

/// All streams are our own and do not wait for the default stream; the host waits only for those that carry nothing
/// but copies from and to the host, or copies at the very end.
fn streams(log: &Log) -> Vec<String> {
    let mut found = Vec::new();
    let created: HashSet<&str> =
        log.0.iter().filter(|call| call.name == "cuStreamCreate").map(|call| call.text("stream")).collect();
    let last_message = log.0.iter().rposition(|call| call.name == "ncclRecv").unwrap_or(0);
    let busy: HashSet<&str> = log
        .0
        .iter()
        .filter(|call| {
            ["ncclSend", "ncclRecv", "cuStreamWaitEvent", "cuMemcpyAsync", "cuMemcpy2DAsync"]
                .contains(&&*call.name)
        })
        .map(|call| call.text("stream"))
        .collect();
    for (at, call) in log.0.iter().enumerate() {
        match &*call.name {
            "cuStreamCreate" if call.text("flags") != "1" => {
                found.push(format!("a blocking stream: {call:?}"))
            }
            "cuStreamSynchronize" if at < last_message && busy.contains(call.text("stream")) => {
                found.push(format!("the host waits for a stream at work: {call:?}"));
            }
            "ncclSend" | "ncclRecv" | "cuEventRecord" | "cuStreamSynchronize"
                if !created.contains(call.text("stream")) =>
            {
                found.push(format!("a stream that is not ours: {call:?}"));
            }
            _ => {}
        }
    }
    found
}

/// Nothing is taken between the first message and the last.
fn allocations(log: &Log) -> Vec<String> {
    let Some(first) = log.first("ncclGroupStart") else { return Vec::new() };
    let last = log.0.iter().rposition(|call| call.name == "ncclGroupEnd").unwrap_or(first);
    log.0[first..last]
        .iter()
        .filter(|call| ["cuMemAlloc", "cuMemHostAlloc", "cuMemFree", "cuMemFreeHost"].contains(&&*call.name))
        .map(|call| format!("memory after start-up: {call:?}"))
        .collect()
}

/// Every message lies in a group, groups do not nest, all are closed, and none is too large.
fn groups(log: &Log) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: HashMap<&str, usize> = HashMap::new();
    for call in &log.0 {
        let thread = call.text("thread");
        match &*call.name {
            "ncclGroupStart" if open.insert(thread, 0).is_some() => {
                found.push(format!("a group inside a group: {call:?}"));
            }
            "ncclGroupEnd" if open.remove(thread).is_none_or(|operations| operations > OPERATIONS) => {
                found.push(format!("a group that was not open, or was too large: {call:?}"));
            }
            "ncclSend" | "ncclRecv" => match open.get_mut(thread) {
                Some(operations) => *operations += 1,
                None => found.push(format!("a message outside a group: {call:?}")),
            },
            _ => {}
        }
    }
    if !open.is_empty() {
        found.push(format!("{} groups are left open", open.len()));
    }
    found
}

/// What a rank sends to another, in order, is what that one receives, in order.
fn pairs(log: &Log) -> Vec<String> {
    type Pair = (u64, u64, u64);
    let mut sent: BTreeMap<Pair, Vec<u64>> = BTreeMap::new();
    let mut received: BTreeMap<Pair, Vec<u64>> = BTreeMap::new();
    for call in &log.0 {
        let ends = |call: &Call| (call.number("world"), call.number("rank"), call.number("peer"));
        match &*call.name {
            "ncclSend" => sent.entry(ends(call)).or_default().push(call.number("bytes")),
            "ncclRecv" => {
                let (world, to, from) = ends(call);
                received.entry((world, from, to)).or_default().push(call.number("bytes"));
            }
            _ => {}
        }
    }
    match sent == received {
        true => Vec::new(),
        false => vec!["messages are received in another order than sent".into()],
    }
}

/// A log of a good run, for faults to be planted in.
fn good() -> Log {
    // Messages of several sizes, to be told apart.
    let run = exchange(&["--iters", "2", "--gather-below", "0"], &[]);
    assert!(run.ok, "{}", run.stderr);
    assert_eq!(audit(&run.log), Vec::<String>::new());
    run.log
}

fn call(line: &str) -> Call {
    Log::parse(&format!("t=1 {line}")).0.remove(0)
}

#[test]
fn the_audit_finds_what_is_planted() {
    let log = good();
    let middle = log.0.iter().rposition(|call| call.name == "ncclRecv").unwrap();
    let stream = log.0[middle].text("stream").to_owned();
    let with = |line: String| {
        let mut log = log.clone();
        log.0.insert(middle, call(&line));
        audit(&log)
    };
    for line in [
        "cuCtxSynchronize".to_owned(),
        "default_stream".to_owned(),
        "outside at=0x1 bytes=1".to_owned(),
        "cuMemAlloc device=0 bytes=16".to_owned(),
        "cuMemHostAlloc bytes=16 flags=1".to_owned(),
        "cuStreamCreate stream=0x1 device=0 flags=0 priority=0".to_owned(),
        format!("cuStreamSynchronize stream={stream}"),
        "cuStreamSynchronize stream=0x1".to_owned(),
        "cuEventRecord stream=0x1".to_owned(),
        "ncclGroupStart depth=1".to_owned(),
        "ncclGroupEnd depth=1".to_owned(),
        format!("ncclSend world=1 rank=0 peer=1 bytes=5 stream={stream} depth=1"),
    ] {
        assert!(!with(line.clone()).is_empty(), "{line}");
    }
    // Two messages of a pair the other way round, on one side.
    let mut swapped = log.clone();
    let of_pair: Vec<usize> = (0..swapped.0.len())
        .filter(|&at| {
            let call = &swapped.0[at];
            call.name == "ncclSend" && call.text("rank") == "0" && call.text("peer") == "1"
        })
        .collect();
    let other =
        of_pair.iter().find(|&&at| swapped.0[at].text("bytes") != swapped.0[of_pair[1]].text("bytes"));
    swapped.0.swap(of_pair[1], *other.unwrap());
    assert!(!audit(&swapped).is_empty());
}
