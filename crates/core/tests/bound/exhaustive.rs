//! Every placement of up to 6 experts on up to 3 ranks with up to 3 slots each.

use eplb_core::Topology;
use eplb_core::bound::{BoundSolver, LayerBound};
use eplb_core::metrics::{layer_balancedness, rank_loads};
use eplb_core::{LayerId, Placement, Share};
use ndarray::{Array1, Array2};

use crate::Random;

struct Case {
    loads: Vec<f64>,
    slots: Vec<usize>,
    speed: Vec<f64>,
    max_replicas: Option<usize>,
}

impl Case {
    fn draw(random: &mut Random, equal_speed: bool, max_experts: usize) -> Self {
        loop {
            let ranks = 1 + random.below(3);
            let slots: Vec<usize> = if random.below(2) == 0 {
                vec![1 + random.below(3); ranks]
            } else {
                (0..ranks).map(|_| 1 + random.below(3)).collect()
            };
            let experts = 1 + random.below(max_experts);
            let speed = (0..ranks)
                .map(|_| if equal_speed { 1.0 } else { [0.5, 1.0, 1.0, 2.0, 3.0][random.below(5)] })
                .collect();
            let max_replicas = [None, None, Some(1), Some(2)][random.below(4)];
            let case = Self { loads: random.loads(experts), slots, speed, max_replicas };
            if case.slots.iter().sum::<usize>() >= experts && case.loads.iter().sum::<f64>() > 0.0 {
                return case;
            }
        }
    }

    fn topology(&self) -> Topology {
        Topology::new(&self.slots).unwrap().with_speed(&self.speed).unwrap()
    }

    fn solver(&self) -> BoundSolver {
        BoundSolver::new(&self.topology(), self.max_replicas)
    }

    fn row(&self) -> Array1<f64> {
        Array1::from_vec(self.loads.clone())
    }

    /// The bound of the slot count and the mean alone, for equal speeds: what every planner can say.
    fn counted(&self) -> f64 {
        let slots: usize = self.slots.iter().sum();
        let fits = |most: f64| {
            self.loads.iter().map(|w| (w / most * (1.0 - 1e-12)).ceil().max(1.0)).sum::<f64>() <= slots as f64
        };
        let mean = self.loads.iter().sum::<f64>() / self.slots.len() as f64;
        let (mut low, mut high) = (mean, self.loads.iter().copied().fold(mean, f64::max));
        if fits(mean) {
            return mean;
        }
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if fits(middle) { high = middle } else { low = middle }
        }
        low
    }

    /// Least load of the busiest rank over all placements and all splits. For one placement that is the largest, over sets
    /// of ranks, of the load of the experts that have no replica elsewhere by the speed of the set (max-flow, min-cut).
    fn best_split(&self) -> f64 {
        let sets: Vec<Vec<u32>> = self.slots.iter().map(|&slots| self.sets(slots)).collect();
        let loads: Vec<f64> = (0..1u32 << self.loads.len())
            .map(|set| (0..self.loads.len()).filter(|e| set >> e & 1 == 1).map(|e| self.loads[e]).sum())
            .collect();
        let everything = (1u32 << self.loads.len()) - 1;
        let ranks = self.slots.len();
        let mut best = f64::INFINITY;
        visit(&sets, &mut Vec::new(), &mut |held| {
            if held.iter().fold(0, |all, set| all | set) != everything || !self.replicas_allowed(held) {
                return;
            }
            let worst = (1..1u32 << ranks)
                .map(|cut| {
                    let inside = (0..ranks).filter(|r| cut >> r & 1 == 1);
                    let elsewhere =
                        (0..ranks).filter(|r| cut >> r & 1 == 0).fold(0, |all, rank| all | held[rank]);
                    loads[(everything & !elsewhere) as usize] / inside.map(|r| self.speed[r]).sum::<f64>()
                })
                .fold(0.0, f64::max);
            best = best.min(worst);
        });
        best
    }

    fn replicas_allowed(&self, held: &[u32]) -> bool {
        self.max_replicas.is_none_or(|most| {
            (0..self.loads.len()).all(|e| held.iter().filter(|&set| set >> e & 1 == 1).count() <= most)
        })
    }

    /// Sets of up to `slots` experts, as bits.
    fn sets(&self, slots: usize) -> Vec<u32> {
        (0..1u32 << self.loads.len()).filter(|set| set.count_ones() as usize <= slots).collect()
    }

    /// Multisets of up to `slots` experts, four bits for each expert's replicas.
    fn multisets(&self, slots: usize) -> Vec<u32> {
        let mut all = vec![0u32];
        let mut last = all.clone();
        for _ in 0..slots {
            let mut next = Vec::new();
            for set in &last {
                next.extend((0..self.loads.len()).map(|e| set + (1 << (4 * e))));
            }
            next.sort_unstable();
            next.dedup();
            all.extend(&next);
            last = next;
        }
        all
    }

    /// Largest balancedness over all placements at even split, several replicas on one rank included.
    fn best_even(&self) -> f64 {
        let sets: Vec<Vec<u32>> = self.slots.iter().map(|&slots| self.multisets(slots)).collect();
        let most = self.max_replicas.unwrap_or(9) as u32;
        let mut best: f64 = 0.0;
        visit(&sets, &mut Vec::new(), &mut |held| {
            let counts: u32 = held.iter().sum();
            let mut piece = [0.0; 6];
            for (e, load) in self.loads.iter().enumerate() {
                let count = counts >> (4 * e) & 15;
                if count == 0 || count > most {
                    return;
                }
                piece[e] = load / f64::from(count);
            }
            let (mut sum, mut worst) = (0.0, 0.0f64);
            for (set, speed) in held.iter().zip(&self.speed) {
                let load: f64 =
                    (0..self.loads.len()).map(|e| piece[e] * f64::from(set >> (4 * e) & 15)).sum::<f64>()
                        / speed;
                sum += load;
                worst = worst.max(load);
            }
            best = best.max((sum / held.len() as f64 / worst).min(1.0));
        });
        best
    }
}

/// Calls `leaf` with every choice of one entry per list.
fn visit(lists: &[Vec<u32>], chosen: &mut Vec<u32>, leaf: &mut impl FnMut(&[u32])) {
    match lists.get(chosen.len()) {
        None => leaf(chosen),
        Some(list) => {
            for &entry in list {
                chosen.push(entry);
                visit(lists, chosen, leaf);
                chosen.pop();
            }
        }
    }
}

fn mean(case: &Case) -> f64 {
    case.loads.iter().sum::<f64>() / case.speed.iter().sum::<f64>()
}

/// Cases in which a bound is as good as the truth, to a millionth.
#[derive(Default)]
struct Tally {
    cases: usize,
    before: usize,
    now: usize,
}

impl Tally {
    fn count(&mut self, truth: f64, before: f64, now: f64) {
        self.cases += 1;
        self.before += usize::from(before >= truth * (1.0 - 1e-6));
        self.now += usize::from(now >= truth * (1.0 - 1e-6));
    }

    fn percent(&self) -> (f64, f64) {
        let of = |n: usize| 100.0 * n as f64 / self.cases as f64;
        (of(self.before), of(self.now))
    }
}

#[test]
fn no_split_beats_the_bound_and_most_bounds_are_reached() {
    let mut random = Random(1);
    let mut tally = Tally::default();
    for number in 0..1500 {
        let case = Case::draw(&mut random, true, 6);
        let bound = case.solver().layer(case.row().view()).unwrap();
        let truth = case.best_split();
        let what = format!("case {number}: {:?} on {:?}, {:?}", case.loads, case.slots, case.max_replicas);
        assert!(bound.rank_load <= truth, "{what}: {bound:?}, least is {truth}");
        assert!(
            bound.balancedness >= mean(&case) / truth,
            "{what}: {bound:?}, best is {}",
            mean(&case) / truth
        );
        tally.count(truth, case.counted(), bound.rank_load);
    }
    let (before, now) = tally.percent();
    println!(
        "any split: mean and slot count reach the truth in {before:.1}% of the cases, the bound in {now:.1}%"
    );
    assert!(now >= 85.0 && now > before + 5.0, "{before:.1}% by mean and slot count, {now:.1}% by the bound");
}

#[test]
fn no_split_beats_the_bound_on_ranks_of_unequal_speed() {
    let mut random = Random(2);
    let mut reached = 0;
    for number in 0..1500 {
        let case = Case::draw(&mut random, false, 6);
        let bound = case.solver().layer(case.row().view()).unwrap();
        let truth = case.best_split();
        let what = format!(
            "case {number}: {:?} on {:?} of speed {:?}, {:?}",
            case.loads, case.slots, case.speed, case.max_replicas
        );
        assert!(bound.rank_load <= truth, "{what}: {bound:?}, least is {truth}");
        reached += usize::from(bound.rank_load >= truth * (1.0 - 1e-6));
        random_splits_stay_below(&case, bound, &mut random, &what);
    }
    println!("unequal speed, any split: the bound is reached in {:.1}% of the cases", reached as f64 / 15.0);
    assert!(reached >= 900, "only {reached} of 1500 bounds are reached");
}

/// With unequal speeds the best balancedness need not have the least busiest rank: tries placements and splits.
fn random_splits_stay_below(case: &Case, bound: LayerBound, random: &mut Random, what: &str) {
    let (topology, experts) = (case.topology(), case.loads.len());
    for _ in 0..40 {
        let mut map = vec![-1i32; topology.slots()];
        let mut free: Vec<usize> = (0..map.len()).collect();
        for e in 0..experts {
            map[free.swap_remove(random.below(free.len()))] = e as i32;
        }
        for slot in free {
            let e = random.below(experts);
            if map.iter().filter(|&&x| x == e as i32).count() < case.max_replicas.unwrap_or(9) {
                map[slot] = e as i32;
            }
        }
        let weights: Vec<f64> = map.iter().map(|_| random.unit().powi(3) + 1e-9).collect();
        let share = map.iter().enumerate().map(|(slot, &e)| {
            let all: f64 = map.iter().zip(&weights).filter(|(other, _)| **other == e).map(|(_, w)| w).sum();
            if e < 0 { 0.0 } else { weights[slot] / all }
        });
        let share = Array2::from_shape_vec((1, map.len()), share.collect()).unwrap();
        let placement =
            Placement::new(experts, Array2::from_shape_vec((1, map.len()), map).unwrap()).unwrap();
        let share = Share::new(share, &placement).unwrap();
        let ranks = rank_loads(case.row().view(), &placement, LayerId(0), Some(&share), &topology);
        let found = layer_balancedness(&ranks, &topology).unwrap();
        assert!(found <= bound.balancedness, "{what}: {placement:?} reaches {found}, {bound:?}");
    }
}

#[test]
fn no_even_split_beats_the_even_bound() {
    let mut random = Random(3);
    let mut tally = Tally::default();
    for number in 0..400 {
        let case = Case::draw(&mut random, number % 4 != 0, 5);
        let mut solver = case.solver();
        let any = solver.layer(case.row().view()).unwrap();
        let bound = solver.even_layer(case.row().view()).unwrap();
        let best = case.best_even();
        let what = format!(
            "case {number}: {:?} on {:?} of speed {:?}, {:?}",
            case.loads, case.slots, case.speed, case.max_replicas
        );
        assert!(bound.balancedness >= best, "{what}: {bound:?}, best is {best}");
        assert!(bound.rank_load >= any.rank_load, "{what}: {bound:?} is weaker than {any:?}");
        tally.count(1.0 / best, 1.0 / any.balancedness, 1.0 / bound.balancedness);
    }
    let (any, even) = tally.percent();
    println!(
        "even split: the bound for any split is reached in {any:.1}% of the cases, the even bound in {even:.1}%"
    );
    assert!(even >= 60.0 && even > any, "{any:.1}% by the bound for any split, {even:.1}% by the even bound");
}
