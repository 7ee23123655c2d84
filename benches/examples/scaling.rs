//! How the cost of `balanced` grows with layers, slots and ranks.
//!
//! `cargo run --release -p eplb-benches --example scaling`: families of shapes with the same slots per rank and replicas per
//! expert, each twice as large as the one before; power law, seed 0, one thread. Times are the least of `--rounds R`, the
//! yardstick and the planner in turn. `benches/scaling.sh` counts instructions: it runs `-- --count balanced --size N
//! --rounds R` under callgrind, which plans R times and prints nothing; `yardstick` for `balanced` runs that. `-- --name N`
//! prints what size N is, and its number of layers times slots.

use std::error::Error;
use std::time::Instant;

use eplb_benches::yardstick;
use eplb_core::{LoadMatrix, Topology};
use eplb_plan::{Options, Planner, Policy, Request};
use eplb_trace::generate::Spec;

/// Layers, experts, slots, ranks.
type Size = [usize; 4];

const SIZES: [Size; 18] = [
    // 9 slots per rank, as 288 slots on 32 ranks; then the same with other numbers of layers.
    [58, 64, 72, 8],
    [58, 128, 144, 16],
    [58, 256, 288, 32],
    [58, 512, 576, 64],
    [58, 1024, 1152, 128],
    [14, 256, 288, 32],
    [232, 256, 288, 32],
    // 7 slots per rank, as 448 slots on 64 ranks.
    [61, 96, 112, 16],
    [61, 192, 224, 32],
    [61, 384, 448, 64],
    [61, 768, 896, 128],
    // 4 slots per rank, as 512 slots on 128 ranks.
    [61, 96, 128, 32],
    [61, 192, 256, 64],
    [61, 384, 512, 128],
    [61, 768, 1024, 256],
    // 2 slots per rank, as 2,048 slots on 1,024 ranks.
    [61, 96, 512, 256],
    [61, 192, 1024, 512],
    [61, 384, 2048, 1024],
];

fn name([layers, experts, slots, ranks]: Size) -> String {
    format!("{} | {layers} x {experts} | {slots} | {ranks}", slots / ranks)
}

struct Case {
    size: Size,
    loads: LoadMatrix,
    topology: Topology,
    planner: Planner,
    phy2log: Vec<i32>,
}

impl Case {
    fn new(size: Size) -> Result<Self, Box<dyn Error>> {
        let [layers, experts, slots, ranks] = size;
        let like = Spec::preset("dsv3-zipf").ok_or("the preset is gone")?;
        let loads = Spec { layers, experts, steps: 1, ..like }.generate()?.loads(0..1)?;
        Ok(Self {
            size,
            loads,
            topology: Topology::uniform(ranks, slots)?,
            planner: Planner::new(1)?,
            phy2log: vec![-1; layers * slots],
        })
    }

    fn yardstick(&mut self) {
        let [_, experts, slots, ranks] = self.size;
        let loads = self.loads.sum().as_slice().unwrap_or_default();
        yardstick::place(loads, experts, ranks, slots, &mut self.phy2log);
        std::hint::black_box(&self.phy2log);
    }

    fn place(&self) -> Result<(), Box<dyn Error>> {
        let options = Options { policy: Policy::Balanced, ..Options::default() };
        std::hint::black_box(self.planner.place(&Request::new(&self.loads, &self.topology, &options))?);
        Ok(())
    }

    fn row(&mut self, rounds: usize) -> Result<String, Box<dyn Error>> {
        let options = Options { policy: Policy::Balanced, ..Options::default() };
        let plan = self.planner.plan(&Request::new(&self.loads, &self.topology, &options))?;
        let (mut yard, mut least) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..rounds {
            let start = Instant::now();
            self.yardstick();
            yard = yard.min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            self.place()?;
            least = least.min(start.elapsed().as_secs_f64());
        }
        let [layers, _, slots, _] = self.size;
        Ok(format!(
            "| {} | {:.4} | {:.4} | {:.0} | {:.2} |",
            name(self.size),
            plan.after.mean,
            plan.bound.mean,
            least * 1e9 / (layers * slots) as f64,
            least / yard
        ))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut rounds, mut count, mut sizes) = (9, None, 0..SIZES.len());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--rounds" => rounds = value.parse()?,
            "--count" => count = Some(value),
            "--size" | "--name" => {
                let n: usize = value.parse()?;
                let size = *SIZES.get(n).ok_or(format!("sizes are 0..{}", SIZES.len()))?;
                if word == "--name" {
                    println!("{} {}", size[0] * size[2], name(size));
                    return Ok(());
                }
                sizes = n..n + 1;
            }
            _ => return Err(format!("unknown option {word}").into()),
        }
    }
    if let Some(what) = count {
        let mut case = Case::new(SIZES[sizes.start])?;
        for _ in 0..rounds {
            if what == "yardstick" { case.yardstick() } else { case.place()? }
        }
        return Ok(());
    }
    println!(
        "| slots per rank | layers x experts | slots | ranks | balancedness | bound | ns per layer and slot | x yardstick |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for n in sizes {
        println!("{}", Case::new(SIZES[n])?.row(rounds)?);
    }
    Ok(())
}
