//! The `peer` backend on the fakes: right bytes by copies alone, and nothing forbidden.

use crate::audit::audit;
use crate::libraries::exchange_over;

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
    }
}
