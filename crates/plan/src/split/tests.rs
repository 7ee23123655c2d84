//! The two ways to the optimum, guessing and not guessing, against each other. What callers see is tested in
//! `tests/split.rs`.

use eplb_core::Topology;

use super::graph::Graph;
use super::levels::Levels;
use super::ranks::Ranks;

/// Numbers without pattern, the same everywhere (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() * n as f64) as usize
    }
}

/// A layer with many replicas and loads over three orders of magnitude.
fn layer(seed: u64, experts: usize, topology: &Topology) -> (Vec<f64>, Vec<i32>) {
    let mut numbers = Numbers(seed);
    let row = (0..experts).map(|_| 10f64.powf(3.0 * numbers.next())).collect();
    let phy2log = (0..topology.slots())
        .map(|slot| if slot < experts { slot } else { numbers.below(experts) } as i32)
        .collect::<Vec<_>>();
    (row, phy2log)
}

/// Levels of all ranks after `rounds` rounds of guessing, from the even split or from what water filling makes of it.
fn levels(row: &[f64], phy2log: &[i32], ranks: &Ranks, fill: bool, rounds: usize) -> Vec<f64> {
    let (mut graph, mut levels) = (Graph::default(), Levels::default());
    let mut share = vec![0.0; phy2log.len()];
    graph.build(row, phy2log, ranks, &mut share);
    graph.even();
    if fill {
        graph.fill(ranks);
    }
    levels.solve_in(rounds, &mut graph, ranks);
    let sum: f64 = graph.load.iter().sum();
    assert!((sum - 1.0).abs() < 1e-12, "tokens were lost: {sum}");
    assert!(graph.edges.iter().all(|e| e.flow >= 0.0));
    for (rank, &level) in levels.level.iter().enumerate() {
        let real = graph.load[rank] / ranks.speed[rank];
        assert!((real - level).abs() <= 1e-11 * level, "rank {rank}: {real} is not its level {level}");
    }
    levels.level
}

#[test]
fn guessing_and_not_guessing_end_at_the_same_levels() {
    for (ranks, slots, experts) in [(5, 20, 8), (16, 64, 30), (32, 128, 60), (40, 80, 40)] {
        for seed in 0..40 {
            let speed: Vec<f64> = (0..ranks).map(|r| [1.0, 0.5, 3.0][(r + seed) % 3]).collect();
            let topology = Topology::uniform(ranks, slots).unwrap();
            let topology = if seed % 2 == 0 { topology } else { topology.with_speed(&speed).unwrap() };
            let (row, phy2log) = layer(seed as u64, experts, &topology);
            let ranks = Ranks::new(&topology);
            let exact = levels(&row, &phy2log, &ranks, false, 0);
            for (fill, rounds) in [(false, 1), (false, 12), (true, 0), (true, 1), (true, 12)] {
                let found = levels(&row, &phy2log, &ranks, fill, rounds);
                for (rank, (a, b)) in exact.iter().zip(&found).enumerate() {
                    assert!((a - b).abs() <= 1e-10 * a, "seed {seed}, rank {rank}: {a} and {b}");
                }
            }
        }
    }
}
