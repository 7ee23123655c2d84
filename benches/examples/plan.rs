//! Quality and speed of fresh plans, as the tables of the documentation print them.
//!
//! `cargo run --release -p eplb-benches --example plan`: all shapes. `-- --shape N --rounds R --seed S`: one shape, R
//! rounds, another seed. `-- --loads FOLDER`: not the generator's loads but those in `FOLDER/<model>_<kind>.npy`, two
//! steps each. `-- --count POLICY --shape N [--kind zipf] --rounds R`: plans R times and prints nothing, to
//! be run under `valgrind --tool=callgrind`; the difference between two values of R is what plans cost; POLICY may be
//! `yardstick`.
//!
//! Times are the least of all rounds; every round times the yardstick and each planner in turn, so that all of them
//! meet the same machine.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use eplb_benches::shapes::{KINDS, SHAPES, Shape};
use eplb_benches::yardstick;
use eplb_core::{LoadMatrix, Placement, Topology};
use eplb_plan::{Options, Planner, Policy, Request};

/// What is planned: fresh plans, and from the `deepseek` plan of the loads before a drift to this balancedness.
const PLANS: [(Policy, Option<f64>); 3] =
    [(Policy::Deepseek, None), (Policy::Balanced, None), (Policy::Incremental, Some(0.95))];
/// Shapes after which `incremental` is asked too; `incremental` has an example of its own.
const DRIFTED: usize = 2;
const THREADS: [usize; 2] = [1, 2];

/// What the command line asks for.
struct Asked {
    shapes: Vec<Shape>,
    rounds: usize,
    seed: u64,
    loads: Option<String>,
    kind: String,
    count: Option<String>,
}

impl Asked {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut asked = Self {
            shapes: SHAPES.to_vec(),
            rounds: 15,
            seed: 0,
            loads: None,
            kind: KINDS[0].into(),
            count: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--shape" => {
                    let n: usize = value()?.parse()?;
                    asked.shapes = vec![*SHAPES.get(n).ok_or(format!("shapes are 0..{}", SHAPES.len()))?];
                }
                "--rounds" => asked.rounds = value()?.parse()?,
                "--seed" => asked.seed = value()?.parse()?,
                "--loads" => asked.loads = Some(value()?),
                "--kind" => asked.kind = value()?,
                "--count" => asked.count = Some(value()?),
                _ => return Err(format!("unknown option {word}").into()),
            }
        }
        Ok(asked)
    }
}

/// One shape and kind of loads.
struct Case {
    shape: Shape,
    loads: LoadMatrix,
    after: LoadMatrix,
    topology: Topology,
    /// The `deepseek` plan of the loads before a drift.
    stale: Placement,
    phy2log: Vec<i32>,
}

impl Case {
    fn new(shape: Shape, kind: &str, asked: &Asked) -> Result<Self, Box<dyn Error>> {
        let [before, after] = match &asked.loads {
            Some(folder) => shape.loads_in(Path::new(folder), kind)?,
            None => shape.loads(kind, asked.seed)?,
        };
        let topology = Topology::uniform(shape.ranks, shape.slots)?;
        let options = Options { policy: Policy::Deepseek, ..Options::default() };
        let stale = Planner::new(1)?.place(&Request::new(&before, &topology, &options))?;
        // `incremental` plans for the loads after the drift, the others for those before.
        let phy2log = vec![-1; before.layers() * shape.slots];
        Ok(Self { shape, loads: before, after, topology, stale, phy2log })
    }

    fn yardstick(&mut self) {
        let loads = self.loads.sum().as_slice().unwrap_or_default();
        let Shape { slots, ranks, .. } = self.shape;
        yardstick::place(loads, self.loads.experts(), ranks, slots, &mut self.phy2log);
        std::hint::black_box(&self.phy2log);
    }

    /// Hands the request of a row to `ask`.
    fn ask<R>(&self, (policy, target): (Policy, Option<f64>), ask: impl FnOnce(&Request<'_>) -> R) -> R {
        let options = Options { policy, target, ..Options::default() };
        if target.is_some() {
            ask(&Request::new(&self.after, &self.topology, &options).with_current(&self.stale))
        } else {
            ask(&Request::new(&self.loads, &self.topology, &options))
        }
    }

    fn plan(&self, planner: &Planner, row: (Policy, Option<f64>)) -> Result<(), Box<dyn Error>> {
        std::hint::black_box(self.ask(row, |request| planner.place(request))?);
        Ok(())
    }
}

/// Microseconds per layer of one run.
fn micros(layers: usize, run: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed().as_secs_f64() * 1e6 / layers as f64)
}

fn main() -> Result<(), Box<dyn Error>> {
    let asked = Asked::parse()?;
    if let Some(policy) = &asked.count {
        let mut case = Case::new(asked.shapes[0], &asked.kind, &asked)?;
        let planner = Planner::new(1)?;
        for _ in 0..asked.rounds {
            if policy == "yardstick" {
                case.yardstick();
            } else {
                case.plan(&planner, (policy.parse()?, None))?;
            }
        }
        return Ok(());
    }
    println!(
        "| shape | policy | zipf | lognormal | mean | mean at the best split | moved | us per layer | x yardstick | x yardstick, 2 threads |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (n, &shape) in asked.shapes.iter().enumerate() {
        let plans = if SHAPES.iter().position(|&s| s == shape).unwrap_or(n) < DRIFTED { 3 } else { 2 };
        table_rows(shape, &PLANS[..plans], &asked)?;
    }
    Ok(())
}

/// Prints the rows of one shape: a row per plan, everything averaged over the kinds of loads.
fn table_rows(shape: Shape, plans: &[(Policy, Option<f64>)], asked: &Asked) -> Result<(), Box<dyn Error>> {
    let planners = [Planner::new(THREADS[0])?, Planner::new(THREADS[1])?];
    let kinds = KINDS.len() as f64;
    let mut rows = [Row::default(); PLANS.len()];
    let mut bound = [0.0; KINDS.len()];
    let mut yard = 0.0;
    for (k, kind) in KINDS.iter().enumerate() {
        let mut case = Case::new(shape, kind, asked)?;
        let layers = case.loads.layers();
        for (row, &asked) in rows.iter_mut().zip(plans) {
            let plan = case.ask(asked, |request| planners[0].plan(request))?;
            row.balance[k] = plan.after.mean;
            row.split += plan.after_share.mean / kinds;
            row.moved = plan
                .changes
                .map(|c| row.moved.unwrap_or(0.0) + c.moves as f64 / plan.total_slots() as f64 / kinds);
            if asked.1.is_none() {
                bound[k] = plan.bound.mean;
            }
        }
        let mut least_yard = f64::INFINITY;
        let mut least = [[f64::INFINITY; THREADS.len()]; PLANS.len()];
        for _ in 0..asked.rounds {
            least_yard = least_yard.min(micros(layers, || {
                case.yardstick();
                Ok(())
            })?);
            for (least, &row) in least.iter_mut().zip(plans) {
                for (least, planner) in least.iter_mut().zip(&planners) {
                    *least = least.min(micros(layers, || case.plan(planner, row))?);
                }
            }
        }
        yard += least_yard;
        for (row, least) in rows.iter_mut().zip(least) {
            row.time.iter_mut().zip(least).for_each(|(sum, least)| *sum += least);
        }
    }
    println!("| {} | yardstick | | | | | | {:.1} | 1 | |", shape.name(), yard / kinds);
    let [zipf, lognormal] = bound;
    println!("| | bound | {zipf:.5} | {lognormal:.5} | {:.5} | | | | | |", (zipf + lognormal) / 2.0);
    for (row, (policy, target)) in rows.iter().zip(plans) {
        let [zipf, lognormal] = row.balance;
        println!(
            "| | {policy}{} | {zipf:.5} | {lognormal:.5} | {:.5} | {:.5} | {} | {:.1} | {:.2} | {:.2} |",
            target.map_or(String::new(), |target| format!(" to {target}")),
            (zipf + lognormal) / 2.0,
            row.split,
            row.moved.map_or(String::new(), |moved| format!("{:.2}%", moved * 100.0)),
            row.time[0] / kinds,
            row.time[0] / yard,
            row.time[1] / yard,
        );
    }
    Ok(())
}

/// What one plan reaches and takes.
#[derive(Debug, Default, Clone, Copy)]
struct Row {
    /// Balancedness at even split, by kind of loads.
    balance: [f64; KINDS.len()],
    /// Balancedness at the best split of the same placement.
    split: f64,
    /// Part of all slots.
    moved: Option<f64>,
    /// Microseconds per layer, summed over the kinds.
    time: [f64; THREADS.len()],
}
