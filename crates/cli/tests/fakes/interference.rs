//! Exchanges beside products of a fake cuBLAS.

use crate::libraries::{Run, eplb};

fn interference(backend: &str, variables: &[(&str, &str)]) -> Run {
    let small = "bench interference --layers 2 --experts 16 --redundant 4 --tensors 1000,64,7 --ranks 2 --load tiny --seconds 0.1";
    let arguments: Vec<&str> = small.split(' ').chain(["--backend", backend, "--patience", "60"]).collect();
    eplb(&arguments, variables)
}

#[test]
fn products_and_exchanges_run_side_by_side() {
    for backend in ["nccl", "peer"] {
        let run = interference(backend, &[("EPLB_FAKE_PRODUCT_US", "200")]);
        assert!(run.ok, "{backend}: {}", run.stderr);
        let report = run.json();
        assert_eq!(report["verified"], true);
        for part in ["alone_us", "alone_again_us", "beside_us"] {
            // A product sleeps so long; longer where the machine is busy.
            assert!(report[part].as_f64().unwrap() >= 200.0, "{report}");
        }
        assert!(
            report["exchanges"].as_u64().unwrap() >= 2 && report["replays"].as_u64().unwrap() > 0,
            "{report}"
        );
        // What memory carries, and what plain copies cost: an exchange is held against both.
        let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {report}"));
        let allowed = 1.0 + 1.2 * number("memory_gbps") / number("copy_gbps");
        assert!(number("copy_gbps") > 0.0 && (number("slowdown_allowed") - allowed).abs() < 1e-9, "{report}");
        assert!(number("slowdown_copies") > 0.0 && number("gbps_copies") > 0.0);
        // Copies carry what goes over links, and commit nothing.
        assert!(
            number("memory_gbps_copies") / number("gbps_copies")
                < number("memory_gbps") / number("gbps_worst_rank")
        );
        // Two per rank at the start, replays of the second after it.
        assert_eq!(run.log.count("cublasGemmStridedBatchedEx"), 4);
        assert!(run.log.count("cuGraphLaunch") > 20);
        assert_eq!(run.log.count("cuCtxSynchronize") + run.log.count("default_stream"), 0);
    }
}

#[test]
fn a_product_that_is_refused_has_a_name() {
    let run = interference("peer", &[("EPLB_FAKE_FAULT", "cublasGemmStridedBatchedEx:2")]);
    assert!(!run.ok && run.stderr.contains("cublasGemmStridedBatchedEx"), "{}", run.stderr);
    let run = interference("peer", &[("EPLB_CUBLAS_SO", "/nonexistent/libcublas.so")]);
    assert!(!run.ok && run.stderr.contains("EPLB_CUBLAS_SO"), "{}", run.stderr);
    let run = interference("local", &[]);
    assert!(!run.ok && run.stderr.contains("ranks on devices"), "{}", run.stderr);
}
