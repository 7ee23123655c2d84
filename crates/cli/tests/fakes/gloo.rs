//! Gloo between devices on the fakes: right bytes through pinned memory, and what `auto` takes where NCCL is missing.

use std::collections::BTreeSet;

use eplb_engine::process::GlooTransport;

use crate::audit::audit;
use crate::auto::{bench, taken};
use crate::libraries::{exchange_over, names_rank};
use crate::log::Log;

/// Whether Gloo is there; its absence has to be allowed.
pub(crate) fn gloo() -> bool {
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

const NO_NCCL: (&str, &str) = ("EPLB_NCCL_SO", "/nowhere/libnccl.so.2");

/// Copies between host and device on streams that have events behind them: those of lanes.
fn staged(log: &Log) -> [usize; 2] {
    let with_events: BTreeSet<&str> =
        log.0.iter().filter(|call| call.name == "cuEventRecord").map(|call| call.text("stream")).collect();
    ["cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync"].map(|name| {
        let of = log.0.iter().filter(|call| call.name == name);
        of.filter(|call| with_events.contains(call.text("stream"))).count()
    })
}

#[test]
fn every_placement_arrives_through_pinned_memory() {
    if !gloo() {
        return;
    }
    for (placement, more) in
        [("few2", &[][..]), ("shift", &[]), ("random", &["--gaps", "24:8"]), ("random", &["--processes"])]
    {
        let arguments = [&["--on-devices", "--placement", placement, "--iters", "2"], more].concat();
        let folder = tempfile::tempdir().unwrap();
        let slow = [("EPLB_FAKE_DELAY_US", "200"), ("EPLB_FAKE_FOLDER", folder.path().to_str().unwrap())];
        let run = exchange_over("gloo", &arguments, &slow);
        assert!(run.ok, "{placement} {more:?}: {}", run.stderr);
        let report = run.json();
        assert_eq!((&report["verified"], &report["backend"]), (&true.into(), &"gloo".into()), "{report}");
        assert!(report["carried_bytes"]["gloo"].as_u64() > Some(0), "{report}");
        // A few cells for each lane, whatever the slots take.
        let pinned = report["pinned_bytes"].as_u64();
        assert!(pinned > Some(0) && pinned <= Some(32 << 20) && report["device_bytes"] == 0, "{report}");
        assert_eq!(audit(&run.log), Vec::<String>::new(), "{placement} {more:?}");
        assert!(staged(&run.log).iter().all(|&copies| copies > 0), "{placement} {more:?}");
        for call in ["ncclGroupStart", "cuIpcOpenMemHandle", "cuLaunchHostFunc", "cuStreamWaitValue"] {
            assert_eq!(run.log.count(call), 0, "{placement} {more:?}: {call}");
        }
    }
    // On host memory nothing of it is there, and a driver is needed for nothing else.
    let run = exchange_over("gloo", &["--placement", "random"], &[]);
    assert!(run.ok && staged(&run.log) == [0, 0], "{}", run.stderr);
    assert_eq!(run.json()["pinned_bytes"], 0);
    let run = exchange_over("peer", &["--on-devices"], &[]);
    assert!(!run.ok && run.stderr.contains("--backend gloo"), "{}", run.stderr);
}

#[test]
fn gloo_is_taken_where_no_path_and_no_nccl_is() {
    if !gloo() {
        return;
    }
    let run = bench("exchange", &[], &[NO_NCCL, ("EPLB_FAKE_IPC", "1")]);
    let (backend, carried, passed) = taken(&run);
    assert_eq!((&*backend, carried.len()), ("gloo", 1));
    assert!(carried[0].1 > 0 && staged(&run.log).iter().all(|&copies| copies > 0), "{carried:?}");
    for word in ["\"peer\"", "--ipc=host", "\"nccl\"", "/nowhere/libnccl.so.2"] {
        assert!(passed.contains(word), "{word}: {passed}");
    }
    let why = run.json()["auto"].as_array().unwrap().last().unwrap()["why"].as_str().unwrap().to_owned();
    assert!(why.contains("through pinned host memory"), "{why}");
}

#[test]
fn two_nodes_have_copy_engines_inside_and_gloo_between_where_nccl_is_missing() {
    if !gloo() {
        return;
    }
    let run = bench("exchange", &["--nodes", "2"], &[NO_NCCL]);
    let (backend, carried, passed) = taken(&run);
    assert_eq!(backend, "peer and gloo");
    assert_eq!(carried.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["peer", "gloo"]);
    assert!(carried.iter().all(|(_, bytes)| *bytes > 0), "{carried:?}");
    assert!(
        passed.contains("it joins ranks 0 1, ranks 2 3 alone") && passed.contains("/nowhere"),
        "{passed}"
    );
    assert_eq!(run.log.count("cuIpcOpenMemHandle"), run.log.count("cuIpcCloseMemHandle"));
    assert!(staged(&run.log).iter().all(|&copies| copies > 0));
    for call in ["cuCtxSynchronize", "default_stream", "outside", "cuStreamWaitValue", "ncclGroupStart"] {
        assert_eq!(run.log.count(call), 0, "{call}");
    }
    // Ranks share devices where these are fewer.
    let shared = taken(&bench("exchange", &["--nodes", "2"], &[NO_NCCL, ("EPLB_FAKE_DEVICES", "2")]));
    assert_eq!((shared.0, shared.1), (backend, carried));
}

#[test]
fn survivors_of_a_death_amid_a_wave_go_on_over_gloo() {
    if !gloo() {
        return;
    }
    for (variables, backend) in
        [(&[NO_NCCL][..], "peer and gloo"), (&[NO_NCCL, ("EPLB_FAKE_IPC", "1")], "gloo")]
    {
        let slow = [variables, &[("EPLB_FAKE_DELAY_US", "3000")]].concat();
        let run = bench("faults", &["--nodes", "2", "--kill", "1", "--after-ms", "30"], &slow);
        assert!(run.ok, "{backend}: {}", run.stderr);
        let report = run.json();
        assert_eq!((&report["killed"], &report["bytes_wrong"]), (&1.into(), &0.into()), "{backend}");
        for one in report["survivors"].as_array().unwrap() {
            let told = &one["told"];
            assert!(names_rank(told["error"].as_str().unwrap(), 1), "{backend}: {one}");
            let after = &told["after"];
            assert_eq!((&after["verified"], &after["ranks"]), (&true.into(), &3.into()), "{one}");
            assert_eq!(after["backend"], backend, "{one}");
        }
    }
}
