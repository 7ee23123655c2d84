//! `auto` on the fakes: what is taken where the path between devices works, where containers forbid it, where NCCL is missing, and between nodes.

use crate::audit::audit;
use crate::gloo::gloo;
use crate::libraries::{Run, eplb, names_rank};
use crate::log::Log;

/// Four ranks that are processes.
pub(crate) fn bench(what: &str, more: &[&str], variables: &[(&str, &str)]) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let variables = [variables, &[("EPLB_FAKE_FOLDER", path)]].concat();
    let shape = "--backend auto --ranks 4 --layers 2 --experts 18 --redundant 6 --tensors 1000,64,7 --placement random --patience 120 --iters 2";
    let mut arguments = vec!["bench", what];
    arguments.extend(shape.split(' ').chain(more.iter().copied()).chain(["--json"]));
    eplb(&arguments, &variables)
}

/// What was taken, and what each backend carried; the reasons of all that were passed over.
pub(crate) fn taken(run: &Run) -> (String, Vec<(String, u64)>, String) {
    assert!(run.ok, "{}", run.stderr);
    let report = run.json();
    assert_eq!(report["verified"], true, "{report}");
    let carried = report["carried_bytes"].as_object().unwrap();
    let carried = carried.iter().map(|(backend, bytes)| (backend.clone(), bytes.as_u64().unwrap()));
    let reasons = report["auto"].as_array().unwrap();
    let passed = reasons[..reasons.len() - 1].iter();
    let passed = passed.map(|one| format!("{}: {}\n", one["backend"], one["why"])).collect();
    assert_eq!(reasons.last().unwrap()["backend"], report["backend"], "{report}");
    (report["backend"].as_str().unwrap().to_owned(), carried.collect(), passed)
}

/// Of two backends, which ones a log shows at work.
fn worked(log: &Log) -> [bool; 2] {
    [log.count("cuIpcOpenMemHandle") > 0, log.count("ncclSend") > 0]
}

#[test]
fn copy_engines_are_taken_where_every_path_works() {
    let run = bench("exchange", &[], &[]);
    let (backend, carried, passed) = taken(&run);
    assert_eq!((&*backend, carried.len(), &*passed), ("peer", 1, ""));
    assert!(carried[0].1 > 0);
    assert_eq!(audit(&run.log), Vec::<String>::new());
    assert_eq!((worked(&run.log), run.log.count("ncclGetUniqueId")), ([true, false], 0));
    assert_eq!(run.log.count("cuIpcOpenMemHandle"), run.log.count("cuIpcCloseMemHandle"));
    // Every rank compares what a copy brought from each other one; plain copies are compared with, too.
    assert!(run.json()["link_gbps"].is_number());
}

#[test]
fn nccl_is_taken_where_containers_forbid_handles_and_where_a_copy_brings_other_bytes() {
    for (variable, words) in [
        (("EPLB_FAKE_IPC", "1"), &["cannot open the memory of rank", "cuIpcOpenMemHandle", "--ipc=host"][..]),
        (("EPLB_FAKE_UNSHARED", "1"), &["cannot be opened by other processes", "pool"]),
        // In every process the first copy is that by which the path to the first other rank is tried out.
        (("EPLB_FAKE_FAULT", "cuMemcpyAsync:1"), &["brought other bytes than it has"]),
    ] {
        let run = bench("exchange", &[], &[variable]);
        let (backend, carried, passed) = taken(&run);
        assert!(passed.starts_with("\"peer\"") && words.iter().all(|word| passed.contains(word)), "{passed}");
        let nccl = carried
            .iter()
            .find(|(name, _)| name == "nccl")
            .unwrap_or_else(|| panic!("{variable:?}: {backend}"));
        assert!(nccl.1 > 0 && run.log.count("ncclSend") > 0, "{variable:?}");
        if variable.0 != "EPLB_FAKE_FAULT" {
            assert_eq!((&*backend, carried.len()), ("nccl", 1));
            continue;
        }
        // One path that fails leaves pairs that do not; what was opened beside it is closed again.
        assert_eq!(run.log.count("cuIpcOpenMemHandle"), run.log.count("cuIpcCloseMemHandle"), "{backend}");
    }
}

#[test]
fn without_nccl_and_gloo_every_rank_says_what_to_install() {
    for (variables, words) in [
        (&[("EPLB_NCCL_SO", "/nowhere/libnccl.so.2")][..], &["/nowhere/libnccl.so.2", "libnccl2"][..]),
        (&[("EPLB_FAKE_NCCL_VERSION", "21703")], &["2.17.3", "2.18"]),
        (&[("NCCL_LAUNCH_ORDER_IMPLICIT", "1")], &["NCCL_LAUNCH_ORDER_IMPLICIT"]),
    ] {
        let missing = [("EPLB_FAKE_IPC", "1"), ("EPLB_GLOO_SO", "/nowhere/libeplb_gloo.so")];
        let run = bench("exchange", &[], &[variables, &missing].concat());
        assert!(!run.ok);
        for rank in 0..4 {
            let said = run.stderr.lines().find(|line| line.contains(&format!("rank {rank}: ")));
            let said = said.unwrap_or_else(|| panic!("rank {rank} said nothing: {}", run.stderr));
            let all = [
                &[
                    "backend auto",
                    "--ipc=host",
                    "nccl: rank 0: ",
                    "gloo: rank 0: ",
                    "/nowhere/libeplb_gloo.so",
                ],
                words,
            ]
            .concat();
            assert!(all.iter().all(|word| said.contains(word)), "{all:?}: {said}");
        }
        assert_eq!(run.log.count("ncclCommInitRankConfig"), 0);
        // And it is not looked for where it is not needed.
        assert_eq!(taken(&bench("exchange", &[], variables)).0, "peer");
    }
}

#[test]
fn two_nodes_have_copy_engines_inside_and_nccl_between_in_one_wave() {
    let run = bench("exchange", &["--nodes", "2"], &[]);
    let (backend, carried, passed) = taken(&run);
    assert_eq!(backend, "peer and nccl");
    assert_eq!(carried.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["peer", "nccl"]);
    assert!(carried.iter().all(|(_, bytes)| *bytes > 0), "{carried:?}");
    assert!(passed.contains("it joins ranks 0 1, ranks 2 3 alone: rank 0 is on host node0-"), "{passed}");
    // The paths are tried out before NCCL is there, and that is waited for.
    let (mut log, begin) = (run.log.clone(), run.log.first("ncclCommInitRankConfig").unwrap());
    let mut at = 0..;
    log.0.retain(|call| at.next() >= Some(begin) || call.name != "cuStreamSynchronize");
    assert_eq!(audit(&log), Vec::<String>::new());
    assert_eq!(worked(&run.log), [true, true]);
    // Each opens the 2 layers of 3 tensors, and the mark, of one other.
    assert_eq!(run.log.count("cuIpcOpenMemHandle"), 4 * 7);
    assert_eq!(run.log.count("cuIpcCloseMemHandle"), 4 * 7);
    // Handles that are refused inside nodes leave NCCL for all.
    let run = bench("exchange", &["--nodes", "2"], &[("EPLB_FAKE_IPC", "1")]);
    let (backend, _, passed) = taken(&run);
    assert!(backend == "nccl" && passed.contains("--ipc=host") && passed.contains("node1-"), "{passed}");
    // A copy that each process forgets, of those that pull or that pack messages.
    let run = bench("exchange", &["--nodes", "2"], &[("EPLB_FAKE_FAULT", "cuMemcpyAsync:6")]);
    assert!(
        !run.ok && run.log.count("planted") > 0 && run.stderr.contains("bytes are wrong"),
        "{}",
        run.stderr
    );
}

#[test]
fn the_doctor_says_what_is_taken_on_gpus() {
    let run = eplb(&["doctor", "--json"], &[]);
    let machine = &run.json()["machine"];
    let of =
        |pair: &str| machine["backends_of_devices"][pair]["backend"].as_str().unwrap_or("nothing").to_owned();
    assert_eq!(
        ["same_rank", "same_process", "same_host", "other_host"].map(of),
        ["copy", "peer", "peer", "nccl"]
    );
    let text = eplb(&["doctor"], &[]).stdout;
    assert!(
        text.contains("processes of one host, on GPUs: peer") && text.contains("tried out when ranks meet"),
        "{text}"
    );
    let missing = [("EPLB_NCCL_SO", "/nowhere/libnccl.so.2"), ("EPLB_GLOO_SO", "/nowhere/libeplb_gloo.so")];
    let without = |count: usize| {
        eplb(&["doctor", "--json"], &missing[..count]).json()["machine"]["backends_of_devices"]["other_host"]
            .clone()
    };
    let other = without(2);
    let reasons = other["reasons"].to_string();
    assert!(other["backend"].is_null() && reasons.matches("/nowhere").count() >= 2, "{other}");
    if gloo() {
        let other = without(1);
        assert_eq!(other["backend"], "gloo");
        assert!(other["reasons"].to_string().contains("pinned host memory"), "{other}");
    }
}

#[test]
fn ranks_of_two_nodes_go_on_without_one_that_dies_amid_a_wave() {
    let run = bench(
        "faults",
        &["--nodes", "2", "--kill", "1", "--after-ms", "30"],
        &[("EPLB_FAKE_DELAY_US", "3000")],
    );
    assert!(run.ok, "{}", run.stderr);
    let report = run.json();
    assert_eq!((&report["killed"], &report["bytes_wrong"]), (&1.into(), &0.into()));
    for one in report["survivors"].as_array().unwrap() {
        let told = &one["told"];
        assert!(names_rank(told["error"].as_str().unwrap(), 1), "{one}");
        let after = &told["after"];
        assert_eq!((&after["verified"], &after["ranks"]), (&true.into(), &3.into()), "{one}");
        assert_eq!(after["backend"], "peer and nccl", "{one}");
    }
}
