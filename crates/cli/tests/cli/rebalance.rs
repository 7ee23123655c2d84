//! `eplb rebalance` and `eplb trace`, as a user calls them.

use super::support::{Folder, eplb, json, names, refused, shipped, skewed};
use eplb_trace::Trace;
use ndarray::Array3;

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_shipped_trace_is_walked_and_every_byte_is_right() {
    let trace = shipped();
    let report = json(&[
        "rebalance",
        "--trace",
        text(&trace),
        "--ranks",
        "8",
        "--slots",
        "72",
        "--steps",
        "0:50",
        "--expert-bytes",
        "3001",
        "--json",
    ]);
    for key in ["policy", "ranks", "slots", "window", "windows", "bytes_wrong"] {
        assert!(report.get(key).is_some(), "{key}");
    }
    assert_eq!((report["bytes_wrong"].as_u64(), report["policy"].as_str()), (Some(0), Some("incremental")));
    let windows = report["windows"].as_array().unwrap();
    assert_eq!(windows.len(), 3, "a short last window is used");
    let mut moved = 0;
    for (index, window) in windows.iter().enumerate() {
        for key in [
            "step",
            "balancedness_before",
            "balancedness",
            "bound",
            "moves",
            "bytes",
            "waves",
            "plan_ms",
            "move_ms",
        ] {
            assert!(window.get(key).is_some_and(|v| v.is_number()), "{key}");
        }
        assert_eq!(window["step"].as_u64(), Some(index as u64 * 20));
        let number = |key: &str| window[key].as_f64().unwrap();
        assert!(number("balancedness") + 1e-12 >= number("balancedness_before"));
        assert!(number("balancedness") <= number("bound") + 1e-9);
        assert_eq!(number("bytes"), number("moves") * 3001.0);
        moved += window["moves"].as_u64().unwrap();
    }
    assert!(moved > 0, "the placement to start with is not balanced");
}

#[test]
fn every_policy_moves_the_right_bytes() {
    let folder = Folder::new();
    let trace = folder.npz("trace.npz", "counts", &skewed(6, 3, 12));
    for policy in ["balanced", "deepseek", "random", "static", "incremental"] {
        let report = json(&[
            "rebalance",
            "--trace",
            text(&trace),
            "--ranks",
            "4",
            "--slots",
            "16",
            "--window",
            "2",
            "--policy",
            policy,
            "--expert-bytes",
            "500",
            "--staging-bytes",
            "1100",
            "--json",
        ]);
        assert_eq!(report["bytes_wrong"].as_u64(), Some(0), "{policy}");
        assert_eq!(report["windows"].as_array().unwrap().len(), 3);
    }
    let output =
        eplb(&["rebalance", "--trace", text(&trace), "--ranks", "4", "--slots", "16", "--window", "3"]);
    names(
        &String::from_utf8(output.stdout).unwrap(),
        &["before", "after", "bound", "every byte checked, 0 wrong"],
    );
}

#[test]
fn bad_runs_are_refused() {
    let folder = Folder::new();
    let trace = folder.npz("trace.npz", "counts", &skewed(2, 2, 8));
    let run = |rest: &[&str]| {
        let mut args = vec!["rebalance", "--trace", text(&trace), "--json"];
        args.extend(rest);
        refused(&args)
    };
    names(&run(&["--ranks", "4", "--slots", "6"]), &["6 slots", "8 experts"]);
    names(&run(&["--ranks", "4", "--slots", "8", "--expert-bytes", "0"]), &["bytes"]);
    names(&run(&["--ranks", "4", "--slots", "8", "--window", "0"]), &["window"]);
    names(&run(&["--ranks", "4", "--slots", "8", "--expert-bytes", "99999999999999"]), &["memory"]);
    names(
        &run(&["--ranks", "2", "--slots", "8", "--policy", "random", "--staging-bytes", "10"]),
        &["staging"],
    );
    let empty = folder.npz("empty.npz", "counts", &Array3::<f64>::zeros((0, 2, 8)));
    names(&refused(&["rebalance", "--trace", text(&empty), "--ranks", "2", "--slots", "8"]), &["empty.npz"]);
}

#[test]
fn traces_are_made_shown_and_converted() {
    let folder = Folder::new();
    let (made, again, table) = (folder.path("made.npz"), folder.path("again.npz"), folder.path("sum.csv"));
    for path in [&made, &again] {
        let output = eplb(&[
            "trace",
            "generate",
            "--out",
            text(path),
            "--steps",
            "30",
            "--layers",
            "3",
            "--experts",
            "16",
            "--domains",
            "2",
            "--switch-every",
            "10",
            "--idle-layers",
            "1",
            "--seed",
            "7",
        ]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(std::fs::read(&made).unwrap(), std::fs::read(&again).unwrap());
    let info = json(&["trace", "info", text(&made), "--json"]);
    assert_eq!(
        (info["steps"].as_u64(), info["layers"].as_u64(), info["experts"].as_u64()),
        (Some(30), Some(3), Some(16))
    );
    assert_eq!(info["idle_layers"].as_array().unwrap().len(), 1);
    let shown = String::from_utf8(eplb(&["trace", "info", text(&made), "--ascii"]).stdout).unwrap();
    names(&shown, &["30 steps", "Gini", "drift", "@"]);
    assert!(eplb(&["trace", "convert", text(&made), "--out", text(&table)]).status.success());
    let (whole, sum) = (Trace::open(&made).unwrap(), Trace::open(&table).unwrap());
    assert_eq!(whole.loads(0..30).unwrap().sum(), sum.loads(0..1).unwrap().sum());
    names(
        &refused(&["trace", "convert", text(&made), "--out", text(&folder.path("made.txt"))]),
        &["made.txt"],
    );
    names(&refused(&["trace", "generate", "--out", text(&made), "--preset", "none"]), &["none", "dsv3-zipf"]);
    names(
        &refused(&["trace", "generate", "--out", text(&made), "--zipf", "1", "2", "--sigma", "1"]),
        &["--zipf"],
    );
}
