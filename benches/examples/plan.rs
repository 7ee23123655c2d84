//! Quality and speed of fresh plans, as the tables of the documentation print them.
//!
//! `cargo run --release -p eplb-benches --example plan`: all shapes. `-- --shape N --rounds R --seed S`: one shape, R
//! rounds, another seed. `-- --count POLICY --shape N [--kind zipf] --rounds R`: plans R times and prints nothing, to
//! be run under `valgrind --tool=callgrind`; the difference between two values of R is what plans cost; POLICY may be
//! `yardstick`.
//!
//! Times are the least of all rounds; every round times the yardstick and each planner in turn, so that all of them
//! meet the same machine.

use std::error::Error;
use std::time::Instant;

use eplb_benches::shapes::{KINDS, SHAPES, Shape};
use eplb_benches::yardstick;
use eplb_core::{LoadMatrix, Topology};
use eplb_plan::{Options, Planner, Policy, Request};

const POLICIES: [Policy; 2] = [Policy::Deepseek, Policy::Balanced];
const THREADS: [usize; 2] = [1, 2];

/// What the command line asks for.
struct Asked {
    shapes: Vec<Shape>,
    rounds: usize,
    seed: u64,
    kind: String,
    count: Option<String>,
}

impl Asked {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut asked =
            Self { shapes: SHAPES.to_vec(), rounds: 15, seed: 0, kind: KINDS[0].into(), count: None };
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
    topology: Topology,
    phy2log: Vec<i32>,
}

impl Case {
    fn new(shape: Shape, kind: &str, seed: u64) -> Result<Self, Box<dyn Error>> {
        let [loads, _] = shape.loads(kind, seed)?;
        let topology = Topology::uniform(shape.ranks, shape.slots)?;
        let phy2log = vec![-1; loads.layers() * shape.slots];
        Ok(Self { shape, loads, topology, phy2log })
    }

    fn yardstick(&mut self) {
        let loads = self.loads.sum().as_slice().unwrap_or_default();
        let Shape { slots, ranks, .. } = self.shape;
        yardstick::place(loads, self.loads.experts(), ranks, slots, &mut self.phy2log);
        std::hint::black_box(&self.phy2log);
    }

    fn plan(&self, planner: &Planner, policy: Policy) -> Result<(), Box<dyn Error>> {
        let options = Options { policy, ..Options::default() };
        std::hint::black_box(planner.place(&Request::new(&self.loads, &self.topology, &options))?);
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
        let mut case = Case::new(asked.shapes[0], &asked.kind, asked.seed)?;
        let planner = Planner::new(1)?;
        for _ in 0..asked.rounds {
            if policy == "yardstick" {
                case.yardstick();
            } else {
                case.plan(&planner, policy.parse()?)?;
            }
        }
        return Ok(());
    }
    println!(
        "| shape | policy | zipf | lognormal | mean | bound | us per layer | x yardstick | x yardstick, 2 threads |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for shape in asked.shapes {
        table_rows(shape, asked.rounds, asked.seed)?;
    }
    Ok(())
}

/// Prints the rows of one shape: a row per policy, times averaged over the kinds of loads.
fn table_rows(shape: Shape, rounds: usize, seed: u64) -> Result<(), Box<dyn Error>> {
    let planners = [Planner::new(THREADS[0])?, Planner::new(THREADS[1])?];
    let mut balance = [[0.0; KINDS.len()]; POLICIES.len()];
    let mut bound = 0.0;
    let mut yard = 0.0;
    let mut time = [[0.0; THREADS.len()]; POLICIES.len()];
    for (k, kind) in KINDS.iter().enumerate() {
        let mut case = Case::new(shape, kind, seed)?;
        let layers = case.loads.layers();
        for (p, &policy) in POLICIES.iter().enumerate() {
            let options = Options { policy, ..Options::default() };
            let plan = planners[0].plan(&Request::new(&case.loads, &case.topology, &options))?;
            balance[p][k] = plan.after.mean;
            bound += plan.bound.mean / (KINDS.len() * POLICIES.len()) as f64;
        }
        let mut least_yard = f64::INFINITY;
        let mut least = [[f64::INFINITY; THREADS.len()]; POLICIES.len()];
        for _ in 0..rounds {
            least_yard = least_yard.min(micros(layers, || {
                case.yardstick();
                Ok(())
            })?);
            for (p, &policy) in POLICIES.iter().enumerate() {
                for (t, planner) in planners.iter().enumerate() {
                    least[p][t] = least[p][t].min(micros(layers, || case.plan(planner, policy))?);
                }
            }
        }
        yard += least_yard;
        for (sums, least) in time.as_flattened_mut().iter_mut().zip(least.as_flattened()) {
            *sums += least;
        }
    }
    println!("| {} | yardstick | | | | {bound:.4} | {:.1} | 1 | |", shape.name(), yard / KINDS.len() as f64);
    for (p, policy) in POLICIES.iter().enumerate() {
        let [zipf, lognormal] = balance[p];
        println!(
            "| | {policy} | {zipf:.5} | {lognormal:.5} | {:.5} | | {:.1} | {:.2} | {:.2} |",
            (zipf + lognormal) / 2.0,
            time[p][0] / KINDS.len() as f64,
            time[p][0] / yard,
            time[p][1] / yard,
        );
    }
    Ok(())
}
