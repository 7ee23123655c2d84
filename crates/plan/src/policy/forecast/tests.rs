//! The objective against plain arithmetic, what changes gain, and that every change pays its price.

use eplb_core::{LoadMatrix, Topology};
use ndarray::Array3;
use proptest::prelude::*;

use super::FREE;
use super::climb::{Climber, Path, Step};
use super::holding::{Change, EMPTY, Holding, Places};
use super::objective::DOUBLINGS;
use super::scenarios::Recency;
use super::spend::spend;
use crate::budget::Budget;
use crate::options::{Options, Window};
use crate::{Planner, Policy, Request};

/// A layer: loads `[T, 1, E]`, places on ranks that differ in slots and speed, and what is in place.
#[derive(Debug, Clone)]
struct Case {
    loads: LoadMatrix,
    topology: Topology,
    row: Vec<i32>,
}

fn case() -> impl Strategy<Value = Case> {
    (2..=4usize, 1..=7usize, any::<bool>(), any::<u64>()).prop_perturb(
        |(ranks, steps, uneven, _), mut rng| {
            let counts: Vec<usize> =
                (0..ranks).map(|_| if uneven { rng.random_range(2..=4) } else { 3 }).collect();
            let speed: Vec<f64> = (0..ranks)
                .map(|_| if uneven { [0.5, 1.0, 2.0][rng.random_range(0..3usize)] } else { 1.0 })
                .collect();
            let topology = Topology::new(&counts).unwrap().with_speed(&speed).unwrap();
            let experts = topology.slots() - rng.random_range(1..=3usize);
            let loads =
                Array3::from_shape_fn((steps, 1, experts), |_| f64::from(rng.random_range(1..30u32).pow(2)));
            let loads = LoadMatrix::from_window(loads).unwrap();
            let options = Options { policy: Policy::Random, seed: rng.random(), ..Options::default() };
            let placed = Planner::new(1).unwrap().place(&Request::new(&loads, &topology, &options)).unwrap();
            Case { row: placed.phy2log().row(0).to_vec(), loads, topology }
        },
    )
}

impl Case {
    fn places(&self) -> Places {
        Places::new(&self.topology, self.loads.experts(), self.topology.slots())
    }

    fn climber(&self, places: &Places, window: &Window) -> Climber {
        let mut climber = Climber::default();
        let recency = Recency::new(self.loads.steps(), window);
        climber.scenarios.fill(&self.loads, 0, &recency, places.ranks());
        climber.holding.start(&self.row, places, self.loads.experts());
        climber
    }

    /// The same with steps that are much like the first.
    fn steady(&self) -> Case {
        let mut loads = self.loads.window().clone();
        let first = self.loads.step(0).to_owned();
        for mut step in loads.outer_iter_mut() {
            step.zip_mut_with(&first, |load, &first| *load = 0.95 * first + 0.05 * *load);
        }
        Case { loads: LoadMatrix::from_window(loads).unwrap(), ..self.clone() }
    }

    /// What a row is worth: the definition, in double precision.
    fn worth(&self, row: &[u32], places: &Places, half_life: f64) -> f64 {
        let (steps, experts) = (self.loads.steps(), self.loads.experts());
        let count = |expert: u32| row.iter().filter(|&&e| e == expert).count() as f64;
        let speed: f64 = self.topology.live_ranks().map(|r| self.topology.speed(r)).sum();
        let (mut worth, mut weights) = (0.0, 0.0);
        for step in 0..steps {
            let loads = self.loads.step(step);
            let ideal = loads.sum() / speed;
            let mut times = vec![0.0; places.ranks()];
            for (place, &expert) in row.iter().enumerate().filter(|&(_, &e)| e != EMPTY) {
                assert!((expert as usize) < experts);
                let rank = places.rank[place] as usize;
                let time = loads[(0, expert as usize)] / count(expert);
                times[rank] += time / self.topology.speed(eplb_core::RankId::at(rank)) / ideal;
            }
            let p = f64::from(1u32 << DOUBLINGS);
            let norm = times.iter().map(|t: &f64| t.powf(p)).sum::<f64>().powf(1.0 / p);
            let weight = 0.5f64.powf((steps - 1 - step) as f64 / half_life);
            worth += weight / norm;
            weights += weight;
        }
        worth / weights
    }

    /// The first change whose worth did not rise by the price, computed from nothing.
    fn unpaid(&self, path: &Path, places: &Places, half_life: f64, price: f64) -> Option<Change> {
        let mut row = path.start.clone();
        path.steps.iter().map(|step| step.change).find(|change| {
            let before = self.worth(&row, places, half_life);
            change.apply(&mut row);
            self.worth(&row, places, half_life) - before < price * change.moves() as f64 - 1e-5
        })
    }
}

fn every_change(holding: &Holding, places: &Places) -> Vec<Change> {
    let mut changes = Vec::new();
    for a in 0..holding.row.len() {
        let (held, rank) = (holding.row[a], places.rank[a]);
        for expert in 0..holding.count.len() as u32 {
            if holding.spare(a).is_some() && !holding.holds(rank, expert as usize) {
                changes.push(Change::Put { place: a as u32, expert });
            }
        }
        for b in a + 1..holding.row.len() {
            let (other, to) = (holding.row[b], places.rank[b]);
            if held != EMPTY
                && other != EMPTY
                && !holding.holds(to, held as usize)
                && !holding.holds(rank, other as usize)
            {
                changes.push(Change::Swap { a: a as u32, b: b as u32 });
            }
        }
    }
    changes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn worth_and_gains_are_what_the_definition_says(case in case()) {
        let case = case.steady();
        let places = case.places();
        let window = Window { half_life: 3.0, ..Window::default() };
        let mut climber = case.climber(&places, &window);
        climber.objective.fit(&climber.holding, &places, &climber.scenarios);
        let before = case.worth(&climber.holding.row, &places, 3.0);
        prop_assert!((f64::from(climber.objective.worth()) - before).abs() < 1e-4);
        let mut effects = Vec::new();
        for change in every_change(&climber.holding, &places) {
            climber.holding.effects(change, &places, &mut effects);
            let gain = climber.objective.gain(&effects, &places, &climber.scenarios);
            let held = climber.holding.given_up(change);
            let start = climber.holding.clone();
            climber.holding.make(change, &places);
            let after = case.worth(&climber.holding.row, &places, 3.0);
            if after < 1.5 * before {
                prop_assert!((f64::from(gain) - (after - before)).abs() < 1e-3, "{change:?}: {gain}");
            }
            climber.holding.take_back(change, held, &places);
            for ranks in &mut climber.holding.ranks {
                ranks.sort_unstable();
            }
            prop_assert_eq!(&climber.holding.row, &start.row);
            prop_assert_eq!(&climber.holding.count, &start.count);
        }
    }

    #[test]
    fn every_change_pays_its_price_and_ignoring_it_is_noticed(case in case()) {
        let (places, price) = (case.places(), 0.02);
        let climb = |price: f32| {
            let mut climber = case.climber(&places, &Window { half_life: 3.0, ..Window::default() });
            let start = climber.holding.row.clone();
            Path { start, restored: Vec::new(), steps: climber.climb(&places, price) }
        };
        let path = climb(price);
        prop_assert_eq!(case.unpaid(&path, &places, 3.0, price.into()), None);
        // The planted fault: a search that takes the price for next to nothing.
        let faulty = climb(FREE);
        let cheap = |step: &Step| step.gain < 0.9 * price * step.change.moves() as f32;
        if faulty.steps.iter().any(cheap) {
            prop_assert!(case.unpaid(&faulty, &places, 3.0, price.into()).is_some());
        }
    }

    #[test]
    fn no_change_that_pays_is_overlooked(case in case()) {
        let (case, price) = (case.steady(), 0.02);
        let places = case.places();
        let mut climber = case.climber(&places, &Window::default());
        climber.climb(&places, price);
        // Where the climb ends no change is left that clearly pays: none is overlooked.
        climber.objective.fit(&climber.holding, &places, &climber.scenarios);
        let mut effects = Vec::new();
        for change in every_change(&climber.holding, &places) {
            climber.holding.effects(change, &places, &mut effects);
            let gain = climber.objective.gain(&effects, &places, &climber.scenarios);
            prop_assert!(gain <= 1.5 * price * change.moves() as f32, "{change:?} would gain {gain}");
        }
    }
}

#[test]
fn the_planted_fault_is_really_planted() {
    // A climb that ignores its price makes changes that do not pay, so that the check above has something to notice.
    let loads = Array3::from_shape_fn((3, 1, 6), |(t, _, e)| (10 + (e * 7 + t) % 5) as f64);
    let case = Case {
        loads: LoadMatrix::from_window(loads).unwrap(),
        topology: Topology::uniform(4, 8).unwrap(),
        row: vec![0, 1, 2, 3, 4, 5, 0, 1],
    };
    let places = case.places();
    let mut climber = case.climber(&places, &Window::default());
    let start = climber.holding.row.clone();
    let path = Path { start, restored: Vec::new(), steps: climber.climb(&places, FREE) };
    assert!(case.unpaid(&path, &places, 10.0, 0.2).is_some());
}

#[test]
fn experts_that_run_hot_together_are_parted() {
    // Experts 0 and 1 are hot in even steps, 2 and 3 in odd ones; summed up, all are alike.
    let loads = Array3::from_shape_fn((8, 1, 4), |(t, _, e)| if (e / 2 + t) % 2 == 0 { 9.0 } else { 1.0 });
    let loads = LoadMatrix::from_window(loads).unwrap();
    let topology = Topology::uniform(2, 4).unwrap();
    let current = eplb_core::Placement::new(4, ndarray::array![[0, 1, 2, 3]]).unwrap();
    let plan = |policy, current| {
        let options = Options { policy, ..Options::default() };
        let request = Request { loads: &loads, topology: &topology, current, options: &options };
        Planner::new(1).unwrap().plan(&request).unwrap()
    };
    for current in [None, Some(&current)] {
        assert!(plan(Policy::Forecast, current).balancedness_steps > 0.999);
    }
    // On the sum nothing is to be gained, and nothing tells the two pairs apart.
    assert!(plan(Policy::Incremental, Some(&current)).balancedness_steps < 0.6);
}

#[test]
fn a_drift_is_planned_for_if_it_is_expected_to_go_on() {
    // Expert 0 cools down as expert 1 heats up; in the step to come 1 and 2 are the hot ones.
    let loads = Array3::from_shape_fn((8, 1, 4), |(t, _, e)| match e {
        0 => 9.0 - t as f64,
        1 => 1.0 + t as f64,
        2 => 8.0,
        _ => 2.0,
    });
    let loads = LoadMatrix::from_window(loads).unwrap();
    let topology = Topology::uniform(2, 4).unwrap();
    let next = ndarray::array![[1.0, 9.0, 8.0, 2.0]];
    let planned = |drift| {
        let window = Window { drift, half_life: f64::INFINITY, ..Window::default() };
        let options = Options { policy: Policy::Forecast, window, ..Options::default() };
        let plan = Planner::new(1).unwrap().plan(&Request::new(&loads, &topology, &options)).unwrap();
        eplb_core::metrics::balancedness(next.view(), &plan.placement, None, &topology).unwrap().mean
    };
    // The mean of the window has experts 0 and 1 alike, and puts either beside 2.
    assert!(planned(1.0) > 0.95, "{}", planned(1.0));
    assert!(planned(0.0) <= planned(1.0));
}

#[test]
fn old_steps_fade_and_long_windows_are_cut_into_blocks() {
    let mut window = Window { half_life: 2.0, shrinkage: 0.0, scenarios: 3, drift: 0.0 };
    let loads = |steps: usize| {
        // Step t has all its load on expert t.
        let loads = Array3::from_shape_fn((steps, 1, steps), |(t, _, e)| if t == e { 5.0 } else { 0.0 });
        LoadMatrix::from_window(loads).unwrap()
    };
    let mut scenarios = super::scenarios::Scenarios::default();
    assert!(scenarios.fill(&loads(3), 0, &Recency::new(3, &window), 1));
    let weights: Vec<f32> = (0..3).map(|e| scenarios.mean(e)).collect();
    for (found, expected) in weights.iter().zip([0.5, 0.5f32.sqrt(), 1.0]) {
        assert!((found - expected / (1.5 + 0.5f32.sqrt())).abs() < 1e-6, "{weights:?}");
    }
    assert!(scenarios.worth() < 3.0 && scenarios.worth() > 2.5);
    // Seven steps in three blocks: each expert still has its weight, and blocks are means.
    window.half_life = f64::INFINITY;
    scenarios.fill(&loads(7), 0, &Recency::new(7, &window), 1);
    assert_eq!(scenarios.groups(), 1);
    assert!((0..7).all(|e| (scenarios.mean(e) - 1.0 / 7.0).abs() < 1e-6));
    assert!((scenarios.worth() - 7.0).abs() < 1e-5);
    // Six half-lives back is far enough.
    window.half_life = 0.5;
    scenarios.fill(&loads(9), 0, &Recency::new(9, &window), 1);
    assert_eq!((0..9).filter(|&e| scenarios.mean(e) > 0.0).count(), 3);
}

#[test]
fn steps_in_which_a_layer_is_idle_say_nothing() {
    let mut loads = Array3::from_elem((4, 1, 3), 0.0);
    loads[(1, 0, 2)] = 7.0;
    let loads = LoadMatrix::from_window(loads).unwrap();
    let recency = Recency::new(4, &Window::default());
    let mut scenarios = super::scenarios::Scenarios::default();
    assert!(scenarios.fill(&loads, 0, &recency, 2));
    assert_eq!((scenarios.mean(0), scenarios.mean(2), scenarios.worth()), (0.0, 2.0, 1.0));
    let idle = LoadMatrix::from_window(Array3::zeros((4, 1, 3))).unwrap();
    assert!(!scenarios.fill(&idle, 0, &recency, 3));
    assert_eq!(scenarios.mean(1), 1.0);
}

#[test]
fn a_budget_goes_where_moves_buy_most() {
    let put = |gain| Step { change: Change::Put { place: 0, expert: 0 }, gain };
    let swap = |gain| Step { change: Change::Swap { a: 0, b: 1 }, gain };
    let path = |restored: &[Step], steps: &[Step]| Path {
        start: vec![0, 1],
        restored: restored.iter().map(|step| step.change).collect(),
        steps: steps.to_vec(),
    };
    let paths =
        [path(&[put(0.0)], &[swap(0.4), put(0.1)]), path(&[], &[put(0.3), put(0.15)]), path(&[], &[])];
    let places = Places::new(&Topology::uniform(2, 2).unwrap(), 2, 2);
    let spend = |budget: Budget| spend(&paths, &places, &budget, &[10, 100, 1]);
    let moves = |moves| spend(Budget { moves: Some(moves), ..Budget::default() });
    assert_eq!(spend(Budget::default()), [2, 2, 0]);
    assert_eq!(moves(6), [2, 2, 0]);
    // One was spent on what had to be put back; then 0.3, then the swap at 0.2 a move.
    assert_eq!(moves(4), [1, 1, 0]);
    // The swap does not fit; what comes after it in its layer needs it first.
    assert_eq!(moves(3), [0, 2, 0]);
    assert_eq!(moves(0), [0, 0, 0]);
    // 10 bytes were put back; 0.3 costs 100 and does not fit; the swap costs 20, what is left 10.
    assert_eq!(spend(Budget { bytes: Some(45), ..Budget::default() }), [2, 0, 0]);
    // Rank 0 gets what was put back, 0.3 and half of the swap, and has none left for what goes to it alone.
    assert_eq!(spend(Budget { moves_per_rank: Some(3), ..Budget::default() }), [1, 1, 0]);
    assert_eq!(spend(Budget { bytes_per_rank: Some(120), ..Budget::default() }), [1, 1, 0]);
}
