//! `eplb plan`, as a user calls it.

use super::support::{Folder, eplb, json, names, phy2log, refused, skewed};
use eplb_trace::npz::Npz;
use ndarray::{Array2, Array3, Axis, array};
use serde_json::Value;

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

const KEYS: [&str; 22] = [
    "policy",
    "layers",
    "experts",
    "slots",
    "gpus",
    "nodes",
    "balancedness",
    "balancedness_min",
    "balancedness_share",
    "balancedness_steps",
    "balancedness_before",
    "bound",
    "gap",
    "moves",
    "moves_fraction",
    "local_copies",
    "duplicates",
    "shortages",
    "target_reached",
    "plan_ms",
    "threads",
    "policy",
];

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} is {}", value[key]))
}

#[test]
fn a_plan_has_all_its_keys_and_arrays() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(3, 4, 16));
    let out = folder.path("plan.npz");
    let report = json(&[
        "plan",
        "--loads",
        text(&loads),
        "--slots",
        "20",
        "--gpus",
        "4",
        "--out",
        text(&out),
        "--json",
    ]);
    for key in KEYS {
        assert!(report.get(key).is_some(), "{key} is missing");
    }
    assert_eq!(report["policy"], "balanced");
    assert!(report["moves"].is_null() && report["balancedness_before"].is_null());
    assert!(number(&report, "balancedness") <= number(&report, "bound") + 1e-9);
    assert!(number(&report, "balancedness_share") + 1e-9 >= number(&report, "balancedness"));
    let file = Npz::open(&out).unwrap();
    let share: Array2<f64> = file.floats("share").unwrap();
    let logcnt: Array2<i64> = file.integers("logcnt").unwrap();
    let log2phy: Array3<i64> = file.integers("log2phy").unwrap();
    let map = phy2log(&out);
    assert_eq!((map.dim(), share.dim(), logcnt.dim()), ((4, 20), (4, 20), (4, 16)));
    assert_eq!(log2phy.shape()[2] as i64, *logcnt.iter().max().unwrap());
    assert!((share.sum_axis(Axis(1)) - 16.0).iter().all(|d| d.abs() < 1e-6));
    // The same plan from the same input, whatever the number of threads.
    let again = folder.path("again.npz");
    json(&[
        "plan",
        "--loads",
        text(&loads),
        "--slots",
        "20",
        "--ranks",
        "4",
        "--out",
        text(&again),
        "--json",
        "--threads",
        "1",
    ]);
    assert_eq!(phy2log(&again), map);
}

#[test]
fn planning_again_from_a_plan_moves_little() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(2, 4, 16));
    let out = folder.path("plan.npz");
    let base = ["plan", "--loads", text(&loads), "--slots", "20", "--gpus", "4", "--json"];
    let first = json(&[&base[..], &["--steps", "0:1", "--out", text(&out)]].concat());
    let again = json(&[&base[..], &["--steps", "1:2", "--current", text(&out)]].concat());
    assert_eq!(again["policy"], "incremental");
    assert!(number(&again, "balancedness") + 1e-12 >= number(&again, "balancedness_before"));
    assert!(again["target_reached"].is_boolean());
    assert_eq!(number(&again, "moves_fraction"), number(&again, "moves") / 80.0);
    // Nothing is to be gained from what is there already.
    let same = json(&[&base[..], &["--steps", "0:1", "--current", text(&out), "--target", "0.1"]].concat());
    assert_eq!((same["moves"].as_u64(), same["target_reached"].as_bool()), (Some(0), Some(true)));
    assert_eq!(same["balancedness"], first["balancedness"]);
    let capped =
        json(&[&base[..], &["--steps", "1:2", "--current", text(&out), "--max-moves", "2"]].concat());
    assert!(capped["moves"].as_u64().unwrap() <= 2);
    // A target out of reach is no error.
    let beyond = json(
        &[&base[..], &["--steps", "1:2", "--current", text(&out), "--max-moves", "0", "--target", "1.0"]]
            .concat(),
    );
    assert_eq!(beyond["target_reached"].as_bool(), Some(false));
}

#[test]
fn the_curve_ends_where_the_plan_does_and_bytes_are_kept_to() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(2, 4, 16));
    let out = folder.path("plan.npz");
    let base = ["plan", "--loads", text(&loads), "--slots", "20", "--gpus", "4"];
    json(&[&base[..], &["--steps", "0:1", "--out", text(&out), "--json"]].concat());
    let next = [&base[..], &["--steps", "1:2", "--current", text(&out), "--curve"]].concat();
    let whole = json(&[&next[..], &["--json"]].concat());
    let curve = whole["curve"].as_array().unwrap();
    let column = |key: &str| -> Vec<f64> { curve.iter().map(|point| number(point, key)).collect() };
    assert!(curve.len() > 2);
    assert_eq!((column("moves")[0], curve[0]["bytes"].is_null()), (0.0, true));
    assert!((column("balancedness")[0] - number(&whole, "balancedness_before")).abs() < 1e-12);
    assert!(column("moves").is_sorted_by(|a, b| a < b) && column("balancedness").is_sorted_by(|a, b| a < b));
    // The plan to a target is the end of the curve to that target.
    let wanted = [&next[..], &["--target", "0.9"]].concat();
    let plan = json(&[&wanted[..], &["--json"]].concat());
    let end = plan["curve"].as_array().unwrap().last().unwrap();
    assert_eq!(end["moves"], plan["moves"]);
    assert!((number(end, "balancedness") - number(&plan, "balancedness")).abs() < 1e-12);
    assert!(String::from_utf8(eplb(&wanted).stdout).unwrap().contains("of the slots   bytes"));

    // Three experts of 1,000 bytes fit in 3,500; one may go to each rank.
    let bytes = ["--expert-bytes", "1000", "--max-bytes", "3500", "--max-bytes-per-rank", "1999", "--json"];
    let plan = json(&[&next[..], &bytes[..]].concat());
    assert!((1..=3).contains(&plan["moves"].as_u64().unwrap()), "{plan}");
    let end = plan["curve"].as_array().unwrap().last().unwrap();
    assert_eq!(number(end, "bytes"), 1000.0 * number(&plan, "moves"));
    // An expert that takes a year to move is left where it is.
    let worth =
        ["--expert-bytes", "1000000000000", "--worth-steps", "10", "--layer-us", "100", "--link-gbps", "1"];
    let plan = json(&[&next[..], &worth[..], &["--json"]].concat());
    assert_eq!(plan["moves"].as_u64(), Some(0));
    let message = refused(&[&next[..], &["--max-bytes", "3500"]].concat());
    names(&message, &["--expert-bytes"]);
}

#[test]
fn the_current_placement_is_read_in_any_integer_dtype_and_checked() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(1, 1, 3));
    let base = ["plan", "--loads", text(&loads), "--slots", "4", "--gpus", "2", "--json", "--current"];
    for (name, path) in [
        ("i8", folder.npz("i8.npz", "phy2log", &array![[0i8, 1, 2, 0]])),
        ("u16", folder.npz("u16.npz", "phy2log", &array![[0u16, 1, 2, 0]])),
        ("i64", folder.npz("i64.npz", "phy2log", &array![[0i64, 1, 2, -1]])),
    ] {
        let report = json(&[&base[..], &[text(&path)]].concat());
        assert!(report["moves"].is_u64(), "{name}");
    }
    let bad = |array: Array2<i64>| {
        let path = folder.npz("bad.npz", "phy2log", &array);
        refused(&[&base[..], &[text(&path)]].concat())
    };
    names(&bad(array![[0, 1, 2]]), &["current placement", "3", "4"]);
    names(&bad(array![[0, 1, 2, 3]]), &["bad.npz", "layer 0", "slot 3", "expert 3"]);
    names(&bad(array![[0, 1, 1, 0]]), &["bad.npz", "layer 0", "expert 2", "no slot"]);
    let other = folder.npz("other.npz", "something", &array![[0i64, 1, 2, 0]]);
    names(&refused(&[&base[..], &[text(&other)]].concat()), &["other.npz", "phy2log", "something"]);
}

#[test]
fn bad_input_is_refused_with_its_name() {
    let folder = Folder::new();
    let good = skewed(1, 2, 8);
    let loads = folder.npz("loads.npz", "counts", &good);
    let plan = |rest: &[&str]| {
        let (path, rest): (&str, Vec<&str>) = match rest.iter().position(|&a| a == "--loads") {
            Some(at) => (rest[at + 1], [&rest[..at], &rest[at + 2..]].concat()),
            None => (text(&loads), rest.to_vec()),
        };
        let mut args = vec!["plan", "--loads", path, "--json"];
        args.extend(rest);
        if !args.contains(&"--slots") {
            args.extend(["--slots", "10"]);
        }
        if !args.contains(&"--gpus") {
            args.extend(["--gpus", "2"]);
        }
        refused(&args)
    };
    names(&plan(&["--slots", "7"]), &["7 slots", "8 experts"]);
    names(&plan(&["--gpus", "0"]), &["0 ranks"]);
    names(&plan(&["--nodes", "3"]), &["3 nodes", "2 ranks"]);
    names(&plan(&["--policy", "incremental"]), &["incremental", "--current"]);
    names(&plan(&["--policy", "best"]), &["best", "balanced", "deepseek"]);
    names(&plan(&["--policy", "deepseek", "--slots", "9"]), &["deepseek", "9"]);
    names(&plan(&["--target", "1.5"]), &["target", "1.5"]);
    names(&plan(&["--steps", "1:1"]), &["1:1"]);
    names(&plan(&["--steps", "0:2"]), &["loads.npz"]);
    names(&plan(&["--threads", "0"]), &["thread"]);
    names(&plan(&["--repeat", "0"]), &["repeat"]);
    names(&plan(&["--loads", text(&folder.path("nowhere.npz"))]), &["nowhere.npz"]);
    names(&plan(&["--out", text(&folder.path("no/such/folder/plan.npz"))]), &["plan.npz"]);
    for (value, word) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (-3.0, "-3")] {
        let mut bad = good.clone();
        bad[(0, 1, 5)] = value;
        let path = folder.npz("bad.npz", "counts", &bad);
        names(&plan(&["--loads", text(&path)]), &["bad.npz", "layer 1", "expert 5", word]);
    }
    let csv = folder.text("loads.csv", "layer_id,expert_id,count\n0,0,5\n0,0,6\n");
    names(&plan(&["--loads", text(&csv)]), &["loads.csv", "2", "3"]);
    let csv = folder.text("headless.csv", "0,0,5\n");
    names(&plan(&["--loads", text(&csv)]), &["headless.csv", "layer_id"]);
}

#[test]
fn idle_layers_and_one_hot_expert_are_planned() {
    let folder = Folder::new();
    let mut loads = Array3::<f64>::zeros((1, 2, 8));
    loads[(0, 1, 3)] = 1e6;
    let path = folder.npz("hot.npz", "counts", &loads);
    let report = json(&["plan", "--loads", text(&path), "--slots", "12", "--gpus", "4", "--json"]);
    // Four ranks: the hot expert has a replica on each.
    assert_eq!(number(&report, "balancedness"), 1.0);
    let idle = folder.npz("idle.npz", "counts", &Array3::<f64>::zeros((1, 2, 8)));
    let report = json(&["plan", "--loads", text(&idle), "--slots", "11", "--gpus", "4", "--json"]);
    assert_eq!((number(&report, "balancedness"), number(&report, "bound")), (1.0, 1.0));
}

#[test]
fn text_is_for_people_and_help_explains() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(1, 2, 8));
    let output = eplb(&["plan", "--loads", text(&loads), "--slots", "10", "--gpus", "2"]);
    let out = String::from_utf8(output.stdout).unwrap();
    names(&out, &["balancedness", "bound", "planned in"]);
    let help = String::from_utf8(eplb(&["plan", "--help"]).stdout).unwrap();
    names(&help, &["--loads", "--current", "--max-moves", "--steps"]);
    let output = eplb(&[]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
}
