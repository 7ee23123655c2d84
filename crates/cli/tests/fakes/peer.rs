//! The `peer` backend on the fakes: right bytes by copies alone, and nothing forbidden.

use crate::audit::audit;
use crate::libraries::{Run, exchange_over};
use crate::log::{Call, Log};

#[test]
fn every_placement_arrives_by_copies_alone() {
    for placement in ["same", "few2", "shift", "random", "plan"] {
        let run = exchange_over(
            "peer",
            &["--placement", placement, "--iters", "2"],
            &[("EPLB_FAKE_DELAY_US", "200")],
        );
        assert!(run.ok, "{placement}: {}", run.stderr);
        let report = run.json();
        assert_eq!((&report["verified"], &report["backend"]), (&true.into(), &"peer".into()));
        assert_eq!(report["carried_bytes"]["peer"].as_u64().unwrap() == 0, placement == "same", "{report}");
        assert_eq!(audit(&run.log), Vec::<String>::new(), "{placement}");
        for call in ["ncclGroupStart", "ncclCommInitRankConfig", "cuLaunchKernel", "cuLaunchHostFunc"] {
            assert_eq!(run.log.count(call), 0, "{placement}: {call}");
        }
        assert!(placement == "same" || run.log.count("cuMemcpyAsync") > 0);
        assert_eq!(
            run.log.count("cuMemcpyBatchAsync") == 0,
            placement == "same",
            "an expert's tensors go together"
        );
    }
}

#[test]
fn a_driver_that_makes_no_batches_makes_copies() {
    // The first is refused, and no other is tried.
    let run =
        exchange_over("peer", &["--placement", "random"], &[("EPLB_FAKE_FAULT", "cuMemcpyBatchAsync:1")]);
    assert!(run.ok && run.json()["verified"] == true, "{}", run.stderr);
    assert!((1..=4).contains(&run.log.count("cuMemcpyBatchAsync")), "once, or by each rank at the same time");
    // In the other run every batch is told as its copies, too.
    let batched = exchange_over("peer", &["--placement", "random"], &[]);
    assert_eq!(batched.json()["carried_bytes"], run.json()["carried_bytes"]);
    assert!(batched.log.count("cuMemcpyBatchAsync") > 4);
}

/// Copies between devices of an exchange bench, until so many bytes are carried: what comes after are plain ones, to compare with.
fn pulls(log: &Log, bytes: u64) -> Vec<&Call> {
    let end = |call: &Call, of: &str| call.text(of).parse().unwrap_or(-1);
    let between =
        |call: &&Call| end(call, "from") >= 0 && end(call, "to") >= 0 && call.text("from") != call.text("to");
    let mut left = bytes;
    let copies = log.0.iter().filter(|call| call.name == "cuMemcpyAsync").filter(between);
    copies
        .take_while(|call| left.checked_sub(call.number("bytes")).map(|rest| left = rest).is_some())
        .collect()
}

/// Pulls that are on a stream of another device than the one they read from.
fn not_by_the_source<'a>(log: &Log, pulls: &[&'a Call]) -> Vec<&'a Call> {
    let of = |call: &&Call| {
        log.0.iter().find(|made| made.name == "cuStreamCreate" && made.text("stream") == call.text("stream"))
    };
    let device = |call: &&Call| of(call).map(|made| made.text("device").to_owned());
    pulls.iter().copied().filter(|call| device(call).as_deref() != Some(call.text("from"))).collect()
}

/// Which device carries a pull decides in which order pulls are best enqueued, and how fast they are.
#[test]
fn of_ranks_that_are_threads_the_sources_carry_every_byte() {
    let run = exchange_over("peer", &["--placement", "random", "--iters", "1"], &[]);
    assert!(run.ok, "{}", run.stderr);
    let carried = run.json()["carried_bytes"]["peer"].as_u64().unwrap();
    let found = pulls(&run.log, carried);
    assert_eq!(found.iter().map(|call| call.number("bytes")).sum::<u64>(), carried);
    assert_eq!(not_by_the_source(&run.log, &found), Vec::<&Call>::new());
    // One that a reader's own device carries.
    let mut planted = run.log.clone();
    let (at, reader) = {
        let at = planted.0.iter().position(|call| call == found[found.len() / 2]).unwrap();
        (at, planted.0[at].text("to").to_owned())
    };
    let streams =
        planted.0.iter().find(|call| call.name == "cuStreamCreate" && call.text("device") == reader);
    let stream = streams.unwrap().text("stream").to_owned();
    planted.0[at].fields.insert("stream".into(), stream);
    let found = pulls(&planted, carried);
    assert!(!not_by_the_source(&planted, &found).is_empty());
}

/// A folder with what passes for machine code of the cooperative kernel, and the variables that make the fakes take it.
fn cooperative(folder: &tempfile::TempDir) -> [(&'static str, &str); 2] {
    std::fs::write(folder.path().join("crowd.fatbin"), b"any").unwrap();
    [("EPLB_FAKE_KERNELS", "1"), ("EPLB_KERNELS", folder.path().to_str().unwrap())]
}

#[test]
fn cooperative_kernels_and_all_reduces_run_beside_many_exchanges() {
    let folder = tempfile::tempdir().unwrap();
    let variables = cooperative(&folder);
    let beside = ["--ranks", "2", "--iters", "12", "--warmup", "1", "--beside", "4096", "--crowd"];
    let arguments = [&beside[..], &["--check-every", "3", "--commit", "copies"]].concat();
    let run = exchange_over("peer", &arguments, &variables);
    assert!(run.ok, "{}", run.stderr);
    let report = run.json();
    // The first and the last of 13, and each third.
    assert_eq!(
        (&report["verified"], &report["iters"], &report["checks"]),
        (&true.into(), &12.into(), &6.into())
    );
    assert!(
        report["beside_steps"].as_u64() >= Some(2) && report["crowd_launches"].as_u64() > Some(0),
        "{report}"
    );
    assert_eq!(report["crowd_blocks"], 264, "two on each of 132 multiprocessors");
    let launches = run.log.0.iter().filter(|call| call.name == "cuLaunchCooperativeKernel");
    let of = |name| launches.clone().map(|call| call.text(name)).collect::<std::collections::BTreeSet<_>>();
    assert_eq!((of("kernel"), of("threads")), (["eplb_crowd_rounds"].into(), ["1024"].into()));
    assert_eq!(of("stream").len(), 2, "a stream on each device");
    // One that is refused has a name, and so have ranks on which it cannot run.
    let refused = [&variables[..], &[("EPLB_FAKE_FAULT", "cuLaunchCooperativeKernel:2")]].concat();
    let run = exchange_over("peer", &arguments, &refused);
    assert!(!run.ok && run.stderr.contains("cuLaunchCooperativeKernel"), "{}", run.stderr);
    let run = exchange_over("local", &["--ranks", "2", "--crowd"], &[]);
    assert!(!run.ok && run.stderr.contains("on devices"), "{}", run.stderr);
}

/// Runs a small bench with a process for each of 4 ranks.
fn processes(more: &[&str], variables: &[(&str, &str)]) -> Run {
    exchange_over("peer", &[&["--processes"], more].concat(), variables)
}

/// What a run of processes must not do, beside what [`audit`] finds: leave anything open, open anything twice, or let one process's stream
/// wait for another.
fn open_and_closed(log: &Log) -> Vec<String> {
    let mut found = Vec::new();
    let pairs = [
        ("cuIpcOpenMemHandle", "cuIpcCloseMemHandle"),
        ("cuMemAddressReserve", "cuMemAddressFree"),
        ("cuMemMap", "cuMemUnmap"),
        ("cuMemRetainAllocationHandle", "cuMemExportToShareableHandle"),
    ];
    for (open, close) in pairs {
        // Ranges of several chunks are closed at once; here each has one, but for those that lie behind each other.
        let bytes = |name: &str| -> u64 {
            let calls = log.0.iter().filter(|call| call.name == name);
            calls.map(|call| call.text("bytes").parse().unwrap_or(1)).sum()
        };
        if bytes(open) != bytes(close) {
            found.push(format!("{} of {open}, {} of {close}", bytes(open), bytes(close)));
        }
    }
    for name in ["cuIpcGetEventHandle", "cuStreamWaitValue", "cuLaunchHostFunc"] {
        if log.count(name) > 0 {
            found.push(format!("{name}: {} times", log.count(name)));
        }
    }
    found
}

#[test]
fn processes_open_each_allocation_once_and_close_it() {
    for handles in ["legacy", "descriptor"] {
        let delay = [("EPLB_FAKE_DELAY_US", "100")];
        let run = processes(&["--handles", handles, "--placement", "random", "--iters", "2"], &delay);
        assert!(run.ok, "{handles}: {}", run.stderr);
        let report = run.json();
        assert_eq!((&report["verified"], &report["backend"]), (&true.into(), &"peer".into()), "{report}");
        assert!(report["carried_bytes"]["peer"].as_u64() > Some(0) && report["link_gbps"].is_number());
        assert_eq!(audit(&run.log), Vec::<String>::new(), "{handles}");
        assert_eq!(open_and_closed(&run.log), Vec::<String>::new(), "{handles}");
        // Each of 4 ranks opens, of each of 3 others, 2 layers of 3 tensors and the mark by which the path is tried out.
        let opened = ["cuIpcOpenMemHandle", "cuMemImportFromShareableHandle"].map(|name| run.log.count(name));
        assert_eq!(opened, if handles == "legacy" { [84, 0] } else { [0, 84] });
        for (name, line) in [
            ("cuIpcCloseMemHandle", "cuIpcOpenMemHandle device=0"),
            ("cuMemUnmap", "cuMemMap bytes=65536"),
            ("", "cuIpcGetEventHandle"),
            ("", "cuStreamWaitValue"),
        ] {
            let mut planted = run.log.clone();
            match planted.first(name) {
                Some(at) => drop(planted.0.remove(at)),
                None => planted.0.extend(Log::parse(&format!("t=1 {line}")).0),
            }
            assert!(!open_and_closed(&planted).is_empty(), "{name}, {line}");
        }
    }
}

#[test]
fn what_processes_cannot_open_is_named_by_all() {
    let refused = |more: &[&str], variables: &[(&str, &str)], words: &[&str]| {
        let run = processes(more, variables);
        assert!(!run.ok);
        for rank in 0..4 {
            let said = run.stderr.lines().find(|line| line.contains(&format!("rank {rank}: ")));
            let said = said.unwrap_or_else(|| panic!("rank {rank} said nothing: {}", run.stderr));
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
        }
        run
    };
    refused(
        &[],
        &[("EPLB_FAKE_IPC", "1")],
        &["cannot open the memory of", "cuIpcOpenMemHandle", "--ipc=host"],
    );
    let descriptors = ["--handles", "descriptor"];
    refused(&descriptors, &[("EPLB_FAKE_IPC", "1")], &["descriptor handles", "--ipc=host"]);
    refused(&[], &[("EPLB_FAKE_UNSHARED", "1")], &["cannot be opened by other processes", "pool"]);
    refused(&["--handles", "fabric"], &[], &["cuMemCreate", "no such handles"]);
    refused(
        &[],
        &[("EPLB_FAKE_FAULT", "cuIpcOpenMemHandle:3")],
        &["cannot open the memory of", "cuIpcOpenMemHandle"],
    );
    // What an owner says of its memory is held against what was opened.
    refused(
        &[],
        &[("EPLB_FAKE_FAULT", "cuMemGetAddressRange:1")],
        &["cannot open the memory of", "bytes were said to lie behind"],
    );
    // The path is tried out: a copy that brings nothing is found before the first wave.
    let run = refused(&[], &[("EPLB_FAKE_FAULT", "cuMemcpyAsync:1")], &["brought other bytes than it has"]);
    // Once in each process; one that is held up hears that another has failed, and tries nothing any more.
    assert!((1..=4).contains(&run.log.count("planted")));
}
