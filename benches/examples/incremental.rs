//! Moves that `incremental` needs for a wanted balance after a drift, and what it costs.
//!
//! `cargo run --release -p eplb-benches --example incremental`: generated loads. `-- --loads FILE.npy --shape N`: loads
//! of two steps from a file, before and after. `-- --shape N --rounds R --seed S --target B`: one shape, R rounds, another
//! seed, one target; `--slots P --ranks G` after `--shape` puts its model on other slots and ranks. `-- --count --shape N --target B --rounds R`: plans R times and prints nothing, to be run under
//! `valgrind --tool=callgrind`.
//!
//! The placement in force is the global `deepseek` plan of the loads before. Times are the least of all rounds; every
//! round times the yardstick and the planner in turn, so that both meet the same machine.

use std::error::Error;
use std::time::Instant;

use eplb_benches::shapes::{KINDS, SHAPES, Shape};
use eplb_benches::yardstick;
use eplb_core::{LoadMatrix, Placement, Topology};
use eplb_plan::{Options, Planner, Policy, Request};
use eplb_trace::Trace;

/// What the command line asks for.
struct Asked {
    shapes: Vec<Shape>,
    rounds: usize,
    seed: u64,
    targets: Vec<f64>,
    files: Vec<String>,
    count: bool,
}

impl Asked {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut asked = Self {
            shapes: SHAPES.to_vec(),
            rounds: 15,
            seed: 0,
            targets: vec![0.90, 0.95, 0.98],
            files: Vec::new(),
            count: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--shape" => {
                    let n: usize = value()?.parse()?;
                    asked.shapes = vec![*SHAPES.get(n).ok_or(format!("shapes are 0..{}", SHAPES.len()))?];
                }
                "--slots" => {
                    let slots: usize = value()?.parse()?;
                    asked.shapes.iter_mut().for_each(|shape| shape.slots = slots);
                }
                "--ranks" => {
                    let ranks: usize = value()?.parse()?;
                    asked.shapes.iter_mut().for_each(|shape| shape.ranks = ranks);
                }
                "--rounds" => asked.rounds = value()?.parse()?,
                "--seed" => asked.seed = value()?.parse()?,
                "--target" => asked.targets = vec![value()?.parse()?],
                "--loads" => asked.files.push(value()?),
                "--count" => asked.count = true,
                _ => return Err(format!("unknown option {word}").into()),
            }
        }
        Ok(asked)
    }
}

/// One shape and kind of loads after a drift.
struct Case {
    shape: Shape,
    kind: String,
    loads: LoadMatrix,
    topology: Topology,
    current: Placement,
    phy2log: Vec<i32>,
}

impl Case {
    fn new(shape: Shape, kind: &str, [before, loads]: [LoadMatrix; 2]) -> Result<Self, Box<dyn Error>> {
        let topology = Topology::uniform(shape.ranks, shape.slots)?;
        let options = Options { policy: Policy::Deepseek, ..Options::default() };
        let current = Planner::new(1)?.place(&Request::new(&before, &topology, &options))?;
        let phy2log = vec![-1; loads.layers() * shape.slots];
        Ok(Self { shape, kind: kind.into(), loads, topology, current, phy2log })
    }

    fn yardstick(&mut self) {
        let loads = self.loads.sum().as_slice().unwrap_or_default();
        let Shape { slots, ranks, .. } = self.shape;
        yardstick::place(loads, self.loads.experts(), ranks, slots, &mut self.phy2log);
        std::hint::black_box(&self.phy2log);
    }

    fn options(target: f64) -> Options {
        Options { policy: Policy::Incremental, target: Some(target), ..Options::default() }
    }

    fn plan(&self, planner: &Planner, target: f64) -> Result<(), Box<dyn Error>> {
        let options = Self::options(target);
        let request = Request::new(&self.loads, &self.topology, &options).with_current(&self.current);
        std::hint::black_box(planner.place(&request)?);
        Ok(())
    }

    /// Prints a row per target.
    fn rows(&mut self, targets: &[f64], rounds: usize) -> Result<(), Box<dyn Error>> {
        let planner = Planner::new(1)?;
        let layers = self.loads.layers() as f64;
        for &target in targets {
            let options = Self::options(target);
            let request = Request::new(&self.loads, &self.topology, &options).with_current(&self.current);
            let plan = planner.plan(&request)?;
            let (mut yard, mut least) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..rounds {
                let start = Instant::now();
                self.yardstick();
                yard = yard.min(start.elapsed().as_secs_f64() * 1e6 / layers);
                let start = Instant::now();
                self.plan(&planner, target)?;
                least = least.min(start.elapsed().as_secs_f64() * 1e6 / layers);
            }
            println!(
                "| {} | {} | {:.4} | {target} | {:.4} | {:.4} | {:.4} | {:.2}% | {least:.1} | {:.2} |",
                self.shape.name(),
                self.kind,
                plan.before.as_ref().map_or(0.0, |before| before.mean),
                plan.after.mean,
                plan.after_share.mean,
                plan.bound.mean,
                plan.changes.map_or(0, |changes| changes.moves) as f64 / plan.total_slots() as f64 * 100.0,
                least / yard,
            );
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let asked = Asked::parse()?;
    let mut cases = Vec::new();
    for &shape in &asked.shapes {
        for kind in KINDS.iter().filter(|_| asked.files.is_empty()) {
            cases.push(Case::new(shape, kind, shape.loads(kind, asked.seed)?)?);
        }
        for file in &asked.files {
            let trace = Trace::open(file)?;
            cases.push(Case::new(shape, file, [trace.loads(0..1)?, trace.loads(1..2)?])?);
        }
    }
    if asked.count {
        let planner = Planner::new(1)?;
        for _ in 0..asked.rounds {
            cases[0].plan(&planner, asked.targets[0])?;
        }
        return Ok(());
    }
    println!(
        "| shape | loads | before | target | balancedness | at the best split | bound | moved | us per layer | x yardstick |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for case in &mut cases {
        case.rows(&asked.targets, asked.rounds)?;
    }
    Ok(())
}
