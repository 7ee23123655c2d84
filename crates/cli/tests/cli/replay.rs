//! `eplb replay` and pictures, as a user calls them.

use super::support::{Folder, eplb, json, names, refused, shipped};

#[test]
fn policies_are_replayed_side_by_side_and_reported() {
    let folder = Folder::new();
    let (trace, html) = (shipped(), folder.path("report.html"));
    let report = json(&[
        "replay",
        "--trace",
        trace.to_str().unwrap(),
        "--slots",
        "80",
        "--gpus",
        "16",
        "--policy",
        "incremental,balanced,static",
        "--window",
        "20",
        "--interval",
        "10",
        "--steps",
        "20:90",
        "--oracle",
        "--report",
        html.to_str().unwrap(),
        "--json",
    ]);
    for key in ["trace", "slots", "gpus", "policies", "oracle"] {
        assert!(report.get(key).is_some(), "{key}");
    }
    let policies = report["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 3);
    let bound = report["oracle"]["balancedness_mean"].as_f64().unwrap();
    for policy in policies {
        for key in [
            "policy",
            "steps",
            "rebalances",
            "balancedness_mean",
            "balancedness_p01",
            "moves_total",
            "moves_fraction_mean",
            "bytes_total",
            "plan_ms_median",
        ] {
            assert!(policy.get(key).is_some(), "{key}");
        }
        assert_eq!((policy["steps"].as_u64(), policy["rebalances"].as_u64()), (Some(50), Some(5)));
        assert!(policy["balancedness_mean"].as_f64().unwrap() <= bound + 1e-9);
    }
    let mean = |at: usize| policies[at]["balancedness_mean"].as_f64().unwrap();
    let moves = |at: usize| policies[at]["moves_total"].as_u64().unwrap();
    assert!(mean(0) > mean(2) && mean(1) > mean(2), "planning beats standing still");
    assert!(moves(0) < moves(1) && moves(2) == 0, "incremental moves less than a fresh plan");
    let page = std::fs::read_to_string(&html).unwrap();
    names(&page, &["incremental", "Balance over time", "day_26x64.npz"]);
}

#[test]
fn forecast_plans_every_step_and_its_frontier_is_printed_beside_the_other() {
    let trace = shipped();
    let base = ["replay", "--trace", trace.to_str().unwrap(), "--slots", "80", "--gpus", "16"];
    let rest = ["--steps", "40:80", "--policy", "forecast,static@3", "--frontier", "0.1,0.002", "--json"];
    let report = json(&[&base[..], &rest[..]].concat());
    let [forecast, fixed] = &report["policies"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!((forecast["interval"].as_u64(), forecast["rebalances"].as_u64()), (Some(1), Some(20)));
    assert_eq!((fixed["interval"].as_u64(), fixed["rebalances"].as_u64()), (Some(3), Some(7)));
    let frontier = report["frontier"].as_array().unwrap();
    let of = |policy| frontier.iter().filter(|point| point["policy"] == policy).collect::<Vec<_>>();
    let (ours, theirs) = (of("forecast"), of("incremental"));
    assert_eq!(
        (ours.len(), ours[0]["price"].as_f64(), ours[1]["price"].as_f64()),
        (2, Some(0.1), Some(0.002))
    );
    assert!(theirs.iter().any(|point| point["target"] == 0.95 && point["interval"] == 2));
    let value = |point: &serde_json::Value, key: &str| point[key].as_f64().unwrap();
    // Nothing gains a tenth per move; at a small price more moves and more balance are bought.
    assert_eq!(value(ours[0], "moves_fraction_mean"), 0.0);
    assert!(value(ours[1], "moves_fraction_mean") > 0.0);
    assert!(value(ours[1], "balancedness_mean") > value(ours[0], "balancedness_mean"));
}

#[test]
fn the_price_paid_is_told_step_by_step_on_average() {
    let trace = shipped();
    let base = ["replay", "--trace", trace.to_str().unwrap(), "--slots", "80", "--gpus", "16"];
    let nodes = ["--nodes", "4", "--groups", "8", "--steps", "60:90", "--interval", "5"];
    let run = |rest: &[&str]| json(&[&base[..], &nodes, rest, &["--json"]].concat());
    let value =
        |report: &serde_json::Value, at: usize, key: &str| report["policies"][at][key].as_f64().unwrap();
    let priced = run(&["--policy", "balanced,static", "--node-price", "0.3"]);
    for at in 0..2 {
        let crossing = value(&priced, at, "crossing_mean");
        assert!(crossing > 0.0 && crossing < 1.0, "{crossing}");
        assert!((value(&priced, at, "price_paid_mean") - 0.3 * crossing).abs() < 1e-12);
    }
    let free = run(&["--policy", "balanced"]);
    assert_eq!(value(&free, 0, "price_paid_mean"), 0.0);
    assert!(
        value(&free, 0, "crossing_mean") > value(&priced, 0, "crossing_mean"),
        "a price makes fewer tokens cross"
    );
    // Whole groups on nodes: nothing crosses.
    let strict = run(&["--policy", "balanced", "--strict"]);
    assert_eq!(value(&strict, 0, "crossing_mean"), 0.0);
    let folder = Folder::new();
    let html = folder.path("report.html");
    let reported = ["--policy", "balanced", "--node-price", "0.3", "--report", html.to_str().unwrap()];
    let told = eplb(&[&base[..], &nodes, &reported].concat());
    names(&String::from_utf8(told.stdout).unwrap(), &["across nodes", "price"]);
    let (crossing, paid) = (value(&priced, 0, "crossing_mean"), value(&priced, 0, "price_paid_mean"));
    let cells = format!("<td>{:.2}%</td><td>{paid:.4}</td>", crossing * 100.0);
    names(&std::fs::read_to_string(&html).unwrap(), &["price paid", &cells]);
    let one_node = eplb(&[&base[..], &["--steps", "60:90", "--policy", "static"]].concat());
    assert!(!String::from_utf8(one_node.stdout).unwrap().contains("across nodes"));
}

#[test]
fn options_go_to_the_policies_that_plan_for_them_and_others_run_without() {
    let trace = shipped();
    let base = ["replay", "--trace", trace.to_str().unwrap(), "--slots", "80", "--gpus", "16"];
    let nodes = ["--nodes", "4", "--groups", "8", "--steps", "60:90", "--interval", "5"];
    let everyone = ["--policy", "incremental,deepseek,static,random,forecast"];
    let run = |rest: &[&str]| json(&[&base[..], &nodes, &everyone, rest, &["--json"]].concat());
    let judged = |report: &serde_json::Value, at: usize| {
        let policy = &report["policies"][at];
        (policy["balancedness_mean"].as_f64(), policy["moves_total"].as_u64())
    };
    let plain = run(&[]);
    for (options, flag) in [
        (&["--node-price", "0.3"][..], "--node-price"),
        (&["--expert-cost", "500"], "--expert-cost"),
        (&["--dispatch", "nearest"], "--dispatch"),
    ] {
        let asked = run(options);
        assert_eq!(asked["policies"][0]["planned_without"].as_array().unwrap().len(), 0);
        assert_ne!(judged(&asked, 0), judged(&plain, 0), "{flag} changes what incremental does");
        for at in 1..5 {
            assert_eq!(asked["policies"][at]["planned_without"], serde_json::json!([flag]));
            assert_eq!(judged(&asked, at), judged(&plain, at), "{flag} changes nothing for the others");
        }
    }
    let told = eplb(&[&base[..], &nodes, &["--policy", "static,incremental", "--node-price", "1"]].concat());
    let told = String::from_utf8(told.stdout).unwrap();
    names(&told, &["static does not plan for --node-price"]);
    assert!(!told.contains("incremental does not plan"), "{told}");
    // Asked for in vain.
    for (policies, option, instead) in [
        (&["--policy", "forecast,static"][..], &["--node-price", "1"][..], "balanced or incremental"),
        (&["--policy", "forecast"], &["--dispatch", "share"], "balanced or incremental"),
        (&["--policy", "incremental,deepseek"], &["--strict"], "add balanced"),
    ] {
        let message = refused(&[&base[..], &nodes, policies, option, &["--json"]].concat());
        names(&message, &[option[0], "changes nothing here", instead, "leave it out"]);
    }
}

#[test]
fn bad_replays_are_refused() {
    let trace = shipped();
    let run = |rest: &[&str]| {
        let mut args =
            vec!["replay", "--trace", trace.to_str().unwrap(), "--slots", "80", "--gpus", "16", "--json"];
        args.extend(rest);
        refused(&args)
    };
    names(&run(&["--policy", "static,best"]), &["best", "balanced"]);
    names(&run(&["--policy", "forecast@0"]), &["forecast@0", "above 0"]);
    names(&run(&["--policy", "forecast", "--move-price=-1"]), &["move_price", "0 or more"]);
    names(&run(&["--policy", "forecast", "--half-life", "0"]), &["half_life"]);
    names(&run(&["--window", "160"]), &["160 steps", "window"]);
    names(&run(&["--interval", "0"]), &["interval"]);
    names(&run(&["--link-gbps", "0"]), &["link-gbps"]);
    names(&run(&["--report", "/no/such/folder/report.html"]), &["report.html"]);
}

#[test]
fn a_plan_is_drawn() {
    let folder = Folder::new();
    let (trace, svg, plan) = (shipped(), folder.path("plan.svg"), folder.path("plan.npz"));
    let base = ["plan", "--loads", trace.to_str().unwrap(), "--slots", "80", "--gpus", "16"];
    assert!(
        eplb(&[&base[..], &["--policy", "static", "--out", plan.to_str().unwrap()]].concat())
            .status
            .success()
    );
    let drawn =
        [&base[..], &["--current", plan.to_str().unwrap(), "--svg", svg.to_str().unwrap(), "--numbers"]];
    assert!(eplb(&drawn.concat()).status.success());
    names(
        &std::fs::read_to_string(&svg).unwrap(),
        &["<svg", "before: balancedness", "after: balancedness", "</svg>"],
    );
}
