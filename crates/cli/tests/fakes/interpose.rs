//! What runs on GPU machines to watch the real driver (`tests/gpu`), tried on the fakes.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::gloo::gloo;
use crate::libraries::exchange_over;

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gpu")
}

fn audit(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("python3").arg(sources().join("audit.py")).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_calls_of_a_run_are_recorded_and_audited() {
    let folder = tempfile::tempdir().unwrap();
    let shim = folder.path().join("libinterpose.so");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o"]).arg(&shim);
    assert!(cc.arg(sources().join("interpose.c")).arg("-ldl").status().unwrap().success());
    for (backend, more) in [("peer", &[][..]), ("nccl", &[]), ("gloo", &["--on-devices"])] {
        if backend == "gloo" && !gloo() {
            continue;
        }
        let calls = folder.path().join(format!("{backend}.log"));
        let (shim, calls) = (shim.to_str().unwrap(), calls.to_str().unwrap());
        let run = exchange_over(
            backend,
            &[&["--ranks", "2", "--placement", "shift", "--iters", "2"], more].concat(),
            &[("LD_PRELOAD", shim), ("EPLB_CALLS", calls)],
        );
        assert!(run.ok, "{}", run.stderr);
        // What it saw is what the fake was asked for.
        let text = std::fs::read_to_string(calls).unwrap();
        let batches = run.log.0.iter().filter(|call| call.name == "cuMemcpyBatchAsync");
        let batched = batches.map(|call| call.number("copies") as usize).sum::<usize>();
        for name in
            ["cuMemAlloc", "cuStreamSynchronize", "cuMemcpyAsync", "cuMemcpyBatchAsync", "cuMemcpyHtoDAsync"]
        {
            let seen = text.lines().filter(|line| line.split(' ').next() == Some(name)).count();
            // The fake tells the copies of a batch, too.
            let told = run.log.count(name) - if name == "cuMemcpyAsync" { batched } else { 0 };
            assert!(seen > 0 && seen == told, "{name}: {seen} of {told}");
        }
        let (ok, said) = audit(&[calls]);
        assert!(ok && said.contains("audit: 0 forbidden calls"), "{said}");
        let (ok, said) = audit(&[calls, "--planted"]);
        assert!(ok && said.contains("all found"), "{said}");
    }
}
