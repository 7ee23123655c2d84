//! `incremental` beside a plain hill climb: the same balance with fewer moves, and balance where the plain one is stuck.
//!
//! The plain climb takes the most loaded rank and, of all single copies (one move) and swaps of two slots (two moves),
//! the one with the largest drop per move of the sum over ranks of the squared load above the mean, as long as no rank
//! becomes the new worst.

use eplb_core::{LoadMatrix, Placement, Topology};
use eplb_plan::{Options, Planner, Policy, Request};
use ndarray::Array2;

/// One layer.
struct Plain {
    loads: Vec<f64>,
    row: Vec<usize>,
    ranks: usize,
}

impl Plain {
    fn count(&self, row: &[usize], expert: usize) -> f64 {
        row.iter().filter(|&&e| e == expert).count() as f64
    }

    fn rank_loads(&self, row: &[usize]) -> Vec<f64> {
        let part = |&e: &usize| self.loads[e] / self.count(row, e);
        row.chunks(row.len() / self.ranks).map(|held| held.iter().map(part).sum()).collect()
    }

    fn mean(&self) -> f64 {
        self.loads.iter().sum::<f64>() / self.ranks as f64
    }

    fn value(&self) -> f64 {
        self.mean() / self.rank_loads(&self.row).into_iter().fold(0.0, f64::max)
    }

    /// Excess of all ranks and the worst rank's load; `None` if a rank holds an expert twice.
    fn judge(&self, row: &[usize]) -> Option<(f64, f64)> {
        let twice = |held: &[usize]| (0..held.len()).any(|i| held[..i].contains(&held[i]));
        if row.chunks(row.len() / self.ranks).any(twice) {
            return None;
        }
        let loads = self.rank_loads(row);
        let excess = loads.iter().map(|load| (load - self.mean()).max(0.0).powi(2)).sum();
        Some((excess, loads.into_iter().fold(0.0, f64::max)))
    }

    /// Climbs to a balancedness; returns the moves.
    fn climb(&mut self, target: f64) -> usize {
        let (slots, origin) = (self.row.len(), self.row.clone());
        let per_rank = slots / self.ranks;
        while self.value() < target {
            let loads = self.rank_loads(&self.row);
            let hot = (0..self.ranks).max_by(|&a, &b| loads[a].total_cmp(&loads[b]).then(b.cmp(&a))).unwrap();
            let (before, _) = self.judge(&self.row).unwrap();
            let mut best = (1e-9, self.row.clone());
            for from in hot * per_rank..(hot + 1) * per_rank {
                for to in (0..slots).filter(|to| to / per_rank != hot) {
                    let mut copy = self.row.clone();
                    copy[to] = self.row[from];
                    let mut swap = self.row.clone();
                    swap.swap(from, to);
                    let spare = self.count(&self.row, self.row[to]) > 1.0;
                    for (row, moves) in [(copy, 1.0), (swap, 2.0)] {
                        if moves == 1.0 && !spare {
                            continue;
                        }
                        let Some((after, worst)) = self.judge(&row) else { continue };
                        if worst <= loads[hot] && (before - after) / moves > best.0 {
                            best = ((before - after) / moves, row);
                        }
                    }
                }
            }
            if best.1 == self.row {
                break;
            }
            self.row = best.1;
        }
        let held = |rank: usize| &origin[rank * per_rank..(rank + 1) * per_rank];
        (0..slots).filter(|&slot| !held(slot / per_rank).contains(&self.row[slot])).count()
    }
}

/// Loads that follow a power law, and the same after a drift.
fn drifting(experts: usize, seed: u64) -> [Vec<f64>; 2] {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let before: Vec<f64> =
        (0..experts).map(|_| 1000.0 / (1.0 + (uniform() * experts as f64).floor()).powf(0.8)).collect();
    let after = before.iter().map(|load| load * (1.2 * (uniform() - 0.5)).exp()).collect();
    [before, after]
}

/// Moves and layers that got to the target, ours and the plain climb's.
fn compare(experts: usize, slots: usize, ranks: usize, target: f64) -> [(usize, usize); 2] {
    let topology = Topology::uniform(ranks, slots).unwrap();
    let planner = Planner::new(1).unwrap();
    let mut sums = [(0, 0); 2];
    for seed in 0..12 {
        let [before, after] = drifting(experts, seed)
            .map(|row| LoadMatrix::from_sum(Array2::from_shape_vec((1, experts), row).unwrap()).unwrap());
        let fresh = Options::default();
        let current: Placement = planner.place(&Request::new(&before, &topology, &fresh)).unwrap();
        let options = Options { policy: Policy::Incremental, target: Some(target), ..Options::default() };
        let plan = planner.plan(&Request::new(&after, &topology, &options).with_current(&current)).unwrap();
        let mut plain = Plain {
            loads: after.sum().row(0).to_vec(),
            row: current.phy2log().row(0).iter().map(|&e| e as usize).collect(),
            ranks,
        };
        assert!((plain.value() - plan.before.unwrap().mean).abs() < 1e-9);
        let moves = plain.climb(target);
        sums[0].0 += plan.changes.unwrap().moves;
        sums[0].1 += usize::from(plan.target_reached.unwrap());
        sums[1].0 += moves;
        sums[1].1 += usize::from(plain.value() >= target - 1e-9);
    }
    sums
}

#[test]
fn no_more_moves_than_a_plain_climb() {
    let (mut all, mut plain_all) = (0, 0);
    for target in [0.9, 0.95, 0.98] {
        let [ours, plain] = compare(48, 56, 8, target);
        assert!(ours.1 >= plain.1, "{target}: {ours:?} {plain:?}");
        all += ours.0;
        plain_all += plain.0;
    }
    assert!(10 * all <= 9 * plain_all, "{all} {plain_all}");
}

#[test]
fn two_slots_per_rank_do_not_stop_it() {
    let [ours, plain] = compare(20, 24, 12, 0.85);
    assert!(ours.1 > plain.1, "{ours:?} {plain:?}");
}
