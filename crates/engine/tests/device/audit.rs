//! What an engine may not do to a server while that serves, by the calls that the fake recorded.

use std::collections::{BTreeMap, BTreeSet};

use crate::log::{Call, Log};
use crate::outer::serve;

/// Calls that take or give back something, or wait. Events are none of them: they are kept, and a new one is made when all are in use.
const NEVER: [&str; 15] = [
    "cuCtxSynchronize",
    "cuStreamSynchronize",
    "cuMemAlloc",
    "cuMemFree",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemCreate",
    "cuMemRelease",
    "cuMemMap",
    "cuMemUnmap",
    "cuModuleLoadData",
    "cuStreamCreate",
    "cuStreamDestroy",
    "cuLaunchHostFunc",
    "cuDevicePrimaryCtxRetain",
];
/// Calls that are never right.
const WRONG: [&str; 4] = ["default_stream", "outside", "nccl_mismatch", "nccl_error"];

/// Calls by which communicators are made again after a failure, which is when they may be.
const REBUILDING: [&str; 2] = ["cuStreamCreate", "cuStreamDestroy"];

/// What is taken and given back, by the end of the process.
const PAIRS: [(&str, &str); 4] = [
    ("cuMemAlloc", "cuMemFree"),
    ("cuMemHostAlloc", "cuMemFreeHost"),
    ("cuStreamCreate", "cuStreamDestroy"),
    ("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease"),
];

/// The first things in a log that must not be there. `rebuilding`: some waves failed, or came too late for their step.
pub(crate) fn audit(log: &Log, rebuilding: bool) -> Vec<String> {
    let mut found = all(log, rebuilding);
    found.truncate(5);
    found
}

fn all(log: &Log, rebuilding: bool) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for name in WRONG {
        if log.count(name) > 0 {
            found.push(format!("{name}: {} times", log.count(name)));
        }
    }
    let Some((first, last)) = log.first("serving").zip(log.first("over")) else {
        found.push("no rank has served".into());
        return found;
    };
    // From the first pass of the last rank to come to the last pass of the first rank to leave.
    let first = log.0.iter().rposition(|call| call.name == "serving").unwrap_or(first);
    let served = &log.0[first..last.max(first)];
    let is_allowed = |call: &Call| rebuilding && REBUILDING.contains(&&*call.name);
    for call in served.iter().filter(|call| NEVER.contains(&&*call.name) && !is_allowed(call)) {
        found.push(format!("while serving: {call:?}"));
    }
    for (take, give) in PAIRS {
        let (taken, given) = (log.count(take), log.count(give));
        if taken != given {
            found.push(format!("{taken} of {take}, {given} of {give}"));
        }
    }
    found.extend(ranges(log));
    for rank in log.0.iter().filter(|call| call.name == "rank") {
        found.extend(of_rank(served, rank));
    }
    found
}

/// Ranges for profilers: all that begin end, those of a thread on that thread.
fn ranges(log: &Log) -> Vec<String> {
    let mut found = Vec::new();
    let mut depths: BTreeMap<&str, usize> = BTreeMap::new();
    let mut open = BTreeSet::new();
    for call in &log.0 {
        let depth = depths.entry(call.text("thread")).or_default();
        match &*call.name {
            "nvtxRangePush" => *depth += 1,
            "nvtxRangePop" if *depth == 0 => found.push(format!("a range ends that did not begin: {call:?}")),
            "nvtxRangePop" => *depth -= 1,
            "nvtxRangeStart" => drop(open.insert(call.text("id"))),
            "nvtxRangeEnd" if !open.remove(call.text("id")) => found.push(format!("it has ended: {call:?}")),
            _ => {}
        }
    }
    if !open.is_empty() || depths.values().any(|&depth| depth > 0) {
        found.push(format!("ranges that do not end: {open:?}, {depths:?}"));
    }
    if !log.0.iter().any(|call| call.name == "nvtxRangeStart" && call.text("name") == "eplb") {
        found.push("no round was shown".into());
    }
    found
}

/// What one rank's own thread, which serves passes, enqueued for the engine, and whatever any thread enqueued on its streams: writes only on the first of
/// them, behind the second, which waits for it in turn.
fn of_rank(served: &[Call], rank: &Call) -> Vec<String> {
    let (thread, lead, other) = (rank.text("thread"), rank.text("lead"), rank.text("other"));
    let mut found = Vec::new();
    // What the thread did on the streams since the lead was last put behind the other one.
    let (mut recorded, mut behind, mut written) = (BTreeMap::new(), false, false);
    let of_rank = |call: &Call| call.text("thread") == thread || [lead, other].contains(&call.text("stream"));
    for (at, call) in served.iter().enumerate().filter(|(_, call)| of_rank(call)) {
        let stream = call.text("stream");
        let is_write = call.text("kernel") == "eplb_commit"
            || matches!(&*call.name, "cuMemcpyAsync" | "cuMemcpy2DAsync");
        match &*call.name {
            "cuEventRecord" => {
                recorded.insert(stream, at);
            }
            "cuStreamWaitEvent" if stream == lead => behind |= recorded.contains_key(other),
            "cuStreamWaitEvent" if stream == other => {
                if written && !recorded.contains_key(lead) {
                    found.push(format!("the second stream waits for nothing of the first: {call:?}"));
                }
                (behind, written) = (false, false);
                recorded.clear();
            }
            _ if is_write && stream != lead => found.push(format!("not on the first stream: {call:?}")),
            _ if is_write => {
                if !behind {
                    found.push(format!("ahead of passes on the second stream: {call:?}"));
                }
                written = true;
            }
            // Passes of the server: whatever they enqueue on the second stream must be behind what was written.
            "cuLaunchKernel" | "cuMemcpyDtoHAsync" if written && stream == other => {
                found.push(format!("a pass runs ahead of a commit: {call:?}"));
                written = false;
            }
            _ => {}
        }
    }
    found
}

fn call(line: &str) -> Call {
    Log::parse(line).0.remove(0)
}

#[test]
fn the_audit_finds_what_is_planted() {
    // One in which no communicator was made again.
    let mut runs = (0..20).map(|_| serve("slots=64 rounds=3", 0, None));
    let log = runs.find(|run| run.late == 0).expect("every run had a round that came too late").log;
    assert_eq!(audit(&log, false), Vec::<String>::new());
    let commit = log.0.iter().position(|call| call.text("kernel") == "eplb_commit").unwrap();
    let with = |line: &str| {
        let mut log = log.clone();
        log.0.insert(commit, call(line));
        audit(&log, false)
    };
    for name in NEVER.into_iter().chain(WRONG) {
        assert!(!with(&format!("t=1 {name} device=0 bytes=1 stream=0x1")).is_empty(), "{name}");
    }
    let thread = log.0[commit].text("thread").to_owned();
    let rank = log.0.iter().find(|call| call.name == "rank" && call.text("thread") == thread).unwrap();
    let (lead, other) = (rank.text("lead").to_owned(), rank.text("other").to_owned());
    // A commit on the wrong stream, and a pass between a commit and the wait for it.
    assert!(
        !with(&format!("t={thread} cuLaunchKernel kernel=eplb_commit stream={other} blocks=1")).is_empty()
    );
    let mut early = log.clone();
    early.0.insert(
        commit + 1,
        call(&format!("t={thread} cuLaunchKernel kernel=serve_sums stream={other} blocks=1")),
    );
    assert!(!audit(&early, false).is_empty());
    // A range that does not end, and one that ends twice.
    for name in ["nvtxRangePop", "nvtxRangeEnd"] {
        let at = log.0.iter().position(|call| call.name == name).unwrap();
        let (mut fewer, mut more) = (log.clone(), log.clone());
        fewer.0.remove(at);
        more.0.insert(at, log.0[at].clone());
        assert!(!audit(&fewer, false).is_empty() && !audit(&more, false).is_empty(), "{name}");
    }
    // Waits that are left out, of either stream.
    for stream in [&lead, &other] {
        let mut fewer = log.clone();
        fewer.0.retain(|call| {
            !(call.name == "cuStreamWaitEvent"
                && call.text("stream") == stream
                && call.text("thread") == thread)
        });
        assert!(!audit(&fewer, false).is_empty(), "{stream}");
    }
    let names: BTreeSet<&str> = log.0.iter().map(|call| &*call.name).collect();
    assert!(names.contains("cuThreadExchangeStreamCaptureMode"), "{names:?}");
}
