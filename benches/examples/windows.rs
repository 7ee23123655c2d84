//! Plans for steps to come: `forecast` beside vLLM's planner and a plain hill climb, on the same steps.
//!
//! `cargo run --release -p eplb-benches --example windows -- FOLDER [WORD ..]`, where FOLDER holds recorded domains of two models
//! (`A_<domain>.npz`, `B_<domain>.npz`) and a day of mixed traffic (`A_day.npz`). Words choose traffic (`day`, `tuning`,
//! `held-out`), model (`A`, `B`) and planner (`vllm`, `climb`, `forecast`, and only if asked for: `drift`, `forecast` with the drift of
//! the window carried on; `mean`, with the mean of the window in place of its steps; `equal`, with steps that weigh the same; `trusting`,
//! without shrinkage); without a word of a kind, all of it. The plain hill climb takes minutes on model B.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use eplb_benches::{hill_climb, sequences};
use eplb_core::{LoadMatrix, Placement, Topology};
use eplb_plan::{Options, PlanError, Planner, Policy, Request, Window};
use eplb_sim::{PolicyRun, Replay, ReplayError};
use eplb_trace::Trace;

/// Domains that defaults were chosen on, and those that were only ever reported on.
const A: [[&str; 4]; 2] = [["cpp", "de", "en_docs", "json_xml"], ["prose", "python", "sql", "zh"]];
const B: [[&str; 3]; 2] = [["cpp", "de", "en_docs"], ["prose", "python", "zh"]];

/// Steps that the first plan is made from, and that plans look back on.
const WINDOW: NonZeroUsize = NonZeroUsize::new(20).unwrap();

/// Prices of a move.
const PRICES: [f64; 4] = [0.003, 0.0015, 0.0008, 0.0004];

/// Parts of a drift that are carried on, beside none.
const DRIFTS: [f64; 2] = [0.5, 1.0];

/// Planners, and those that are only there if asked for.
const PLANNERS: [&str; 7] = ["vllm", "climb", "forecast", "drift", "mean", "equal", "trusting"];
const ASKED_FOR: &[&str] = PLANNERS.split_at(3).1;

/// What `forecast` looks at under one of these names.
fn windows(name: &str) -> Vec<Window> {
    let usual = Window::default();
    match name {
        "drift" => DRIFTS.map(|drift| Window { drift, ..usual.clone() }).to_vec(),
        "mean" => vec![Window { scenarios: 1, ..usual }],
        "equal" => vec![Window { half_life: f64::INFINITY, ..usual }],
        "trusting" => vec![Window { shrinkage: 0.0, ..usual }],
        _ => vec![usual],
    }
}

/// Target and interval of the hill climb.
const CLIMBS: [(f64, usize); 3] = [(0.95, 20), (0.95, 2), (0.98, 5)];

/// What to print.
#[derive(Debug)]
struct Wanted(Vec<String>);

impl Wanted {
    /// Whether `word`, one of `kind`, is asked for.
    fn has(&self, kind: &[&str], word: &str) -> bool {
        let asked = |word: &str| self.0.iter().any(|w| w == word);
        asked(word) || !kind.iter().any(|word| asked(word))
    }

    fn traffic(&self, word: &str) -> bool {
        self.has(&["day", "tuning", "held-out"], word)
    }

    fn model(&self, word: &str) -> bool {
        self.has(&["A", "B"], word)
    }

    fn planner(&self, word: &str) -> bool {
        self.has(&PLANNERS, word) && (!ASKED_FOR.contains(&word) || self.0.iter().any(|w| w == word))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("give the folder of the traces")?);
    let wanted = Wanted(args.collect());
    if wanted.traffic("day") && wanted.model("A") {
        compare("A_day", &[Trace::open(folder.join("A_day.npz"))?], 16, 80, &wanted)?;
    }
    for (half, name) in ["tuning", "held-out"].into_iter().enumerate() {
        if wanted.traffic(name) {
            models(&folder, half, name, &wanted)?;
        }
    }
    Ok(())
}

fn models(folder: &Path, half: usize, name: &str, wanted: &Wanted) -> Result<(), Box<dyn Error>> {
    for (model, domains, ranks, slots) in [("A", &A[half][..], 16, 80), ("B", &B[half][..], 32, 288)] {
        if !wanted.model(model) {
            continue;
        }
        let open = |domain: &&str| Trace::open(folder.join(format!("{model}_{domain}.npz")));
        let domains = domains.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let mixtures =
            (1..=3).map(|seed| sequences::mixture(&domains, seed)).collect::<Result<Vec<_>, _>>()?;
        let turns = [sequences::in_turn(&domains)?];
        compare(&format!("{model}, {name} half, mixtures"), &mixtures, ranks, slots, wanted)?;
        compare(&format!("{model}, {name} half, in turn"), &turns, ranks, slots, wanted)?;
    }
    Ok(())
}

/// Prints one row per planner: means over the traces.
fn compare(
    title: &str,
    traces: &[Trace],
    ranks: usize,
    slots: usize,
    wanted: &Wanted,
) -> Result<(), Box<dyn Error>> {
    let topology = Topology::uniform(ranks, slots)?;
    let replay = Replay { topology, window: WINDOW, expert_bytes: 1, link_gbps: 1.0 };
    let planner = Planner::new(1)?;
    println!("\n{title}: {ranks} ranks, {slots} slots");
    println!(
        "| planner | every | balancedness | by share | slots moved per step | ms per plan |\n|---|---|---|---|---|---|"
    );
    let row = |name: &str, every: usize, plan: &dyn Fn(&LoadMatrix, Option<&Placement>) -> Placed| {
        let interval = NonZeroUsize::new(every).unwrap_or(NonZeroUsize::MIN);
        let runs = traces
            .iter()
            .map(|trace| replay.follow(trace, name, interval, &mut |l, c| plan(l, c), &mut || ()))
            .collect::<Result<Vec<PolicyRun>, ReplayError>>()?;
        let mean = |value: fn(&PolicyRun) -> f64| runs.iter().map(value).sum::<f64>() / runs.len() as f64;
        println!(
            "| {name} | {every} | {:.4} | {:.4} | {:.3}% | {:.2} |",
            mean(PolicyRun::mean),
            mean(PolicyRun::mean_share),
            mean(PolicyRun::moves_fraction) * 100.0,
            mean(PolicyRun::plan_ms_median)
        );
        Ok::<_, ReplayError>(())
    };
    let ours = |options: &Options, loads: &LoadMatrix, current: Option<&Placement>| {
        let mut request = Request::new(loads, &replay.topology, options);
        request.current = current;
        planner.place(&request)
    };
    let vllm = Options { policy: Policy::Deepseek, ..Options::default() };
    if wanted.planner("vllm") {
        row("vLLM's", 20, &|loads, current| ours(&vllm, loads, current))?;
    }
    for (target, every) in CLIMBS.into_iter().filter(|_| wanted.planner("climb")) {
        row(&format!("hill climb to {target}"), every, &|loads, current| match current {
            None => ours(&vllm, loads, None),
            Some(current) => climb(loads, current, ranks, target),
        })?;
    }
    for name in PLANNERS.into_iter().skip(2).filter(|name| wanted.planner(name)) {
        for window in windows(name) {
            for move_price in PRICES {
                let options = Options {
                    policy: Policy::Forecast,
                    move_price,
                    window: window.clone(),
                    ..Options::default()
                };
                let kind = match name {
                    "drift" => format!(", drift {}", window.drift),
                    "forecast" => String::new(),
                    _ => format!(", {name}"),
                };
                row(&format!("forecast, price {move_price}{kind}"), 1, &|l, c| ours(&options, l, c))?;
            }
        }
    }
    Ok(())
}

type Placed = Result<Placement, PlanError>;

fn climb(loads: &LoadMatrix, current: &Placement, ranks: usize, target: f64) -> Placed {
    let mut phy2log = current.phy2log().to_owned();
    for (row, mut slots) in loads.sum().rows().into_iter().zip(phy2log.rows_mut()) {
        if let (Some(row), Some(slots)) = (row.as_slice(), slots.as_slice_mut()) {
            hill_climb::climb_layer(row, ranks, target, slots);
        }
    }
    Ok(Placement::new(current.experts(), phy2log)?)
}
