//! Other objectives: nodes, the cost of active experts, dispatch, the hottest experts everywhere.

use super::support::{Folder, eplb, json, names, phy2log, refused, skewed};
use serde_json::Value;

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

fn after(report: &Value, key: &str) -> f64 {
    report["predicted"]["after"][key].as_f64().unwrap_or_else(|| panic!("{key} of {report}"))
}

#[test]
fn what_crosses_nodes_is_priced_and_reported() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(1, 4, 32));
    let base =
        ["plan", "--loads", text(&loads), "--slots", "48", "--gpus", "8", "--nodes", "4", "--groups", "8"];
    let plan = |rest: &[&str]| json(&[&base[..], &["--json"], rest].concat());
    let (free, strict) = (plan(&[]), plan(&["--strict"]));
    let priced = plan(&["--node-price", "0.2"]);
    let bound = strict["predicted"]["strict_bound"].as_f64().unwrap();
    assert_eq!(after(&strict, "crossing"), 0.0);
    assert!(strict["balancedness"].as_f64().unwrap() <= bound + 1e-9, "{strict}");
    assert!(priced["balancedness"].as_f64().unwrap() > bound, "{priced}");
    let crossing = after(&priced, "crossing");
    assert!(crossing > 0.0 && crossing < after(&free, "crossing"), "{priced} {free}");
    assert!((after(&priced, "price_paid") - 0.2 * crossing).abs() < 1e-12);
    assert!(free["predicted"]["strict_bound"].is_null());
    let told = eplb(&[&base[..], &["--node-price", "0.2"]].concat());
    names(&String::from_utf8(told.stdout).unwrap(), &["tokens across nodes", "price", "bound of strict"]);
}

#[test]
fn times_are_predicted_for_the_dispatch_and_the_cost() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(1, 2, 16));
    let out = folder.path("plan.npz");
    let base = ["plan", "--loads", text(&loads), "--slots", "24", "--gpus", "8", "--nodes", "2", "--json"];
    let first = json(&[&base[..], &["--policy", "static", "--out", text(&out)]].concat());
    for dispatch in ["even", "share", "nearest"] {
        let rest = ["--dispatch", dispatch, "--current", text(&out), "--max-moves", "12"];
        let report = json(&[&base[..], &rest].concat());
        assert_eq!(report["predicted"]["dispatch"], dispatch);
        assert!(report["moves"].as_u64() <= Some(12), "{report}");
        let before = report["predicted"]["before"]["time"].as_f64().unwrap();
        assert!(after(&report, "time") < before, "{dispatch}: {report}");
    }
    // Tokens alone: the time of a layer is its worst rank's tokens.
    assert!((after(&first, "balance") - first["balancedness"].as_f64().unwrap()).abs() < 1e-12);
    let costly = json(&[&base[..], &["--expert-cost", "500"]].concat());
    let plain = json(&[&base[..], &["--policy", "balanced"]].concat());
    assert!(after(&costly, "time") > after(&plain, "time"));
}

#[test]
fn the_hottest_experts_are_everywhere() {
    let folder = Folder::new();
    let loads = skewed(1, 3, 16);
    let file = folder.npz("loads.npz", "counts", &loads);
    let out = folder.path("plan.npz");
    let base = ["plan", "--loads", text(&file), "--slots", "24", "--gpus", "4", "--json"];
    json(&[&base[..], &["--replicate-top", "2", "--out", text(&out)]].concat());
    for (layer, row) in phy2log(&out).rows().into_iter().enumerate() {
        let mut order: Vec<usize> = (0..16).collect();
        order.sort_by(|&a, &b| loads[(0, layer, b)].total_cmp(&loads[(0, layer, a)]).then(a.cmp(&b)));
        for expert in &order[..2] {
            assert_eq!(row.iter().filter(|&&e| e == *expert as i64).count(), 4, "{row}");
        }
    }
    let message = refused(&[&base[..], &["--replicate-top", "3"]].concat());
    names(&message, &["replicate_top 3", "12 slots", "13 experts"]);
    names(&refused(&[&base[..], &["--strict", "--node-price", "1"]].concat()), &["--strict", "--node-price"]);
    names(&refused(&[&base[..], &["--dispatch", "random"]].concat()), &["random", "nearest"]);
    names(&refused(&[&base[..], &["--strict", "--nodes", "2"]].concat()), &["groups", "nodes", "--groups"]);
}
