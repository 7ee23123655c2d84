//! Runs on the fakes: right bytes, no forbidden call, and an end with a name whatever is planted.

use crate::audit::audit;
use crate::gloo::gloo;
use crate::libraries::{Run, eplb, exchange, exchange_over};
use crate::log::{Call, Log};

#[test]
fn every_placement_arrives_and_asks_for_nothing_forbidden() {
    for placement in ["same", "few2", "shift", "random", "plan"] {
        let run = exchange(&["--placement", placement, "--iters", "2"], &[("EPLB_FAKE_DELAY_US", "200")]);
        assert!(run.ok, "{placement}: {}", run.stderr);
        let report = run.json();
        assert_eq!(report["verified"], true);
        assert_eq!(report["moves"] == 0, placement == "same", "{report}");
        assert_eq!(audit(&run.log), Vec::<String>::new(), "{placement}");
    }
}

#[test]
fn rows_with_gaps_and_small_groups_arrive() {
    let run =
        exchange(&["--placement", "random", "--gaps", "24:8", "--operations", "3", "--iters", "2"], &[]);
    assert!(run.ok, "{}", run.stderr);
    assert!(run.log.count("cuMemcpy2DAsync") > 0, "nothing was packed");
    assert_eq!(audit(&run.log), Vec::<String>::new());
    let mut in_group = 0;
    let mut most = 0;
    for call in run.log.0.iter().filter(|call| call.text("rank") == "1" || call.name == "ncclGroupEnd") {
        match &*call.name {
            "ncclSend" | "ncclRecv" => in_group += 1,
            "ncclGroupEnd" => in_group = 0,
            _ => continue,
        }
        most = most.max(in_group);
    }
    // Other ranks' ends of groups come in between and make the count smaller, never larger; 6 open all pairs at first.
    assert!(most <= 6, "{most} operations in a group");
}

/// A folder with what passes for machine code of the kernels.
fn machine_code() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["dispatch", "rows", "checksum"] {
        std::fs::write(folder.path().join(format!("{name}.fatbin")), b"any").unwrap();
    }
    folder
}

#[test]
fn an_expert_is_one_message_for_its_peer() {
    let arguments = ["--placement", "random", "--iters", "2"];
    let folder = machine_code();
    let kernels = [("EPLB_FAKE_KERNELS", "1"), ("EPLB_KERNELS", folder.path().to_str().unwrap())];
    // Messages of a run: sends, less those that opened the pairs.
    let sends = |run: &Run| {
        assert!(run.ok, "{}", run.stderr);
        assert_eq!(audit(&run.log), Vec::<String>::new());
        run.log.count("ncclSend") - 4 * 3
    };
    let (gathered, launched) = (exchange(&arguments, &[]), exchange(&arguments, &kernels));
    let apart = exchange(&[&arguments[..], &["--gather-below", "0"]].concat(), &[]);
    // Three tensors each, by copies, by launches of the kernel, and each by itself.
    assert_eq!(sends(&apart), 3 * sends(&gathered));
    assert_eq!(sends(&launched), sends(&gathered));
    let transfers = gathered.json()["carried_bytes"]["nccl"].as_u64().unwrap() / 1071;
    assert_eq!(sends(&gathered) as u64, transfers);
    assert!(gathered.log.count("cuLaunchKernel") == 0 && launched.log.count("cuLaunchKernel") > 0);
    assert!(launched.log.count("cuMemcpyAsync") < gathered.log.count("cuMemcpyAsync"));
    // A launch that is forgotten is found, whether it packs or commits.
    for at in ["cuLaunchKernel:1", "cuLaunchKernel:5"] {
        let run = exchange(&arguments, &[&kernels[..], &[("EPLB_FAKE_FAULT", at)]].concat());
        assert!(!run.ok && run.stderr.contains("bytes are wrong"), "{at}: {}", run.stderr);
    }
}

#[test]
fn a_thread_of_ours_does_not_launch_where_nccl_takes_one_thread() {
    let variables = [("NCCL_LAUNCH_ORDER_IMPLICIT", "1")];
    let run = exchange(&["--ranks", "2", "--iters", "1"], &variables);
    assert!(!run.ok && run.stderr.contains("NCCL_LAUNCH_ORDER_IMPLICIT"), "{}", run.stderr);
    assert_eq!(run.log.count("ncclSend"), 0);
    // The server's own thread may, and a variable that says no is none.
    let run = exchange(&["--ranks", "2", "--iters", "1", "--beside", "64", "--launch-in-steps"], &variables);
    assert!(run.ok, "{}", run.stderr);
    let run = exchange(&["--ranks", "2", "--iters", "1"], &[("NCCL_LAUNCH_ORDER_IMPLICIT", "0")]);
    assert!(run.ok, "{}", run.stderr);
}

#[test]
fn steps_of_a_length_and_the_library_of_the_process_work() {
    // A busy machine takes long to go round: ranks are steps apart by then, and are measured again if it is too late for one.
    let run = exchange(&["--placement", "shift", "--step-ms", "3", "--margin", "40", "--iters", "2"], &[]);
    assert!(run.ok, "{}", run.stderr);
    let report = run.json();
    assert!(report["steps"].as_u64().unwrap() > 0);
    // No slot can be drained where every rank takes all that its left neighbour has: what a commit copies is in staging.
    let (copied, staged) = (report["commit_bytes_worst"].as_u64(), report["staging_bytes"].as_u64());
    assert!(
        copied > Some(0) && copied <= staged && report["commit_us_least"].as_f64() > Some(0.0),
        "{report}"
    );
    assert!(report["again"] != 0 || report["margin"] == 40, "{report}");
    let small =
        "bench exchange --backend pynccl --layers 1 --experts 8 --redundant 0 --tensors 100 --iters 1 --json";
    let run = eplb(&small.split(' ').collect::<Vec<_>>(), &[]);
    assert!(run.ok, "{}", run.stderr);
    assert!(run.json()["carried_bytes"]["pynccl"].as_u64().unwrap() > 0);
}

#[test]
fn commits_that_are_proposed_too_late_are_measured_again_with_a_larger_margin() {
    for processes in [&[][..], &["--processes"]] {
        // On most runs some rank begins two of these steps before it has heard of the proposal.
        let fast = ["--placement", "shift", "--step-ms", "1", "--margin", "1", "--iters", "2"];
        let folder = tempfile::tempdir().unwrap();
        let path = [("EPLB_FAKE_FOLDER", folder.path().to_str().unwrap())];
        let variables = if processes.is_empty() { &[][..] } else { &path };
        let run = exchange(&[&fast, processes].concat(), variables);
        assert!(run.ok, "{}", run.stderr);
        let report = run.json();
        assert_eq!(
            (&report["verified"], report["ms"].as_array().unwrap().len()),
            (&true.into(), 2),
            "{report}"
        );
        // As often as the margin has grown, fourfold each time.
        let (again, margin) = (report["again"].as_u64().unwrap(), report["margin"].as_u64().unwrap());
        assert_eq!(margin, 4u64.pow(u32::try_from(again).unwrap()), "{report}");
    }
}

#[test]
fn beside_a_server_both_ways_of_launching_work() {
    for mode in [&[][..], &["--launch-in-steps"]] {
        let arguments = [&["--ranks", "2", "--iters", "3", "--beside", "4096"], mode].concat();
        let run = exchange(&arguments, &[]);
        assert!(run.ok, "{}", run.stderr);
        let report = run.json();
        // An exchange that is launched in steps waits for them; another may be over before the server has taken more than its own two.
        let least = if mode.is_empty() { 2 } else { 11 };
        assert!(report["beside_steps"].as_u64() >= Some(least), "{report}");
        if mode.is_empty() {
            continue;
        }
        // Between a rank's messages of a wave and the others', the server's steps are the same.
        assert_eq!(launches(&run.log, "0"), launches(&run.log, "1"));
        // And the comparison sees a launch that comes a step late.
        let mut late = run.log.clone();
        let is = |call: &Call, name: &str| call.name == name && call.text("rank") == "0";
        let message = late.0.iter().rposition(|call| is(call, "ncclSend")).unwrap();
        let call = late.0.remove(message);
        let step = message + late.0[message..].iter().position(|call| is(call, "ncclAllReduce")).unwrap();
        late.0.insert(step + 1, call);
        assert_ne!(launches(&late, "0"), launches(&late, "1"));
    }
}

#[test]
fn a_lent_communicator_is_used_on_its_owners_thread_and_left_as_it_was() {
    let arguments = ["--ranks", "2", "--iters", "3", "--beside", "4096", "--launch-in-steps", "--lent"];
    let run = exchange(&arguments, &[("EPLB_FAKE_ASKED", "1")]);
    assert!(run.ok && run.json()["verified"] == true, "{}", run.stderr);
    assert!(run.json()["carried_bytes"]["pynccl"].as_u64().unwrap() > 0);
    // One communicator for each rank, of the server's; calls on it come from the threads of its all-reduces alone.
    let calls = |name: &str| -> Vec<&Call> { run.log.0.iter().filter(|call| call.name == name).collect() };
    assert_eq!(calls("ncclCommInitRankConfig").len(), 2);
    for rank in ["0", "1"] {
        let of = |name| calls(name).into_iter().filter(move |call| call.text("rank") == rank);
        let server: Vec<_> = of("ncclAllReduce").map(|call| call.text("thread")).collect();
        for name in ["ncclSend", "ncclRecv", "ncclCommGetAsyncError"] {
            assert!(of(name).count() > 0 && of(name).all(|call| call.text("thread") == server[0]), "{name}");
        }
        // The server ends it itself, once.
        assert_eq!(of("ncclCommAbort").map(|call| call.text("thread")).collect::<Vec<_>>(), [server[0]]);
    }
    assert_eq!(launches(&run.log, "0"), launches(&run.log, "1"));
    assert_eq!(run.log.count("ncclCommSplit") + run.log.count("ncclCommFinalize"), 0);
}

#[test]
fn as_many_exchanges_as_fit_are_one_at_least() {
    let run = exchange(&["--ranks", "2", "--iters", "1000000", "--for-seconds", "0"], &[]);
    assert!(run.ok && run.json()["verified"] == true, "{}", run.stderr);
    assert_eq!(run.json()["iters"], 1);
}

/// Number of the server's all-reduces of a rank before each of its messages to the other, sends and receives together.
fn launches(log: &Log, rank: &str) -> Vec<usize> {
    let mut steps = 0;
    let mut launches = Vec::new();
    for call in log.0.iter().filter(|call| call.text("rank") == rank) {
        match &*call.name {
            "ncclAllReduce" => steps += 1,
            "ncclSend" | "ncclRecv" => launches.push(steps),
            _ => {}
        }
    }
    launches.dedup();
    launches
}

#[test]
fn commits_are_one_launch_each_where_there_is_a_kernel() {
    let folder = machine_code();
    let variables = [("EPLB_FAKE_KERNELS", "1"), ("EPLB_KERNELS", folder.path().to_str().unwrap())];
    // Rows with gaps on the way from staging to slots, too.
    let arguments = ["--placement", "shift", "--gaps", "24:8", "--ranks", "2", "--iters", "2"];
    let run = exchange(&arguments, &variables);
    assert!(run.ok, "{}", run.stderr);
    let (report, launches) = (run.json(), run.log.count("cuLaunchKernel"));
    assert!(report["verified"] == true && report["staged"].as_u64().unwrap() > 0, "{report}");
    assert!(launches > 0);
    assert_eq!(audit(&run.log), Vec::<String>::new());
    // A launch that is forgotten is found, and without machine code, or unasked, there is none.
    let forgotten = [&variables[..], &[("EPLB_FAKE_FAULT", "cuLaunchKernel:2")]].concat();
    let run = exchange(&arguments, &forgotten);
    assert!(!run.ok && run.stderr.contains("bytes are wrong"), "{}", run.stderr);
    for (more, variables) in [(&[][..], &[][..]), (&["--commit", "copies"], &variables[..])] {
        let run = exchange(&[&arguments[..], more].concat(), variables);
        assert!(run.ok && run.log.count("cuLaunchKernel") == 0, "{more:?}: {}", run.stderr);
    }
}

#[test]
fn slots_are_emptied_and_filled_and_checksums_are_those_of_the_twin() {
    let folder = machine_code();
    let variables = [("EPLB_FAKE_KERNELS", "1"), ("EPLB_KERNELS", folder.path().to_str().unwrap())];
    for backend in ["nccl", "peer"] {
        let arguments = ["--placement", "holes", "--gaps", "24:8", "--checksums", "--iters", "4"];
        let run = exchange_over(backend, &arguments, &variables);
        assert!(run.ok, "{}", run.stderr);
        let report = run.json();
        assert!(report["verified"] == true && report["checksums"] == true, "{report}");
        let is_sum = |call: &&Call| call.text("kernel") == "eplb_checksum_parts";
        assert!(run.log.0.iter().filter(is_sum).count() > 10);
        // One that is not computed is not right.
        let forgotten = [&variables[..], &[("EPLB_FAKE_FAULT", "eplb_checksum_parts:3")]].concat();
        let run = exchange_over(backend, &arguments, &forgotten);
        assert!(!run.ok && run.stderr.contains("bytes are wrong"), "{}", run.stderr);
    }
}

#[test]
fn options_of_communicators_reach_nccl() {
    let options = "--min-ctas 4 --max-ctas 12 --cga-cluster-size 2 --net-name Socket --traffic-class 3";
    let run = exchange(&[&["--ranks", "2"], &options.split(' ').collect::<Vec<_>>()[..]].concat(), &[]);
    assert!(run.ok, "{}", run.stderr);
    let made: Vec<&Call> = run.log.0.iter().filter(|call| call.name == "ncclCommInitRankConfig").collect();
    let expected = ["4", "12", "2", "Socket", "3", "eplb"];
    for call in &made {
        assert_eq!(
            ["min_ctas", "max_ctas", "cga", "net", "traffic", "name"].map(|key| call.text(key)),
            expected
        );
    }
    assert_eq!(made.len(), 2);
    // Unsaid, four ranks get channels enough for a message; two have them anyway.
    for (ranks, expected) in [("4", "64"), ("2", "-2147483648")] {
        let run = exchange(&["--ranks", ranks], &[]);
        let made = run.log.0.iter().find(|call| call.name == "ncclCommInitRankConfig").unwrap();
        assert_eq!(made.text("min_ctas"), expected, "{ranks} ranks");
    }
}

#[test]
fn plain_sends_are_measured_where_asked_for() {
    let run = exchange(&["--placement", "random", "--sends"], &[]);
    assert!(run.ok && run.json()["sends_gbps"].as_f64().unwrap() > 0.0, "{}", run.stderr);
    let run = exchange(&["--placement", "random"], &[]);
    assert!(run.ok && run.json()["sends_gbps"].is_null(), "{}", run.stderr);
}

#[test]
fn a_single_rank_makes_no_communicator() {
    let run = exchange(&["--ranks", "1"], &[]);
    assert!(run.ok, "{}", run.stderr);
    for name in ["ncclCommInitRankConfig", "ncclGetUniqueId", "ncclGroupStart"] {
        assert_eq!(run.log.count(name), 0, "{name}");
    }
    // And several do, so that the count means something.
    assert_eq!(exchange(&["--ranks", "2"], &[]).log.count("ncclCommInitRankConfig"), 2);
}

#[test]
fn the_suite_of_communicators_passes() {
    for more in [&[][..], &["--peer"], &["--gloo"]] {
        if more == ["--gloo"] && !gloo() {
            continue;
        }
        let arguments = [&["doctor", "--suite", "3", "--json"], more].concat();
        let run = eplb(&arguments, &[("EPLB_FAKE_DELAY_US", "100")]);
        assert!(run.ok, "{}{}", run.stdout, run.stderr);
        let report = run.json();
        let checks = report["checks"].as_array().unwrap();
        assert!(checks.len() >= 14 && checks.iter().all(|check| check["ok"] == true), "{report}");
        assert_eq!(run.log.count("cuCtxSynchronize") + run.log.count("default_stream"), 0);
    }
}

#[test]
fn a_forgotten_copy_is_found() {
    for backend in ["nccl", "peer"] {
        let run =
            exchange_over(backend, &["--placement", "random"], &[("EPLB_FAKE_FAULT", "cuMemcpyAsync:3")]);
        assert!(!run.ok);
        assert_eq!(run.log.count("planted"), 1);
        assert!(run.stderr.contains("bytes are wrong"), "{}", run.stderr);
    }
}

/// Ends by itself with an error that names what was planted.
fn fails(fault: &str, words: &[&str]) {
    let run = exchange(&["--placement", "random", "--patience", "24"], &[("EPLB_FAKE_FAULT", fault)]);
    assert!(!run.ok, "{fault}");
    assert_eq!(run.log.count("planted"), 1, "{fault}");
    assert!(words.iter().all(|word| run.stderr.contains(word)), "{fault}: {}", run.stderr);
}

#[test]
fn whatever_is_planted_ends_with_a_name() {
    let planted: [(&str, &[&str]); 5] = [
        ("ncclSend:30", &["rank", "wave"]),
        ("ncclRecv:30", &["rank", "wave"]),
        ("cuEventQuery:1", &["cuEventQuery", "719", "broke this context"]),
        ("ncclCommInitRankConfig:2", &["ncclCommInitRankConfig", "rank", "--shm-size"]),
        ("cuMemAlloc:5", &["cuMemAlloc", "OUT_OF_MEMORY", "lower the staging budget"]),
    ];
    // At once: each of them waits out a patience.
    std::thread::scope(|scope| {
        for (fault, words) in planted {
            scope.spawn(move || fails(fault, words));
        }
    });
}

#[test]
fn what_is_missing_is_named() {
    let run = exchange(&[], &[("EPLB_FAKE_NCCL_VERSION", "21700")]);
    assert!(!run.ok && run.stderr.contains("NCCL 2.17.0; 2.18 or later"), "{}", run.stderr);
    let run = exchange(&[], &[("EPLB_FAKE_DEVICES", "2")]);
    assert!(!run.ok && run.stderr.contains("this process sees 2"), "{}", run.stderr);
    let run = exchange(&[], &[("EPLB_NCCL_SO", "/nonexistent/libnccl.so")]);
    assert!(!run.ok && run.stderr.contains("EPLB_NCCL_SO=/nonexistent/libnccl.so"), "{}", run.stderr);
}
