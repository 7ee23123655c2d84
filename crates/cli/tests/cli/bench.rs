//! `eplb bench` on host memory.

use super::support::{json, names, refused};

/// Few small experts.
const SMALL: [&str; 12] = [
    "bench",
    "exchange",
    "--ranks",
    "2",
    "--layers",
    "2",
    "--experts",
    "8",
    "--redundant",
    "4",
    "--iters",
    "2",
];

#[test]
fn experts_move_over_gloo_beside_a_plain_loop() {
    let report = json(&[&SMALL[..], &["--backend", "gloo", "--tensors", "5000,77", "--json"]].concat());
    assert_eq!((&report["backend"], &report["verified"]), (&"gloo".into(), &true.into()), "{report}");
    let carried = report["carried_bytes"]["gloo"].as_u64().unwrap();
    assert!(carried > 0 && carried.is_multiple_of(5077), "{report}");
    // The plain loop has carried the same, and says how fast.
    assert!(report["link_gbps"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn threads_have_nothing_to_be_compared_with() {
    let report = json(&[&SMALL[..], &["--tensors", "5000", "--json"]].concat());
    assert!(report["link_gbps"].is_null() && report["verified"].as_bool().unwrap(), "{report}");
}

#[test]
fn a_server_beside_gloo_is_refused() {
    let message = refused(&[&SMALL[..], &["--backend", "gloo", "--beside", "1000"]].concat());
    names(&message, &["all-reduces", "gloo"]);
}
