//! Plans of real size that are known from the start: loads are made by filling ranks, so the plan that made them
//! is a witness against any bound above it.

use eplb_core::Topology;
use eplb_core::bound::BoundSolver;
use ndarray::Array1;

use crate::Random;

/// Loads `[E]` that the ranks can hold at a rank load of 1, each up to its speed (`[ranks]`) and its slots (`[ranks]`).
///
/// Hot experts have replicas of one size (`even`) or of any sizes on consecutive ranks; what they leave of a rank goes to its
/// other slots, some of it next to nothing, as beside hot experts in practice. With `full` no rank has room left.
fn plant(random: &mut Random, slots: &[usize], speed: &[f64], even: bool, full: bool) -> Vec<f64> {
    let ranks = slots.len();
    let mut loads = Vec::new();
    let mut rank = 0;
    while rank < ranks {
        let replicas = (1 + random.below(6)).min(ranks - rank);
        let held = rank..rank + replicas;
        let piece =
            if random.below(3) == 0 { 1.0 - 0.05 * random.unit() } else { 0.3 + 0.65 * random.unit() };
        let slowest = speed[held.clone()].iter().copied().fold(f64::INFINITY, f64::min);
        let mut load = 0.0;
        for at in held {
            let tokens = if even { piece * slowest } else { piece * speed[at] * (0.5 + 0.5 * random.unit()) };
            load += tokens;
            let room = (speed[at] - tokens) * if full { 1.0 } else { random.unit() };
            let parts: Vec<f64> = (1..slots[at]).map(|_| random.unit().powi(2) + 1e-4).collect();
            let sum: f64 = parts.iter().sum();
            loads.extend(parts.iter().map(|part| part / sum * room));
        }
        loads.push(load);
        rank += replicas;
    }
    loads
}

/// Cold experts of one size cut evenly into the gaps beside large ones: gaps are sums of unit fractions of that size,
/// many to the last bit, so a proof that misjudges a gap by a rounding error fails.
fn plant_fractions(random: &mut Random, ranks: usize, slots: usize) -> Vec<f64> {
    let size = (0.1 + 0.9 * random.unit()) / (2.0 * (slots as f64 - 1.0));
    let mut loads = Vec::new();
    let mut pieces = [0usize; 5];
    // Whole experts with few fractions among them, or anything, empty slots included.
    let whole = random.below(2) == 0;
    for _ in 0..ranks {
        let mut left = 1.0;
        for _ in 1..slots {
            let part = if whole && random.below(4) > 0 { 1 } else { random.below(6) };
            if let Some(count) = part.checked_sub(1) {
                pieces[count] += 1;
                left -= size / part as f64;
            }
        }
        // Room that no whole part fills.
        loads.push(left - if random.below(2) == 0 { 0.3 * size * random.unit() } else { 0.0 });
    }
    for (part, count) in (1..).zip(pieces) {
        loads.extend(std::iter::repeat_n(size, count / part));
        loads.extend(std::iter::repeat_n(size / part as f64, count % part));
    }
    loads
}

/// The witness's own rank loads are sums of rounded parts.
const WITNESS: f64 = 1.0 + 1e-12;

#[test]
fn planted_plans_are_never_ruled_out() {
    let mut random = Random(4);
    for (ranks, slots) in [(72, 4), (144, 2), (128, 4), (32, 5), (8, 32), (16, 3), (3, 7), (64, 1)] {
        for round in 0..60 {
            let slots: Vec<usize> =
                (0..ranks).map(|_| slots + if round % 2 == 0 { 0 } else { random.below(2) }).collect();
            let topology = Topology::new(&slots).unwrap();
            let mut solver = BoundSolver::new(&topology, None);
            for (even, full) in [(true, true), (true, false), (false, true), (false, false)] {
                let row = Array1::from_vec(plant(&mut random, &slots, &vec![1.0; ranks], even, full));
                let any = solver.layer(row.view()).unwrap();
                assert!(any.rank_load <= WITNESS, "{slots:?}: {any:?} for {row}");
                if even {
                    let bound = solver.even_layer(row.view()).unwrap();
                    assert!(bound.rank_load <= WITNESS, "{slots:?}: {bound:?} for {row}");
                }
            }
        }
    }
}

#[test]
fn planted_plans_on_ranks_of_unequal_speed_are_never_ruled_out() {
    let mut random = Random(5);
    for (ranks, slots) in [(24, 4), (40, 2), (8, 16), (30, 1)] {
        for _ in 0..40 {
            let slots: Vec<usize> = (0..ranks).map(|_| slots + random.below(2)).collect();
            let speed: Vec<f64> = (0..ranks).map(|_| [0.5, 0.8, 1.0, 1.7][random.below(4)]).collect();
            let topology = Topology::new(&slots).unwrap().with_speed(&speed).unwrap();
            for full in [true, false] {
                let row = Array1::from_vec(plant(&mut random, &slots, &speed, false, full));
                let bound = BoundSolver::new(&topology, None).even_layer(row.view()).unwrap();
                assert!(bound.rank_load <= WITNESS, "{slots:?} {speed:?}: {bound:?} for {row}");
            }
        }
    }
}

#[test]
fn gaps_that_fit_exactly_are_not_ruled_out() {
    let mut random = Random(6);
    for (ranks, slots) in [(144, 2), (40, 2), (30, 3), (72, 4), (32, 5)] {
        let mut solver = BoundSolver::new(&Topology::uniform(ranks, ranks * slots).unwrap(), None);
        let mut improved = 0;
        for _ in 0..150 {
            let row = Array1::from_vec(plant_fractions(&mut random, ranks, slots));
            let any = solver.layer(row.view()).unwrap();
            let bound = solver.even_layer(row.view()).unwrap();
            assert!(bound.rank_load <= WITNESS, "{ranks} ranks, {slots} slots: {bound:?} for {row}");
            improved += usize::from(bound.rank_load > any.rank_load);
        }
        println!(
            "{ranks} ranks, {slots} slots: the even bound is above the other in {improved} of 150 cases"
        );
        assert!(improved >= 30, "{ranks} ranks, {slots} slots: gaps are too few to test anything");
    }
}
