//! Plans of real size that are known from the start: loads are made by filling ranks, so the plan that made them
//! is a witness against any bound above it.

use eplb_core::Topology;
use eplb_core::bound::BoundSolver;
use ndarray::Array1;

use crate::Random;

/// Loads `[E]` that ranks of load 1 at most can hold, `slots` pieces each, and the largest rank load.
///
/// Some experts have replicas of one size on consecutive ranks (`even`) or of any sizes; what they leave is cut into
/// `slots` less the pieces there, some of it next to nothing, as beside hot experts in practice. With `full` no rank has room left.
fn plant(random: &mut Random, ranks: usize, slots: usize, even: bool, full: bool) -> (Vec<f64>, f64) {
    let mut left = vec![1.0; ranks];
    let mut free = vec![slots; ranks];
    let mut loads = Vec::new();
    let mut rank = 0;
    while rank < ranks {
        let replicas = (1 + random.below(6)).min(ranks - rank);
        let piece =
            if random.below(3) == 0 { 1.0 - 0.05 * random.unit() } else { 0.3 + 0.65 * random.unit() };
        let mut load = 0.0;
        for held in rank..rank + replicas {
            let tokens = if even { piece } else { piece * (0.5 + 0.5 * random.unit()) };
            load += tokens;
            left[held] -= tokens;
            free[held] -= 1;
        }
        // A chain of hot experts: the last of these ranks may hold the next hot expert too.
        loads.push(load);
        rank += replicas;
    }
    let mut worst: f64 = 0.0;
    for rank in 0..ranks {
        if !full {
            left[rank] *= random.unit();
        }
        let parts: Vec<f64> = (0..free[rank]).map(|_| random.unit().powi(2) + 1e-4).collect();
        let sum: f64 = parts.iter().sum();
        let held: f64 = 1.0 - left[rank];
        if free[rank] > 0 {
            loads.extend(parts.iter().map(|part| part / sum * left[rank]));
        }
        worst = worst.max(if full || free[rank] > 0 { 1.0 } else { held });
    }
    (loads, worst)
}

#[test]
fn planted_plans_are_never_ruled_out() {
    let mut random = Random(4);
    for (ranks, slots) in [(72, 4), (144, 2), (128, 4), (32, 5), (8, 32), (16, 3), (3, 7), (64, 1)] {
        let topology = Topology::uniform(ranks, ranks * slots).unwrap();
        let mut solver = BoundSolver::new(&topology, None);
        for _ in 0..60 {
            for (even, full) in [(true, true), (true, false), (false, true), (false, false)] {
                let (loads, worst) = plant(&mut random, ranks, slots, even, full);
                let row = Array1::from_vec(loads);
                let any = solver.layer(row.view()).unwrap();
                // The plan's own sums are rounded too.
                let worst = worst * (1.0 + 1e-12);
                assert!(any.rank_load <= worst, "{ranks} ranks, {slots} slots, {worst}: {any:?}");
                if even {
                    let bound = solver.even_layer(row.view()).unwrap();
                    assert!(bound.rank_load <= worst, "{ranks} ranks, {slots} slots, {worst}: {bound:?}");
                }
            }
        }
    }
}
