//! Ranks that differ: speeds, slots, dead ones, new ones.

use super::support::{Folder, eplb, json, names, phy2log, refused, skewed};
use ndarray::{Array2, s};

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

/// Experts in the slots of a rank with 5 slots, in one layer.
fn held(map: &Array2<i64>, layer: usize, rank: usize) -> Vec<i64> {
    map.slice(s![layer, rank * 5..rank * 5 + 5]).to_vec()
}

#[test]
fn faster_ranks_get_more_tokens() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(1, 2, 16));
    let base = ["plan", "--loads", text(&loads), "--slots", "20", "--gpus", "4", "--json"];
    let even = json(&base);
    let named = json(&[&base[..], &["--rank-speed", "3=0.5"]].concat());
    let listed = json(&[&base[..], &["--rank-speed", "1,1,1,0.5"]].concat());
    assert_eq!(named["balancedness"], listed["balancedness"]);
    assert!(named["balancedness"].as_f64().unwrap() > 0.9, "{named}");
    // The plan for equal ranks is a bad one for these: the slow rank has as much to do as the others.
    let out = folder.path("even.npz");
    json(&[&base[..], &["--out", text(&out)]].concat());
    let kept =
        json(&[&base[..], &["--rank-speed", "3=0.5", "--current", text(&out), "--policy", "split"]].concat());
    assert!(kept["balancedness"].as_f64().unwrap() < 0.7, "{kept}");
    assert!(even["balancedness"].as_f64().unwrap() > 0.9);
}

#[test]
fn slots_may_differ_by_rank() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(1, 2, 16));
    let out = folder.path("plan.npz");
    let report = json(&[
        "plan",
        "--loads",
        text(&loads),
        "--slots",
        "20",
        "--gpus",
        "3",
        "--rank-slots",
        "10,6,4",
        "--json",
        "--out",
        text(&out),
    ]);
    assert_eq!((report["duplicates"].as_u64(), report["shortages"].as_u64()), (Some(0), Some(0)));
    for row in phy2log(&out).rows() {
        for slots in [0..10, 10..16, 16..20] {
            let mut experts = row.slice(s![slots.clone()]).to_vec();
            experts.sort_unstable();
            experts.dedup();
            assert_eq!(experts.len(), slots.len(), "{row}");
        }
    }
}

#[test]
fn dead_ranks_are_planned_around_and_what_they_held_is_listed() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(1, 2, 16));
    let (before, after) = (folder.path("before.npz"), folder.path("after.npz"));
    let base = ["plan", "--loads", text(&loads), "--slots", "25", "--gpus", "5", "--json"];
    json(&[&base[..], &["--out", text(&before)]].concat());
    let old = phy2log(&before);
    let dead = ["--dead", "1,3", "--current", text(&before)];
    let report = json(&[&base[..], &dead, &["--out", text(&after), "--max-moves", "0"]].concat());
    assert_eq!(report["policy"], "incremental");
    let new = phy2log(&after);
    let mut lost = Vec::new();
    for layer in 0..2 {
        for rank in [1, 3] {
            assert_eq!(held(&new, layer, rank), [-1; 5]);
        }
        let alive: Vec<i64> = [0, 2, 4].iter().flat_map(|&rank| held(&old, layer, rank)).collect();
        let gone: Vec<i64> = (0..16).filter(|expert| !alive.contains(expert)).collect();
        // What is put back makes room on survivors; all else stays where it is.
        let kept: usize = [0, 2, 4]
            .iter()
            .map(|&rank| {
                let had = held(&old, layer, rank);
                held(&new, layer, rank).iter().filter(|expert| had.contains(expert)).count()
            })
            .sum();
        let room = 15usize.saturating_sub(gone.len());
        assert!(kept >= room.min(alive.len()), "{kept} of {alive:?} stay, {gone:?} come back");
        lost.extend(gone.into_iter().map(|expert| [layer as i64, expert]));
    }
    assert_eq!(report["lost"], serde_json::json!(lost));
    assert_eq!(report["dead"], serde_json::json!([1, 3]));
    let left_out = report["left_out"].as_array().unwrap().len();
    assert_eq!(left_out, 2, "15 live slots for 16 experts in each of two layers");
    let told = eplb(&[&base[..base.len() - 1], &dead].concat());
    names(
        &String::from_utf8(told.stdout).unwrap(),
        &["lost with dead ranks", "of layer 0", "without a slot"],
    );
}

#[test]
fn ranks_that_join_are_filled() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(1, 2, 16));
    let (before, after) = (folder.path("before.npz"), folder.path("after.npz"));
    let base = ["plan", "--loads", text(&loads), "--json"];
    json(&[&base[..], &["--slots", "20", "--gpus", "4", "--out", text(&before)]].concat());
    let grown = ["--slots", "25", "--gpus", "5", "--current", text(&before)];
    names(&refused(&[&base[..], &grown].concat()), &["current placement", "20", "25"]);
    let joined = json(&[&base[..], &grown, &["--joined", "1", "--out", text(&after)]].concat());
    assert!(joined["balancedness"].as_f64() >= Some(0.94), "{joined}");
    assert!(joined["moves"].as_u64() >= Some(1));
    let new = phy2log(&after);
    assert!((0..2).all(|layer| held(&new, layer, 4).iter().any(|&expert| expert >= 0)), "{new}");
    names(&refused(&[&base[..], &grown, &["--joined", "2"]].concat()), &["20", "15 slots", "3 ranks"]);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let folder = Folder::new();
    let loads = folder.npz("loads.npz", "counts", &skewed(2, 2, 16));
    let plan = |rest: &[&str]| {
        let base = ["plan", "--loads", text(&loads), "--slots", "20", "--gpus", "4", "--json"];
        refused(&[&base[..], rest].concat())
    };
    names(&plan(&["--rank-speed", "1,1,1"]), &["3 speeds", "4 ranks"]);
    names(&plan(&["--rank-speed", "4=2"]), &["--rank-speed", "rank 4", "0..4"]);
    names(&plan(&["--rank-speed", "1=2,1=3"]), &["rank 1", "twice"]);
    names(&plan(&["--rank-speed", "1,1,0,1"]), &["rank 2", "0"]);
    names(&plan(&["--rank-speed", "1=-1"]), &["rank 1", "-1"]);
    names(&plan(&["--rank-speed", "1,fast,1,1"]), &["--rank-speed", "fast"]);
    names(&plan(&["--rank-slots", "5,5,5"]), &["--rank-slots", "3 numbers", "4 ranks"]);
    names(&plan(&["--rank-slots", "5,5,5,6"]), &["--rank-slots", "21", "20"]);
    names(&plan(&["--dead", "0,1,2,3"]), &["every rank is dead"]);
    names(&plan(&["--dead", "7"]), &["--dead", "rank 7", "0..4"]);
    names(&plan(&["--joined", "1"]), &["--current"]);
    names(&plan(&["--dead", "1", "--policy", "deepseek"]), &["deepseek", "dead ranks"]);
    let walk = ["rebalance", "--trace", text(&loads), "--slots", "20", "--ranks", "4", "--window", "1"];
    names(&refused(&[&walk[..], &["--dead", "1"]].concat()), &["--dead", "eplb replay"]);
    let replay =
        ["replay", "--trace", text(&loads), "--slots", "20", "--gpus", "4", "--window", "1", "--json"];
    let run = json(&[&replay[..], &["--policy", "balanced", "--rank-speed", "1=2"]].concat());
    assert_eq!(run["policies"][0]["steps"].as_u64(), Some(1));
}
