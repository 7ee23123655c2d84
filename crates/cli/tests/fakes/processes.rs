//! Ranks that are processes on the fakes, whose messages are files then: right bytes, and a rank that is killed in the middle.

use serde_json::Value;

use crate::libraries::{Run, eplb, names_rank};

const SMALL: &str =
    "--layers 2 --experts 18 --redundant 6 --tensors 1000,64,7 --patience 40 --iters 2 --json";

fn bench(what: &str, more: &[&str], variables: &[(&str, &str)]) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let variables = [variables, &[("EPLB_FAKE_FOLDER", path)]].concat();
    let mut arguments = vec!["bench", what];
    arguments.extend(SMALL.split(' ').chain(more.iter().copied()));
    eplb(&arguments, &variables)
}

#[test]
fn ranks_that_are_processes_exchange_as_threads_do() {
    for (backend, placement) in [("nccl", "random"), ("pynccl", "shift")] {
        let run = bench(
            "exchange",
            &["--processes", "--ranks", "3", "--backend", backend, "--placement", placement],
            &[],
        );
        assert!(run.ok, "{}", run.stderr);
        let report = run.json();
        assert_eq!((&report["verified"], &report["processes"]), (&true.into(), &true.into()));
        assert!(report["carried_bytes"][backend].as_u64().unwrap() > 0, "{report}");
        // Plain sends between the same pairs are measured too, over communicators of their own.
        assert!(report["link_gbps"].as_f64().unwrap() > 0.0, "{report}");
        assert_eq!(run.log.count("ncclCommInitRankConfig"), 3 + 3);
        let threads =
            bench("exchange", &["--ranks", "3", "--backend", "nccl", "--placement", placement], &[]);
        assert_eq!(threads.json()["bytes_worst_rank"], report["bytes_worst_rank"]);
    }
}

#[test]
fn a_copy_that_one_process_forgets_is_found() {
    // Each process counts its own calls; all forget the same one.
    let run = bench(
        "exchange",
        &["--processes", "--ranks", "3", "--backend", "nccl"],
        &[("EPLB_FAKE_FAULT", "cuMemcpyAsync:3")],
    );
    assert!(!run.ok && run.log.count("planted") > 0);
    assert!(run.stderr.contains("bytes are wrong"), "{}", run.stderr);
}

#[test]
fn what_processes_cannot_do_is_refused() {
    let refused = |more: &[&str], word: &str| {
        let run = bench("exchange", more, &[]);
        assert!(!run.ok && run.stderr.contains(word), "{more:?}: {}", run.stderr);
    };
    refused(&["--processes", "--backend", "local"], "nccl, pynccl, peer, auto, or gloo on devices");
    refused(&["--processes", "--backend", "nccl", "--ranks", "2", "--beside", "64"], "threads");
    let run = bench("faults", &["--backend", "nccl", "--ranks", "2"], &[]);
    assert!(!run.ok && run.stderr.contains("at least 3"), "{}", run.stderr);
}

#[test]
fn ranks_of_different_versions_are_told_so_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("file://{}", folder.path().join("store").display());
    let messages = folder.path().join("messages");
    std::fs::create_dir(&messages).unwrap();
    std::fs::create_dir(folder.path().join("store")).unwrap();
    let start = |rank: &'static str, version: &'static str| {
        let (store, messages) = (store.clone(), messages.to_str().unwrap().to_owned());
        std::thread::spawn(move || {
            let mut arguments =
                vec!["bench", "exchange", "--backend", "nccl", "--ranks", "2", "--rank", rank];
            arguments.extend(["--store", &store]);
            arguments.extend(SMALL.split(' '));
            eplb(&arguments, &[("EPLB_FAKE_FOLDER", &messages), ("EPLB_FAKE_NCCL_VERSION", version)])
        })
    };
    let runs = [start("0", "22809"), start("1", "22105")].map(|thread| thread.join().unwrap());
    for (run, theirs) in runs.iter().zip(["rank 1 runs NCCL 2.21.5", "rank 0 runs NCCL 2.28.9"]) {
        assert!(!run.ok && run.stderr.contains(theirs), "{}", run.stderr);
        assert!(run.stderr.contains("EPLB_NCCL_SO"), "{}", run.stderr);
        assert_eq!(run.log.count("ncclCommInitRankConfig"), 0);
    }
}

#[test]
fn ranks_that_are_left_hear_of_a_death_and_go_on_without_it() {
    let run = bench(
        "faults",
        &["--backend", "nccl", "--ranks", "4", "--kill", "2", "--after-ms", "30"],
        &[("EPLB_FAKE_DELAY_US", "3000")],
    );
    assert!(run.ok, "{}", run.stderr);
    let report = run.json();
    assert_eq!((&report["killed"], &report["bytes_wrong"]), (&2.into(), &0.into()));
    let survivors = report["survivors"].as_array().unwrap();
    assert_eq!(survivors.iter().map(|one| one["rank"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 3]);
    for one in survivors {
        let told: &Value = &one["told"];
        // Who died, and not who merely suffered from it.
        assert!(names_rank(told["error"].as_str().unwrap(), 2), "{one}");
        let after = &told["after"];
        assert_eq!((&after["verified"], &after["ranks"]), (&true.into(), &3.into()));
        assert!(after["carried_bytes"]["nccl"].as_u64().unwrap() > 0, "{one}");
    }
    // Four communicators, then three, and three more for plain sends.
    assert_eq!(run.log.count("ncclCommInitRankConfig"), 10);
    assert_eq!(run.log.count("ncclCommAbort"), 9);
}
