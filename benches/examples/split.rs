//! What solving the split again is worth without a single move, and what it costs, as the tables of the documentation
//! print it.
//!
//! `cargo run --release -p eplb-benches --example split`: a plan for one step; even split and solved split on the step
//! after, the best that a cut proves for that plan and any split, and times of `split` and `deepseek` on the same loads. `-- --loads FILE.npy`: other loads, `[2, L, E]`.
//! `-- --count split|deepseek --rounds R`: runs R times on the first case and prints nothing, to be run under `valgrind
//! --tool=callgrind`; the difference between two values of R is what one run costs.
//!
//! Times are the least of all rounds, which take turns.

use std::error::Error;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use eplb_benches::shapes::{KINDS, Shape};
use eplb_core::metrics::{Balance, balancedness};
use eplb_core::{LayerId, LoadMatrix, Placement, Topology};
use eplb_plan::split::{SplitScratch, Splitter, cut_bound};
use eplb_plan::{Options, Planner, Policy, Request};
use eplb_trace::Trace;

/// Slots and ranks that DeepSeek-V3's 256 experts are measured on.
const CLUSTERS: [(usize, usize); 2] = [(320, 32), (288, 32)];

/// What the command line asks for.
struct Asked {
    loads: Option<PathBuf>,
    rounds: usize,
    count: Option<String>,
}

impl Asked {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut asked = Self { loads: None, rounds: 25, count: None };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--loads" => asked.loads = Some(value()?.into()),
                "--rounds" => asked.rounds = value()?.parse()?,
                "--count" => asked.count = Some(value()?),
                _ => return Err(format!("unknown option {word}").into()),
            }
        }
        Ok(asked)
    }

    fn loads(&self) -> Result<Vec<Loads>, Box<dyn Error>> {
        let Some(path) = &self.loads else {
            let shape = Shape { model: "dsv3", slots: 0, ranks: 0 };
            return KINDS.iter().map(|kind| Ok(((*kind).to_owned(), shape.loads(kind, 0)?))).collect();
        };
        let trace = Trace::open(path)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(vec![(name, [trace.loads(0..1)?, trace.loads(1..2)?])])
    }
}

/// Name and two steps of one kind of loads.
type Loads = (String, [LoadMatrix; 2]);

/// A placement made for one step, and the loads of the next.
struct Case {
    planner: Planner,
    topology: Topology,
    drifted: LoadMatrix,
    stale: Placement,
}

const DEEPSEEK: Policy = Policy::Deepseek;

/// Who made the plan that has become stale. `deepseek` puts some experts on a rank twice.
const STALE: [Policy; 2] = [DEEPSEEK, Policy::Balanced];

impl Case {
    fn new(
        [loads, drifted]: [LoadMatrix; 2],
        (slots, ranks): (usize, usize),
        policy: Policy,
    ) -> Result<Self, Box<dyn Error>> {
        let (planner, topology) = (Planner::new(1)?, Topology::uniform(ranks, slots)?);
        let options = Options { policy, ..Options::default() };
        let stale = planner.place(&Request::new(&loads, &topology, &options))?;
        Ok(Self { planner, topology, drifted, stale })
    }

    fn run(&self, policy: Policy) -> Result<(), Box<dyn Error>> {
        let options = Options { policy, ..Options::default() };
        let request = Request::new(&self.drifted, &self.topology, &options);
        if policy == DEEPSEEK {
            black_box(self.planner.place(&request)?);
        } else {
            black_box(self.planner.split(&request, &self.stale)?);
        }
        Ok(())
    }

    /// Least time of a run in microseconds per layer.
    fn least(&self, policy: Policy, least: &mut f64) -> Result<(), Box<dyn Error>> {
        let start = Instant::now();
        self.run(policy)?;
        *least = least.min(start.elapsed().as_secs_f64() * 1e6 / self.drifted.layers() as f64);
        Ok(())
    }

    /// Balancedness that no split of the stale placement exceeds: that of the rank loads which cuts prove, at the mean
    /// that all splits have in common.
    fn proved(&self) -> f64 {
        let (splitter, mut scratch) = (Splitter::new(&self.topology), SplitScratch::default());
        let mut share = vec![0.0; self.topology.slots()];
        let sum = self.drifted.sum();
        let of_layer = |layer: usize| {
            let row = sum.row(layer).to_vec();
            let phy2log = self.stale.layer(LayerId::at(layer)).to_vec();
            splitter.split_layer(&row, &phy2log, &mut share, &mut scratch);
            let busiest = cut_bound(&row, &phy2log, &self.topology, scratch.tight_ranks());
            (busiest > 0.0).then(|| row.iter().sum::<f64>() / self.topology.ranks() as f64 / busiest)
        };
        Balance::over_layers((0..self.drifted.layers()).map(of_layer).collect()).mean
    }

    fn print(&self, name: &str, rounds: usize) -> Result<(), Box<dyn Error>> {
        let options = Options { policy: Policy::Split, ..Options::default() };
        let request = Request::new(&self.drifted, &self.topology, &options);
        let share = self.planner.split(&request, &self.stale)?;
        let sum = self.drifted.sum().view();
        let even = balancedness(sum, &self.stale, None, &self.topology)?.mean;
        let split = balancedness(sum, &self.stale, Some(&share), &self.topology)?.mean;
        let (mut split_us, mut deepseek_us) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..rounds {
            self.least(Policy::Split, &mut split_us)?;
            self.least(DEEPSEEK, &mut deepseek_us)?;
        }
        println!(
            "| {name} | {even:.4} | {split:.4} | {:.4} | {split_us:.1} | {deepseek_us:.1} | {:.2} |",
            self.proved(),
            split_us / deepseek_us
        );
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let asked = Asked::parse()?;
    let loads = asked.loads()?;
    if let Some(policy) = &asked.count {
        let Some((_, loads)) = loads.into_iter().next() else { return Ok(()) };
        let (case, policy) = (Case::new(loads, CLUSTERS[1], DEEPSEEK)?, policy.parse()?);
        for _ in 0..asked.rounds {
            case.run(policy)?;
        }
        return Ok(());
    }
    println!(
        "| loads | stale plan | even split | solved split | proved | split, us per layer | deepseek, us per layer | ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (kind, loads) in loads {
        for cluster in CLUSTERS {
            for policy in STALE {
                let name = format!("{kind}, {} slots, {} ranks | {policy}", cluster.0, cluster.1);
                Case::new(loads.clone(), cluster, policy)?.print(&name, asked.rounds)?;
            }
        }
    }
    Ok(())
}
