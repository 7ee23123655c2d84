//! Prints how far each part of the bound rules plans out, for loads of the kinds seen in practice.
//!
//! `cargo run --release -p eplb-core --example bound_table [seed]`

use std::time::Instant;

use eplb_core::Topology;
use eplb_core::bound::BoundSolver;
use ndarray::{Array1, ArrayView1};

const LAYERS: usize = 40;

fn main() {
    let seed = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(1);
    println!("mean over {LAYERS} layers of the largest balancedness that is not ruled out");
    println!(
        "{:>7} {:>6} {:>6} {:>10} {:>12} {:>10} {:>10} {:>9} {:>9}",
        "experts", "ranks", "slots", "loads", "slot count", "any split", "even split", "us/layer", "us, even"
    );
    for (experts, ranks, slots) in [
        (256, 32, 288),
        (256, 72, 288),
        (256, 144, 288),
        (256, 8, 256),
        (384, 64, 448),
        (384, 128, 512),
        (128, 32, 160),
        (128, 64, 128),
    ] {
        let topology = Topology::uniform(ranks, slots).expect("every case has a slot per rank");
        for zipf in [true, false] {
            let mut random = Random(seed);
            let rows: Vec<Array1<f64>> = (0..LAYERS).map(|_| random.layer(experts, zipf)).collect();
            let mut solver = BoundSolver::new(&topology, None);
            let mean = |bound: &mut dyn FnMut(ArrayView1<'_, f64>) -> f64| {
                let start = Instant::now();
                let sum: f64 = rows.iter().map(|row| bound(row.view())).sum();
                (sum / LAYERS as f64, start.elapsed().as_secs_f64() * 1e6 / LAYERS as f64)
            };
            let (counted, _) = mean(&mut |row| slot_count(row, ranks, slots));
            let (any, time) = mean(&mut |row| solver.layer(row).map_or(1.0, |b| b.balancedness));
            let (even, even_time) = mean(&mut |row| solver.even_layer(row).map_or(1.0, |b| b.balancedness));
            let kind = if zipf { "zipf" } else { "lognormal" };
            println!(
                "{experts:>7} {ranks:>6} {slots:>6} {kind:>10} {counted:>12.4} {any:>10.4} {even:>10.4} {time:>9.1} {even_time:>9.1}"
            );
        }
    }
}

/// The plain bound: with rank load `T` expert `e` needs `ceil(w_e / T)` slots, and slots are as many as they are.
fn slot_count(row: ArrayView1<'_, f64>, ranks: usize, slots: usize) -> f64 {
    let mean = row.sum() / ranks as f64;
    let fits = |most: f64| row.iter().map(|w| (w / most).ceil().max(1.0)).sum::<f64>() <= slots as f64;
    let (mut low, mut high) = (mean, row.iter().copied().fold(mean, f64::max));
    if fits(mean) {
        return 1.0;
    }
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if fits(middle) { high = middle } else { low = middle }
    }
    mean / low
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Zipf: a power law with exponent 0.6 to 1.2. Lognormal: the exponential of about normal numbers (mean 0, deviation 1).
    fn layer(&mut self, experts: usize, zipf: bool) -> Array1<f64> {
        let exponent = 0.6 + 0.6 * self.unit();
        (0..experts)
            .map(|e| {
                if zipf {
                    ((e + 1) as f64).powf(-exponent)
                } else {
                    ((0..12).map(|_| self.unit()).sum::<f64>() - 6.0).exp()
                }
            })
            .collect()
    }
}
