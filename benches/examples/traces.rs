//! Fresh plans for recorded routing: what `balanced` reaches on each file of a folder, beside `deepseek` and the bound.
//!
//! `cargo run --release -p eplb-benches --example traces -- FOLDER [A|B]`, where FOLDER holds recorded domains of two models,
//! `A_<domain>.npz` (planned with 80 slots on 16 ranks) and `B_<domain>.npz` (320 slots on 64 ranks). Plans are made for and
//! scored on the sum of all steps, and on each window of 20 steps.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use eplb_core::Topology;
use eplb_plan::{Options, Plan, Planner, Policy, Request};
use eplb_trace::Trace;

/// First letter of the files of a model, slots, ranks.
const MODELS: [(&str, usize, usize); 2] = [("A", 80, 16), ("B", 320, 64)];

/// Steps of a short window.
const WINDOW: NonZeroUsize = NonZeroUsize::new(20).unwrap();

/// Mean and least balancedness of plans for several windows.
#[derive(Debug)]
struct Tally {
    sum: f64,
    plans: usize,
    least: f64,
}

impl Tally {
    fn add(&mut self, plan: &Plan) {
        self.sum += plan.after.mean;
        self.plans += 1;
        self.least = self.least.min(plan.after.min);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("give the folder of the traces")?);
    let only = args.next();
    println!(
        "| trace | slots | ranks | deepseek | balanced | its least layer | at the best split | bound | its least layer | balanced, {WINDOW} steps | its least layer |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (model, slots, ranks) in MODELS {
        if only.as_ref().is_some_and(|only| only != model) {
            continue;
        }
        for file in files(&folder, model)? {
            println!("{}", row(&file, slots, ranks)?);
        }
    }
    Ok(())
}

/// The recorded domains of a model, by name; samples of single tokens are another kind of file.
fn files(folder: &Path, model: &str) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(&format!("{model}_")) && name.ends_with(".npz") && !name.contains("_topk_") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn row(file: &Path, slots: usize, ranks: usize) -> Result<String, Box<dyn Error>> {
    let trace = Trace::open(file)?;
    let topology = Topology::uniform(ranks, slots)?;
    let planner = Planner::new(1)?;
    let plan = |policy, steps| -> Result<Plan, Box<dyn Error>> {
        let (loads, options) = (trace.loads(steps)?, Options { policy, ..Options::default() });
        Ok(planner.plan(&Request::new(&loads, &topology, &options))?)
    };
    let all = 0..trace.steps();
    let deepseek = plan(Policy::Deepseek, all.clone())?;
    let balanced = plan(Policy::Balanced, all)?;
    let mut short = Tally { sum: 0.0, plans: 0, least: 1.0 };
    for window in trace.windows(WINDOW) {
        short.add(&plan(Policy::Balanced, window)?);
    }
    Ok(format!(
        "| {} | {slots} | {ranks} | {:.4} | {:.5} | {:.5} | {:.5} | {:.5} | {:.5} | {:.5} | {:.4} |",
        file.file_stem().and_then(|name| name.to_str()).unwrap_or_default(),
        deepseek.after.mean,
        balanced.after.mean,
        balanced.after.min,
        balanced.after_share.mean,
        balanced.bound.mean,
        balanced.bound.min,
        short.sum / short.plans as f64,
        short.least,
    ))
}
