//! What solving the split again is worth without a single move, and what it costs, as the tables of the documentation
//! print it.
//!
//! `cargo run --release -p eplb-benches --example split`: a plan for one step; even split and solved split on the step
//! after, the best that a cut proves for that plan and any split, and times of `split` and `deepseek` on the same loads. `-- --loads FILE.npy`: other loads, `[2, L, E]`; `-- --seed S`: others of the generator.
//! `-- --lp` beside it: the optimum of a linear program for the same placement and loads, solved by `microlp`, layer by layer, instead of
//! times; a layer where it differs from our split by more than a millionth ends the run.
//! `-- --count split|deepseek [--kind lognormal] [--slots 288] --rounds R`: runs R times on the stale `deepseek` plan of that case and
//! prints nothing, to be run under `valgrind --tool=callgrind`; the difference between two values of R is what one run costs.
//!
//! Times are the least of all rounds, which take turns.

use std::error::Error;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use eplb_benches::shapes::{KINDS, Shape};
use eplb_core::metrics::{Balance, balancedness};
use eplb_core::{ExpertId, LayerId, LoadMatrix, Placement, Topology};
use eplb_plan::split::{SplitScratch, Splitter, cut_bound};
use eplb_plan::{Options, Planner, Policy, Request};
use eplb_trace::Trace;
use microlp::{ComparisonOp, OptimizationDirection, Problem};

/// Slots and ranks that DeepSeek-V3's 256 experts are measured on.
const CLUSTERS: [(usize, usize); 2] = [(320, 32), (288, 32)];

/// What the command line asks for.
struct Asked {
    loads: Option<PathBuf>,
    rounds: usize,
    count: Option<String>,
    kind: String,
    slots: usize,
    seed: u64,
    lp: bool,
}

impl Asked {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut asked = Self {
            loads: None,
            rounds: 25,
            count: None,
            kind: KINDS[0].into(),
            slots: 320,
            seed: 0,
            lp: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--loads" => asked.loads = Some(value()?.into()),
                "--rounds" => asked.rounds = value()?.parse()?,
                "--count" => asked.count = Some(value()?),
                "--kind" => asked.kind = value()?,
                "--slots" => asked.slots = value()?.parse()?,
                "--seed" => asked.seed = value()?.parse()?,
                "--lp" => asked.lp = true,
                _ => return Err(format!("unknown option {word}").into()),
            }
        }
        Ok(asked)
    }

    fn loads(&self) -> Result<Vec<Loads>, Box<dyn Error>> {
        let Some(path) = &self.loads else {
            let shape = Shape { model: "dsv3", slots: 0, ranks: 0 };
            return KINDS
                .iter()
                .map(|kind| Ok(((*kind).to_owned(), shape.loads(kind, self.seed)?)))
                .collect();
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

    /// Load of the busiest rank in a layer according to the linear program: least `busiest`, so that parts of each expert
    /// sum to 1 and no rank has more. Experts on one rank alone are constants of it.
    fn linear_program(&self, layer: usize) -> Result<f64, Box<dyn Error>> {
        let row = self.drifted.sum().row(layer).to_vec();
        let unit = row.iter().sum::<f64>() / self.topology.ranks() as f64;
        let mut problem = Problem::new(OptimizationDirection::Minimize);
        let busiest = problem.add_var(1.0, (0.0, f64::INFINITY));
        let mut fixed = vec![0.0; self.topology.ranks()];
        let mut shared: Vec<Vec<_>> = vec![vec![]; self.topology.ranks()];
        for (expert, load) in row.iter().map(|load| load / unit).enumerate() {
            let slots = self.stale.replicas(LayerId::at(layer), ExpertId::at(expert));
            let mut ranks: Vec<usize> =
                slots.iter().map(|&slot| self.topology.rank_of(slot).index()).collect();
            ranks.dedup();
            if let [only] = ranks[..] {
                fixed[only] += load;
                continue;
            }
            let parts: Vec<_> = ranks.iter().map(|_| problem.add_var(0.0, (0.0, 1.0))).collect();
            ranks.iter().zip(&parts).for_each(|(&rank, &part)| shared[rank].push((part, load)));
            let ones: Vec<_> = parts.into_iter().map(|part| (part, 1.0)).collect();
            problem.add_constraint(&ones, ComparisonOp::Eq, 1.0);
        }
        for (mut terms, fixed) in shared.into_iter().zip(fixed) {
            terms.push((busiest, -1.0));
            problem.add_constraint(&terms, ComparisonOp::Le, -fixed);
        }
        Ok(problem.solve()?.objective() * unit)
    }

    /// Prints even split, our split and the optimum of the linear program.
    fn compare(&self, name: &str) -> Result<(), Box<dyn Error>> {
        let options = Options { policy: Policy::Split, ..Options::default() };
        let request = Request::new(&self.drifted, &self.topology, &options);
        let share = self.planner.split(&request, &self.stale)?;
        let sum = self.drifted.sum().view();
        let even = balancedness(sum, &self.stale, None, &self.topology)?.mean;
        let split = balancedness(sum, &self.stale, Some(&share), &self.topology)?;
        let (mut optimum, mut most) = (Vec::new(), 0.0f64);
        for (layer, ours) in split.per_layer.iter().enumerate() {
            let mean = self.drifted.sum().row(layer).sum() / self.topology.ranks() as f64;
            let Some(ours) = ours else {
                optimum.push(None);
                continue;
            };
            let best = mean / self.linear_program(layer)?;
            if (best - ours).abs() > 1e-6 {
                return Err(format!("layer {layer}: the split has {ours}, the linear program {best}").into());
            }
            most = most.max((best - ours).abs());
            optimum.push(Some(best));
        }
        let optimum = Balance::over_layers(optimum).mean;
        println!("| {name} | {even:.4} | {:.5} | {optimum:.5} | {most:.0e} |", split.mean);
        Ok(())
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
        let Some((_, loads)) = loads.into_iter().find(|(kind, _)| *kind == asked.kind) else {
            return Err(format!("no loads of the kind {}", asked.kind).into());
        };
        let (case, policy) = (Case::new(loads, (asked.slots, CLUSTERS[0].1), DEEPSEEK)?, policy.parse()?);
        for _ in 0..asked.rounds {
            case.run(policy)?;
        }
        return Ok(());
    }
    if asked.lp {
        println!(
            "| loads | stale plan | even split | solved split | linear program | largest difference of a layer |"
        );
        println!("|---|---|---|---|---|---|");
    } else {
        println!(
            "| loads | stale plan | even split | solved split | proved | split, us per layer | deepseek, us per layer | ratio |"
        );
        println!("|---|---|---|---|---|---|---|---|");
    }
    for (kind, loads) in loads {
        for cluster in CLUSTERS {
            for policy in STALE {
                let name = format!("{kind}, {} slots, {} ranks | {policy}", cluster.0, cluster.1);
                let case = Case::new(loads.clone(), cluster, policy)?;
                if asked.lp { case.compare(&name)? } else { case.print(&name, asked.rounds)? }
            }
        }
    }
    Ok(())
}
