//! Plans for other objectives than tokens at even split, as the tables of the documentation print them.
//!
//! `cargo run --release -p eplb-benches --example objectives`: DeepSeek-V3's shape on 288 slots of 32 ranks in 4 nodes with 8
//! groups. `-- --loads FILE.npy`: the first step of other loads. `-- --rounds R`: least time of R rounds. `-- --only NAME`: the
//! plans whose name has NAME in it, and `balanced`. `-- --count NAME --rounds R`: plans the first of these R times for the first
//! loads and prints nothing, to be run under `valgrind --tool=callgrind`; the difference between two values of R is what one
//! plan costs.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use eplb_benches::shapes::{KINDS, Shape};
use eplb_core::{LoadMatrix, Topology};
use eplb_plan::{CostModel, Dispatch, NodeRule, Options, Planner, Policy, Request};
use eplb_trace::Trace;

/// Time of a slot with tokens, in tokens: about the tokens that an expert gets.
const PER_EXPERT: f64 = 2000.0;

/// Names and options of what is planned.
fn rules() -> Vec<(String, Options)> {
    let base = Options { groups: 8, ..Options::default() };
    let mut rules = vec![("balanced".into(), base.clone())];
    rules.push(("deepseek".into(), Options { policy: Policy::Deepseek, ..base.clone() }));
    rules.push(("strict".into(), Options { nodes: NodeRule::Strict, ..base.clone() }));
    for price in [3.0, 1.0, 0.3, 0.1, 0.02] {
        rules.push((
            format!("node price {price}"),
            Options { nodes: NodeRule::Priced(price), ..base.clone() },
        ));
    }
    rules.push(("hottest expert everywhere".into(), Options { replicate_top: 1, ..base.clone() }));
    let cost = CostModel { per_expert: PER_EXPERT, per_token: 1.0 };
    for dispatch in Dispatch::ALL {
        rules.push((format!("{dispatch} dispatch"), Options { dispatch: *dispatch, ..base.clone() }));
    }
    rules.push(("2000 tokens per active expert".into(), Options { cost, ..base }));
    rules
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut loads, mut rounds) = (None::<PathBuf>, 3);
    let (mut only, mut count) = (String::new(), None::<String>);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--loads" => loads = Some(value()?.into()),
            "--rounds" => rounds = value()?.parse()?,
            "--only" => only = value()?,
            "--count" => count = Some(value()?),
            _ => return Err(format!("unknown option {word}").into()),
        }
    }
    if let Some(name) = count {
        return repeat(&name, rounds);
    }
    println!(
        "| loads | plan | balance | at the best split | of times | tokens across nodes | price paid | bound of strict | x balanced |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    if let Some(path) = loads {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return print(&name, &Trace::open(&path)?.loads(0..1)?, &only, rounds);
    }
    for kind in KINDS {
        let [loads, _] = SHAPE.loads(kind, 0)?;
        print(kind, &loads, &only, rounds)?;
    }
    Ok(())
}

const SHAPE: Shape = Shape { model: "dsv3", slots: 288, ranks: 32 };

fn cluster() -> Result<Topology, Box<dyn Error>> {
    Ok(Topology::uniform(SHAPE.ranks, SHAPE.slots)?.with_nodes(4)?)
}

/// Makes one of the plans again and again.
fn repeat(name: &str, rounds: usize) -> Result<(), Box<dyn Error>> {
    let (planner, topology) = (Planner::new(1)?, cluster()?);
    let [loads, _] = SHAPE.loads(KINDS[0], 0)?;
    let (_, options) =
        rules().into_iter().find(|(rule, _)| rule.contains(name)).ok_or("no plan has that name")?;
    for _ in 0..rounds {
        std::hint::black_box(planner.place(&Request::new(&loads, &topology, &options))?);
    }
    Ok(())
}

fn print(name: &str, loads: &LoadMatrix, only: &str, rounds: usize) -> Result<(), Box<dyn Error>> {
    let topology = cluster()?;
    let planner = Planner::new(1)?;
    let mut balanced = f64::NAN;
    for (rule, options) in rules().into_iter().filter(|(rule, _)| rule == "balanced" || rule.contains(only)) {
        let request = Request::new(loads, &topology, &options);
        let mut least = f64::INFINITY;
        for _ in 0..rounds {
            let start = Instant::now();
            std::hint::black_box(planner.place(&request)?);
            least = least.min(start.elapsed().as_secs_f64());
        }
        balanced = if balanced.is_nan() { least } else { balanced };
        let plan = planner.plan(&request)?;
        let crossing = plan.predicted.mean_crossing();
        let paid = match options.nodes {
            NodeRule::Priced(price) => format!("{:.4}", price * crossing),
            _ => String::new(),
        };
        println!(
            "| {name} | {rule} | {:.4} | {:.4} | {:.4} | {:.2}% | {paid} | {} | {:.1} |",
            plan.after.mean,
            plan.after_share.mean,
            plan.predicted.balance.mean,
            crossing * 100.0,
            plan.strict_bound.as_ref().map_or(String::new(), |bound| format!("{:.4}", bound.mean)),
            least / balanced,
        );
    }
    Ok(())
}
