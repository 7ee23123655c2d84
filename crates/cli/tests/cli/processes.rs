//! `eplb rebalance` with ranks that are processes.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use eplb_comm::store::deadlines::after;
use eplb_comm::store::{Deadlines, Store, StoreError, TcpStore};
use eplb_engine::process::GlooTransport;
use serde_json::Value;

use super::support::{eplb, json, names, refused, shipped};

const RUN: [&str; 8] = ["--slots", "72", "--steps", "0:60", "--expert-bytes", "3001", "--window", "20"];

/// Whether Gloo is there; its absence has to be allowed.
fn gloo() -> bool {
    match GlooTransport::find_library() {
        Ok(_) => true,
        Err(error) => {
            let allowed = std::env::var_os("EPLB_TESTS_WITHOUT_GLOO").is_some();
            assert!(allowed, "{error}; EPLB_TESTS_WITHOUT_GLOO=1 leaves out what needs it");
            eprintln!("not run: {error}");
            false
        }
    }
}

/// A port that nobody has, below those that the system gives to whoever asks for any: it is still free when a rank comes to listen there.
fn free_port() -> u16 {
    static DRAWN: AtomicU32 = AtomicU32::new(0);
    let draw =
        |_| 10_000 + ((std::process::id() * 8 + DRAWN.fetch_add(1, Ordering::Relaxed)) % 20_000) as u16;
    (0..20_000).map(draw).find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).unwrap()
}

/// What a run did, without times. The number of waves hangs on time, too: one that was proposed too late is planned again with the rest.
fn done(report: &Value) -> Vec<Vec<Value>> {
    let keys = ["step", "balancedness_before", "balancedness", "bound", "moves", "bytes"];
    let windows = report["windows"].as_array().unwrap();
    windows.iter().map(|window| keys.iter().map(|key| window[*key].clone()).collect()).collect()
}

fn started(args: &[&str], variables: &[(&str, &str)]) -> std::process::Child {
    let trace = shipped();
    Command::new(env!("CARGO_BIN_EXE_eplb"))
        .args(["rebalance", "--trace", trace.to_str().unwrap(), "--json"])
        .args(RUN)
        .args(args)
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn object(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn processes_do_what_threads_do() {
    if !gloo() {
        return;
    }
    let trace = shipped();
    let run = |backend: &str| {
        let common = ["rebalance", "--trace", trace.to_str().unwrap(), "--json", "--ranks", "4"];
        json(&[&common[..], &RUN, &["--backend", backend]].concat())
    };
    let (threads, processes) = (run("local"), run("gloo"));
    assert_eq!(processes["backend"], "gloo");
    assert_eq!((processes["bytes_wrong"].as_u64(), processes["ranks"].as_u64()), (Some(0), Some(4)));
    assert_eq!(done(&threads), done(&processes));
    assert!(done(&threads).iter().any(|window| window[4].as_u64() > Some(0)), "something moved");
}

#[test]
fn processes_that_share_memory_do_what_threads_do() {
    let trace = shipped();
    let run = |backend: &str| {
        let common = ["rebalance", "--trace", trace.to_str().unwrap(), "--json", "--ranks", "4"];
        json(&[&common[..], &RUN, &["--backend", backend]].concat())
    };
    let (threads, processes) = (run("local"), run("peer"));
    assert_eq!(processes["backend"], "peer (host memory)");
    assert_eq!((processes["bytes_wrong"].as_u64(), processes["ranks"].as_u64()), (Some(0), Some(4)));
    assert_eq!(done(&threads), done(&processes));
    assert!(done(&threads).iter().any(|window| window[4].as_u64() > Some(0)), "something moved");
}

#[test]
fn members_change_while_the_trace_is_walked_over_gloo() {
    if gloo() {
        members_change("gloo");
    }
}

#[test]
fn members_change_while_the_trace_is_walked_over_shared_memory() {
    members_change("peer");
}

fn members_change(backend: &str) {
    let trace = shipped();
    let common =
        ["rebalance", "--trace", trace.to_str().unwrap(), "--json", "--ranks", "4", "--backend", backend];
    let run = ["--slots", "96", "--steps", "0:80", "--expert-bytes", "3001", "--window", "20"];
    let changes = ["--leave", "1@20", "--join", "1@40", "--kill", "0@60"];
    let report = json(&[&common[..], &run, &changes].concat());
    assert_eq!((report["bytes_wrong"].as_u64(), report["ranks"].as_u64()), (Some(0), Some(3)));
    assert_eq!(report["windows"].as_array().unwrap().len(), 4);
    let told = report["changes"].as_array().unwrap();
    let of = |at: usize, key: &str| told[at][key].as_u64().unwrap();
    assert_eq!(told.len(), 3);
    assert_eq!([of(0, "ranks"), of(1, "ranks"), of(2, "ranks")], [3, 4, 3]);
    assert!(of(0, "moved_off") > 0 && of(0, "fetched") == 0, "{report}");
    assert!(of(1, "filled") > 0 && of(1, "fetched") == 0, "{report}");
    assert!(of(2, "fetched") > 0 && of(2, "epoch") > of(1, "epoch"), "{report}");
}

#[test]
fn changes_of_members_that_cannot_be_are_refused() {
    let trace = shipped();
    let run = |rest: &[&str]| {
        refused(
            &[&["rebalance", "--trace", trace.to_str().unwrap(), "--ranks", "4"][..], &RUN, rest].concat(),
        )
    };
    names(&run(&["--leave", "1@20"]), &["--leave", "--backend gloo"]);
    names(
        &run(&["--leave", "1@20", "--backend", "auto"]),
        &["--leave", "--backend gloo", "peer", "--processes"],
    );
    names(&run(&["--leave", "x"]), &["NUMBER@STEP"]);
    names(&run(&["--backend", "peer", "--join", "1@70"]), &["steps 0..60"]);
    names(&run(&["--backend", "gloo", "--kill", "4@20"]), &["ranks are 0..4"]);
    // 72 slots: 54 on three ranks, for 64 experts.
    names(&run(&["--backend", "gloo", "--kill", "0@20"]), &["54 slots for 64 experts", "--slots"]);
}

#[test]
fn ranks_join_by_hand_and_under_launchers() {
    if !gloo() {
        return;
    }
    let port = free_port().to_string();
    let store = format!("tcp://127.0.0.1:{port}");
    let by_hand = ["--backend", "gloo", "--rank", "0", "--world-size", "3", "--store", &store];
    let torchrun = [
        ("RANK", "1"),
        ("WORLD_SIZE", "3"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "1"),
        ("EPLB_STORE_PORT", &*port),
    ];
    let vllm = [
        ("VLLM_DP_RANK", "2"),
        ("VLLM_DP_SIZE", "3"),
        ("VLLM_DP_MASTER_IP", "127.0.0.1"),
        ("VLLM_DP_MASTER_PORT", "1"),
        ("EPLB_STORE_PORT", &*port),
    ];
    let ranks = [
        started(&by_hand, &[]),
        started(&["--backend", "gloo"], &torchrun),
        started(&["--backend", "gloo", "--ranks", "3"], &vllm),
    ];
    let outputs = ranks.map(|rank| rank.wait_with_output().unwrap());
    let report = object(&outputs[0]);
    assert_eq!((report["bytes_wrong"].as_u64(), done(&report).len()), (Some(0), 3));
    for (rank, output) in outputs.iter().enumerate().skip(1) {
        let report = object(output);
        assert_eq!(report["rank"].as_u64(), Some(rank as u64));
        assert_eq!((report["bytes_wrong"].as_u64(), report["windows"].as_u64()), (Some(0), Some(3)));
    }
}

#[test]
fn ranks_find_out_what_fits_best_when_they_meet() {
    let auto = |host: [&str; 2]| {
        let store = tempfile::tempdir().unwrap();
        let place = format!("file://{}", store.path().display());
        let ranks = ["0", "1"].map(|rank| {
            let args = ["--backend", "auto", "--rank", rank, "--world-size", "2", "--store", &place];
            started(&args, &[("EPLB_HOST_ID", host[usize::from(rank == "1")])])
        });
        ranks.map(|rank| rank.wait_with_output().unwrap())
    };
    for output in auto(["here", "here"]) {
        names(&String::from_utf8_lossy(&output.stderr), &["backend peer (host memory): taken"]);
        object(&output);
    }
    if !gloo() {
        return;
    }
    // Ranks that say to be on different hosts share nothing.
    for output in auto(["here", "there"]) {
        let words = ["backend peer (host memory): passed over", "here", "there", "backend gloo: taken"];
        names(&String::from_utf8_lossy(&output.stderr), &words);
        object(&output);
    }
}

/// The lines of a run about backends.
fn told(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    said.lines().filter(|line| line.contains("backend ")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn processes_of_two_nodes_mix_backends_and_go_on_when_one_is_killed_in_a_wave_and_one_joins() {
    if !gloo() {
        return;
    }
    let trace = shipped();
    let common = ["rebalance", "--trace", trace.to_str().unwrap(), "--json", "--ranks", "4", "--slots", "96"];
    let run =
        ["--steps", "0:60", "--expert-bytes", "3001", "--window", "20", "--backend", "auto", "--processes"];
    let output = eplb(&[&common[..], &run, &["--nodes", "2", "--kill", "1@20", "--join", "1@40"]].concat());
    let report = object(&output);
    assert_eq!((report["bytes_wrong"].as_u64(), report["ranks"].as_u64()), (Some(0), Some(4)), "{report}");
    assert_eq!(report["changes"][0]["change"], "rank 1 was killed");
    assert!(report["changes"][1]["filled"].as_u64() > Some(0), "the one that joined got experts: {report}");
    assert!(
        report["changes"][0]["fetched"].as_u64() > Some(0),
        "it had the only replica of something: {report}"
    );
    // Of the group that was formed last, since every meeting finds out anew: who joins comes to the last node.
    assert_eq!(report["backend"], "peer (host memory) and gloo");
    names(
        &told(&output),
        &["passed over: it joins ranks 1 2 3 alone: rank 0 is on host node0-", "gloo of version", "taken"],
    );
    // With all of one node there is nothing to mix.
    let output = eplb(&[&common[..], &run, &["--verify", "sampled"]].concat());
    assert_eq!(object(&output)["backend"], "peer (host memory)");
    names(&told(&output), &["peer (host memory): taken"]);
}

/// Whether an error names a rank, alone or among those that did not come.
fn names_rank(error: &str, rank: u32) -> bool {
    let alone = error.contains(&format!("rank {rank}"));
    let list = |rest: &str| {
        let numbers = rest.split(|c: char| !c.is_ascii_digit() && c != ',' && c != ' ').next().unwrap_or("");
        numbers.split(", ").any(|number| number.trim() == rank.to_string())
    };
    alone || error.split("ranks ").skip(1).any(list)
}

#[test]
fn a_bench_of_two_nodes_says_what_each_backend_carried() {
    if !gloo() {
        return;
    }
    let bench = |what: &str, more: &[&str]| {
        let shape = "--layers 2 --experts 18 --redundant 6 --tensors 1000,64,7 --patience 120 --iters 2 --json --backend auto";
        let mut arguments = vec!["bench", what];
        arguments.extend(shape.split(' ').chain(more.iter().copied()));
        json(&arguments)
    };
    let report = bench("exchange", &["--ranks", "4", "--nodes", "2", "--placement", "random"]);
    assert_eq!(report["backend"], "peer (host memory) and gloo", "{report}");
    assert_eq!(report["verified"], true);
    for backend in ["peer (host memory)", "gloo"] {
        assert!(report["carried_bytes"][backend].as_u64() > Some(0), "{backend}: {report}");
    }
    assert_eq!(report["auto"][1]["backend"], "peer (host memory) and gloo");
    let report = bench("exchange", &["--ranks", "2", "--placement", "shift"]);
    assert_eq!((&report["backend"], &report["verified"]), (&"peer (host memory)".into(), &true.into()));
    let report = bench("faults", &["--ranks", "4", "--nodes", "2", "--kill", "1", "--placement", "random"]);
    assert_eq!(report["bytes_wrong"], 0, "{report}");
    for one in report["survivors"].as_array().unwrap() {
        let told = &one["told"];
        assert!(names_rank(told["error"].as_str().unwrap(), 1), "{one}");
        assert_eq!((&told["after"]["verified"], &told["after"]["ranks"]), (&true.into(), &3.into()), "{one}");
        assert_eq!(told["after"]["backend"], "peer (host memory) and gloo", "{one}");
    }
}

#[test]
fn a_rank_that_serves_the_store_takes_it_with_it_when_it_dies() {
    if !gloo() {
        return;
    }
    let place = format!("127.0.0.1:{}", free_port());
    let store = format!("tcp://{place}");
    // Of three one does not come, so that the others wait for it.
    let rank = |rank: &str| {
        started(&["--backend", "gloo", "--rank", rank, "--world-size", "3", "--store", &store], &[])
    };
    let [mut serves, other] = [rank("0"), rank("1")];
    let soon = after(Duration::from_secs(60));
    let seen = TcpStore::connect(&place, None, &Deadlines::DEFAULT, soon).unwrap();
    seen.wait(&["hello/0", "hello/1"], soon).unwrap();
    serves.kill().unwrap();
    serves.wait().unwrap();
    let output = other.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    names(&String::from_utf8_lossy(&output.stderr), &["rank 1, rendezvous", &place, "is lost"]);
    assert!(matches!(seen.get("hello/0", soon), Err(StoreError::Lost { .. })));
}

#[test]
fn ranks_with_other_options_are_told_so() {
    if !gloo() {
        return;
    }
    let store = format!("tcp://127.0.0.1:{}", free_port());
    let rank = |rank: &str, more: &[&str]| {
        let place = ["--backend", "gloo", "--rank", rank, "--world-size", "2", "--store", &store];
        started(&[&place[..], more].concat(), &[])
    };
    let ranks = [rank("0", &[]), rank("1", &["--staging-bytes", "99999"])];
    for (number, rank) in ranks.into_iter().enumerate() {
        let output = rank.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let words = ["staging bytes differs", "99999 on rank 1", &format!("rank {number}, comparing")];
        names(&String::from_utf8_lossy(&output.stderr), &words);
    }
}

#[test]
fn one_rank_is_alone_and_needs_no_gloo() {
    let trace = shipped();
    let common = ["rebalance", "--trace", trace.to_str().unwrap(), "--json"];
    let alone = json(&[&common[..], &RUN, &["--backend", "gloo", "--ranks", "1"]].concat());
    assert_eq!((alone["bytes_wrong"].as_u64(), alone["backend"].as_str()), (Some(0), Some("local")));
}

#[test]
fn contradictions_are_refused() {
    let trace = shipped();
    let run = |rest: &[&str]| {
        refused(&[&["rebalance", "--trace", trace.to_str().unwrap()][..], &RUN, rest].concat())
    };
    names(&run(&["--rank", "0", "--world-size", "2"]), &["--backend gloo"]);
    names(&run(&["--backend", "gloo"]), &["--ranks", "RANK"]);
    names(
        &run(&[
            "--ranks",
            "4",
            "--backend",
            "gloo",
            "--rank",
            "0",
            "--world-size",
            "2",
            "--store",
            "file:///x",
        ]),
        &["--ranks 4", "2"],
    );
    names(&run(&["--backend", "gloo", "--rank", "0"]), &["--world-size"]);
    names(
        &run(&["--backend", "gloo", "--rank", "0", "--world-size", "2", "--store", "http://x"]),
        &["tcp://host:port"],
    );
    let output = eplb(&["rebalance", "--help"]);
    names(&String::from_utf8_lossy(&output.stdout), &["--store-server", "--backend", "VLLM_DP_RANK"]);
}

#[test]
fn the_doctor_tells_what_there_is_and_why() {
    let all = json(&["doctor", "--json"]);
    let found = &all["machine"];
    for key in ["host", "gpus", "libraries", "gloo", "interfaces", "shared_memory", "limits", "advice"] {
        assert!(found.get(key).is_some(), "{key}");
    }
    assert_eq!(found["backends"]["same_process"]["backend"], "local");
    let libraries: Vec<_> =
        found["libraries"].as_array().unwrap().iter().map(|l| l["name"].clone()).collect();
    assert!(libraries.contains(&"libnccl.so.2".into()) && libraries.contains(&"libcuda.so.1".into()));
    let usable = !found["gloo"]["version"].is_null();
    assert_eq!(found["backends"]["other_host"]["backend"].as_str(), usable.then_some("gloo"));
    let text = String::from_utf8(eplb(&["doctor"]).stdout).unwrap();
    names(&text, &["libnccl.so.2", "/dev/shm", "open files", "--backend auto", "different hosts"]);
}
