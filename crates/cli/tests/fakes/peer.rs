//! The `peer` backend on the fakes: right bytes by copies alone, and nothing forbidden.

use crate::audit::audit;
use crate::libraries::{Run, eplb};

fn exchange(more: &[&str], variables: &[(&str, &str)]) -> Run {
    let small = "bench exchange --backend peer --layers 2 --experts 16 --redundant 4 --tensors 1000,64,7 --json --patience 8";
    let arguments: Vec<&str> = small.split(' ').chain(more.iter().copied()).collect();
    eplb(&arguments, variables)
}

#[test]
fn every_placement_arrives_by_copies_alone() {
    for placement in ["same", "few2", "shift", "random", "plan"] {
        let run = exchange(&["--placement", placement, "--iters", "2"], &[("EPLB_FAKE_DELAY_US", "200")]);
        assert!(run.ok, "{placement}: {}", run.stderr);
        let report = run.json();
        assert_eq!((&report["verified"], &report["backend"]), (&true.into(), &"peer".into()));
        assert_eq!(report["carried_bytes"]["peer"].as_u64().unwrap() == 0, placement == "same", "{report}");
        assert_eq!(audit(&run.log), Vec::<String>::new(), "{placement}");
        for call in ["ncclGroupStart", "ncclCommInitRankConfig", "cuLaunchKernel", "cuLaunchHostFunc"] {
            assert_eq!(run.log.count(call), 0, "{placement}: {call}");
        }
        assert!(placement == "same" || run.log.count("cuMemcpyAsync") > 0);
    }
}

#[test]
fn the_suite_of_communicators_passes_over_peers() {
    let run = eplb(&["doctor", "--suite", "3", "--peer", "--json"], &[("EPLB_FAKE_DELAY_US", "100")]);
    assert!(run.ok, "{}{}", run.stdout, run.stderr);
    let report = run.json();
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 14 && checks.iter().all(|check| check["ok"] == true), "{report}");
    assert_eq!(run.log.count("cuCtxSynchronize") + run.log.count("default_stream"), 0);
}

#[test]
fn a_forgotten_pull_is_found() {
    let run = exchange(&["--placement", "random"], &[("EPLB_FAKE_FAULT", "cuMemcpyAsync:3")]);
    assert!(!run.ok);
    assert_eq!(run.log.count("planted"), 1);
    assert!(run.stderr.contains("bytes are wrong"), "{}", run.stderr);
}
