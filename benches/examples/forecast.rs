//! What a plan of `forecast` costs, beside the yardstick on the same loads.
//!
//! `cargo run --release -p eplb-benches --example forecast`: generated loads of 21 steps for the first two shapes and model A's
//! recorded size (26 x 64, 80 slots, 16 ranks), drifting by exp(0.05 N(0,1)) per step. The placement in force is the plan for the
//! twenty steps up to one before, as in a server that plans at every step. Times are the least of all rounds, which take turns; the yardstick plans for the summed window.
//! `-- --rounds R`: R rounds. `-- --count forecast|yardstick --shape N --rounds R`: runs R times on power-law loads and prints
//! nothing, to be run under `valgrind --tool=callgrind`; the difference between two values of R is what one plan costs.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use eplb_benches::shapes::{KINDS, SHAPES, Shape};
use eplb_benches::yardstick;
use eplb_core::{LoadMatrix, Placement, Topology};
use eplb_plan::{Options, Planner, Policy, Request};
use eplb_trace::generate::Spec;

/// Steps of the window.
const WINDOW: usize = 20;

/// Drift of a step: exp(0.05 N(0,1)). Windows of ten steps of the recorded domains differ about as much as with this.
const DRIFT: f64 = 0.05;

/// Layers and experts of a small model, where a shape does not name one.
const SMALL: (usize, usize) = (26, 64);

/// A window of loads and what is in place.
struct Case {
    shape: Shape,
    loads: LoadMatrix,
    topology: Topology,
    current: Placement,
    planner: Planner,
    phy2log: Vec<i32>,
}

impl Case {
    fn new(shape: Shape, kind: &str) -> Result<Self, Box<dyn Error>> {
        let model = if shape.model == "small" { "dsv3" } else { shape.model };
        let spec = Spec::preset(&format!("{model}-{kind}")).ok_or("no such preset")?;
        let (layers, experts) = if shape.model == "small" { SMALL } else { (spec.layers, spec.experts) };
        let trace = Spec { steps: WINDOW + 1, layers, experts, drift: DRIFT, ..spec }.generate()?;
        let (planner, topology) = (Planner::new(1)?, Topology::uniform(shape.ranks, shape.slots)?);
        let first = trace.loads(0..WINDOW)?;
        let options = Options { policy: Policy::Forecast, ..Options::default() };
        let current = planner.place(&Request::new(&first, &topology, &options))?;
        let loads = trace.loads(1..WINDOW + 1)?;
        let phy2log = vec![-1; loads.layers() * shape.slots];
        Ok(Self { shape, loads, topology, current, planner, phy2log })
    }

    fn yardstick(&mut self) {
        let loads = self.loads.sum().as_slice().unwrap_or_default();
        let Shape { slots, ranks, .. } = self.shape;
        yardstick::place(loads, self.loads.experts(), ranks, slots, &mut self.phy2log);
        black_box(&self.phy2log);
    }

    fn forecast(&self) -> Result<(), Box<dyn Error>> {
        let options = Options { policy: Policy::Forecast, ..Options::default() };
        let request = Request::new(&self.loads, &self.topology, &options).with_current(&self.current);
        black_box(self.planner.place(&request)?);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut rounds, mut count, mut nth) = (9usize, None::<String>, 0usize);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--rounds" => rounds = value()?.parse()?,
            "--count" => count = Some(value()?),
            "--shape" => nth = value()?.parse()?,
            _ => return Err(format!("unknown option {word}").into()),
        }
    }
    let shapes = [SHAPES[0], SHAPES[1], Shape { model: "small", slots: 80, ranks: 16 }];
    if let Some(who) = count {
        let mut case = Case::new(*shapes.get(nth).ok_or("shapes are 0..3")?, KINDS[0])?;
        for _ in 0..rounds {
            match who.as_str() {
                "forecast" => case.forecast()?,
                "yardstick" => case.yardstick(),
                _ => return Err("--count takes forecast or yardstick".into()),
            }
        }
        return Ok(());
    }
    println!("| shape | loads | us per layer | yardstick, us per layer | x yardstick |");
    println!("|---|---|---|---|---|");
    for shape in shapes {
        for kind in KINDS {
            let mut case = Case::new(shape, kind)?;
            let (mut ours, mut yard) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..rounds {
                let start = Instant::now();
                case.yardstick();
                yard = yard.min(start.elapsed().as_secs_f64());
                let start = Instant::now();
                case.forecast()?;
                ours = ours.min(start.elapsed().as_secs_f64());
            }
            let layers = case.loads.layers() as f64 / 1e6;
            println!(
                "| {} | {kind} | {:.0} | {:.1} | {:.1} |",
                shape.name(),
                ours / layers,
                yard / layers,
                ours / yard
            );
        }
    }
    Ok(())
}
