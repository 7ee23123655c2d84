//! Promises of `incremental` as properties, from random placements on ranks that differ.

mod arrivals;
mod drawn;

use arrivals::{Arrivals, bytes_of};
use eplb_core::{LoadMatrix, Placement, RankId, Topology, metrics};
use eplb_plan::{Budget, CurvePoint, Options, Plan, Planner, Policy, Request, Worth};
use ndarray::Array2;
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Case {
    loads: Array2<f64>,
    topology: Topology,
    current: Placement,
    options: Options,
}

impl Case {
    fn plan(&self, loads: &Array2<f64>, threads: usize) -> Plan {
        let loads = LoadMatrix::from_sum(loads.clone()).unwrap();
        let request = Request::new(&loads, &self.topology, &self.options).with_current(&self.current);
        Planner::new(threads).unwrap().plan(&request).unwrap()
    }
}

fn case() -> impl Strategy<Value = Case> {
    (2..=6usize, 1..=4usize, 1..=3usize, any::<u64>()).prop_perturb(
        |(ranks, layers, spare, seed), mut rng| {
            let mut topology = drawn::topology(ranks, &mut rng);
            let total = topology.slots();
            let experts = (total - spare.min(total - 1)).min(total).max(1);
            let mut random = |most: u32| {
                Array2::from_shape_fn((layers, experts), |_| f64::from(rng.random_range(0..most).pow(2)))
            };
            let (before, loads) = (random(40), random(40));
            // The placement in force: any valid one, without two copies of an expert on a rank.
            let options = Options { policy: Policy::Random, seed, ..Options::default() };
            let before = LoadMatrix::from_sum(before).unwrap();
            let current =
                Planner::new(1).unwrap().plan(&Request::new(&before, &topology, &options)).unwrap().placement;
            let live = total - topology.slot_count(RankId::at(ranks - 1));
            if rng.random_range(0..4) == 0 && live >= experts {
                topology = topology.with_dead(&[RankId::at(ranks - 1)]).unwrap();
            }
            let options = Options {
                policy: Policy::Incremental,
                target: [None, Some(0.8), Some(0.95)][rng.random_range(0..3usize)],
                budget: Budget {
                    moves: [None, Some(0), Some(3), Some(20)][rng.random_range(0..4usize)],
                    moves_per_rank: [None, None, Some(1), Some(4)][rng.random_range(0..4usize)],
                    bytes: [None, None, Some(7), Some(30)][rng.random_range(0..4usize)],
                    bytes_per_rank: [None, None, Some(3), Some(9)][rng.random_range(0..4usize)],
                },
                expert_bytes: if rng.random_range(0..2) == 0 {
                    vec![3]
                } else {
                    (2..).take(layers).collect()
                },
                worth: [None, Some(Worth { steps: 10.0, layer_seconds: 1e-9, link_gbps: 1.0 })]
                    [rng.random_range(0..2usize)],
                max_replicas: [None, Some(current.max_replicas())][rng.random_range(0..2usize)],
                ..Options::default()
            };
            Case { loads, topology, current, options }
        },
    )
}

impl Case {
    fn curve(&self) -> Vec<CurvePoint> {
        let loads = LoadMatrix::from_sum(self.loads.clone()).unwrap();
        let request = Request::new(&loads, &self.topology, &self.options).with_current(&self.current);
        Planner::new(1).unwrap().curve(&request).unwrap()
    }

    /// What each rank gets under a plan.
    fn arrivals(&self, to: &Placement) -> Arrivals {
        Arrivals::between(&self.current, to, &self.topology)
    }

    /// Which limit a placement breaks. `lost` experts are put back whatever the limits say.
    fn broken_budget(&self, to: &Placement, lost: bool) -> Option<&'static str> {
        if lost { None } else { self.arrivals(to).broken_budget(&self.options) }
    }

    /// A layer with moves that cost more than they save.
    fn unpaid_layer(&self, plan: &Plan, worth: Worth) -> Option<usize> {
        let arrivals = self.arrivals(&plan.placement);
        let before = plan.before.as_ref().unwrap();
        (0..plan.placement.layers()).find(|&layer| {
            let moves = arrivals.of_layer(layer);
            let (Some(before), Some(after)) = (before.per_layer[layer], plan.after.per_layer[layer]) else {
                return moves > 0;
            };
            let ranks = self.topology.live_ranks().count();
            let bytes = bytes_of(&self.options, layer);
            moves > 0 && worth.saved_seconds(before, after) <= worth.link_seconds(moves, bytes, ranks)
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn plans_are_valid_and_within_their_budget(case in case()) {
        let plan = case.plan(&case.loads, 1);
        prop_assert_eq!(plan.placement.missing().count(), 0);
        prop_assert_eq!(plan.duplicates, 0);
        if let Some(most) = case.options.max_replicas {
            prop_assert!(plan.placement.max_replicas() <= most);
        }
        let kept = case.current.survivors(&case.topology).unwrap();
        let moves = metrics::changes(&kept, &plan.placement, &case.topology).unwrap().moves;
        // Experts that only a dead rank held must be fetched, budget or not.
        let lost = kept.missing().count();
        if let Some(most) = case.options.budget.moves {
            prop_assert!(moves <= most.max(lost), "{moves} moves of {most}, {lost} lost");
        }
        prop_assert_eq!(case.broken_budget(&plan.placement, lost > 0), None);
        if let Some(worth) = case.options.worth.filter(|_| case.topology.all_alive()) {
            prop_assert_eq!(case.unpaid_layer(&plan, worth), None);
            // Left alone means that every slot keeps what it holds.
            let arrivals = case.arrivals(&plan.placement);
            for layer in (0..plan.placement.layers()).filter(|&l| arrivals.of_layer(l) == 0) {
                let improved = plan.after.per_layer[layer] > plan.before.as_ref().unwrap().per_layer[layer];
                let same = plan.placement.phy2log().row(layer) == case.current.phy2log().row(layer);
                prop_assert!(same || improved);
            }
        }
        prop_assert!(plan.after.mean <= plan.bound.mean + 1e-9);
        for rank in case.topology.all_ranks().filter(|&r| !case.topology.is_alive(r)) {
            for slot in case.topology.slots_of(rank) {
                prop_assert!(plan.placement.phy2log().column(slot).iter().all(|&e| e == -1));
            }
        }
        if case.topology.all_alive() {
            let before = plan.before.as_ref().unwrap().mean;
            prop_assert!(plan.after.mean + 1e-12 >= before);
            if case.options.target.is_some_and(|target| before >= target) {
                prop_assert_eq!(moves, 0);
            }
        }
    }

    #[test]
    fn the_curve_rises_and_ends_where_the_plan_does(case in case()) {
        let (curve, plan) = (case.curve(), case.plan(&case.loads, 1));
        prop_assert!(curve.is_sorted_by(|a, b| a.moves < b.moves && a.balancedness < b.balancedness));
        let end = curve[curve.len() - 1];
        let ranks = case.arrivals(&plan.placement).of_ranks(&case.options);
        prop_assert_eq!(end.moves, ranks.iter().map(|rank| rank.0).sum::<usize>());
        prop_assert!((end.balancedness - plan.after.mean).abs() < 1e-9);
        let slots = plan.total_slots() as f64;
        prop_assert!(curve.iter().all(|point| point.moved_fraction == point.moves as f64 / slots));
        let bytes: u64 = ranks.iter().map(|rank| rank.1).sum();
        prop_assert_eq!(end.bytes, Some(bytes));
    }

    #[test]
    fn threads_and_powers_of_two_change_nothing(case in case()) {
        let one = case.plan(&case.loads, 1).placement;
        for threads in [2, 8] {
            prop_assert_eq!(&one, &case.plan(&case.loads, threads).placement);
        }
        for scale in [0.25, 1024.0] {
            prop_assert_eq!(&one, &case.plan(&(&case.loads * scale), 1).placement);
        }
    }
}

#[test]
fn a_placement_in_force_is_needed() {
    let loads = LoadMatrix::from_sum(Array2::ones((1, 4))).unwrap();
    let topology = Topology::uniform(2, 4).unwrap();
    let options = Options { policy: Policy::Incremental, ..Options::default() };
    let error = Planner::new(1).unwrap().plan(&Request::new(&loads, &topology, &options)).unwrap_err();
    assert!(error.to_string().contains("--current"), "{error}");
}

/// A layer that is far off balance, on 4 ranks with 3 slots, and room for gains of all sizes.
fn skewed() -> Case {
    let loads = Array2::from_shape_fn((3, 10), |(l, e)| 1.0 + ((e * (l + 3)) % 10) as f64 * (l + 1) as f64);
    let row = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1];
    let current = Placement::new(10, Array2::from_shape_fn((3, 12), |(_, p)| row[p])).unwrap();
    let options = Options { policy: Policy::Incremental, expert_bytes: vec![5], ..Options::default() };
    Case { loads, topology: Topology::uniform(4, 12).unwrap(), current, options }
}

#[test]
fn a_plan_beyond_its_budget_would_be_seen() {
    // The planted fault: the plan is made without the budget that it is judged by.
    let mut case = skewed();
    let plan = case.plan(&case.loads, 1);
    assert_eq!(case.broken_budget(&plan.placement, false), None);
    let none = Budget::default();
    for (budget, broken) in [
        (Budget { moves: Some(1), ..none }, "moves"),
        (Budget { bytes: Some(9), ..none }, "bytes"),
        (Budget { moves_per_rank: Some(0), ..none }, "moves per rank"),
        (Budget { bytes_per_rank: Some(4), ..none }, "bytes per rank"),
    ] {
        case.options.budget = budget;
        assert_eq!(case.broken_budget(&plan.placement, false), Some(broken));
        let kept = case.plan(&case.loads, 1);
        assert_eq!(case.broken_budget(&kept.placement, false), None);
    }
}

#[test]
fn a_layer_that_does_not_pay_would_be_seen() {
    let mut case = skewed();
    let greedy = case.plan(&case.loads, 1);
    // Moves cost more than all steps together take.
    let dear = Worth { steps: 1.0, layer_seconds: 1e-9, link_gbps: 1e-3 };
    assert!(case.unpaid_layer(&greedy, dear).is_some());
    case.options.worth = Some(dear);
    assert_eq!(case.plan(&case.loads, 1).placement, case.current);
    // Moves cost next to nothing: nothing is left out.
    case.options.worth = Some(Worth { steps: 1e9, layer_seconds: 1.0, link_gbps: 1e3 });
    assert_eq!(case.plan(&case.loads, 1).placement, greedy.placement);
    // In between some layers pay and others do not.
    let between = |steps: f64| {
        let mut case = case.clone();
        case.options.worth = Some(Worth { steps, layer_seconds: 1e-9, link_gbps: 1.0 });
        case.plan(&case.loads, 1).changes.unwrap().moves
    };
    let moves: Vec<usize> = (0..12).map(|power| between(2f64.powi(power))).collect();
    assert!(moves.is_sorted(), "{moves:?}");
    assert!(moves.iter().any(|&m| m > 0 && m < greedy.changes.as_ref().unwrap().moves), "{moves:?}");
}

#[test]
fn numbers_that_mean_nothing_are_refused() {
    let case = skewed();
    let refused = |options: Options| {
        let loads = LoadMatrix::from_sum(case.loads.clone()).unwrap();
        let request = Request::new(&loads, &case.topology, &options).with_current(&case.current);
        Planner::new(1).unwrap().plan(&request).unwrap_err().to_string()
    };
    let worth = Worth { steps: 10.0, layer_seconds: 1e-4, link_gbps: 50.0 };
    let with = |worth| Options { worth: Some(worth), ..case.options.clone() };
    assert!(refused(with(Worth { steps: 0.0, ..worth })).contains("worth.steps"));
    assert!(refused(with(Worth { layer_seconds: f64::NAN, ..worth })).contains("worth.layer_seconds"));
    assert!(refused(with(Worth { link_gbps: -1.0, ..worth })).contains("worth.link_gbps"));
    let unknown = Options { expert_bytes: Vec::new(), ..case.options.clone() };
    let budget = Budget { bytes: Some(1), ..Budget::default() };
    assert!(refused(Options { budget, ..unknown.clone() }).contains("expert_bytes"));
    assert!(refused(Options { worth: Some(worth), ..unknown }).contains("expert_bytes"));
    assert!(refused(Options { expert_bytes: vec![1, 2], ..case.options.clone() }).contains("expert_bytes"));
}

#[test]
fn second_copies_stay_where_a_layer_does() {
    let mut case = skewed();
    // Rank 0 holds expert 0 twice; so would any plan that starts from what another planner left.
    let row = [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1];
    case.current = Placement::new(10, Array2::from_shape_fn((3, 12), |(_, p)| row[p])).unwrap();
    case.options.target = Some(0.0);
    assert_eq!(case.plan(&case.loads, 1).placement, case.current);
    case.options.target = None;
    let plan = case.plan(&case.loads, 1);
    assert!(plan.after.mean > plan.before.unwrap().mean);
    assert_eq!(plan.duplicates, 0);
}

#[test]
fn a_way_around_that_costs_no_more_than_the_start_takes_its_place_on_the_curve() {
    // Experts of the dead rank are put back at the start, which spends the budget of ranks; the way around finds
    // better places for them at the same number of moves.
    let loads = ndarray::array![
        [324.0, 400.0, 49.0, 576.0, 121.0, 100.0, 784.0, 784.0, 1444.0, 256.0, 1521.0],
        [36.0, 225.0, 961.0, 841.0, 441.0, 169.0, 25.0, 441.0, 289.0, 1225.0, 576.0],
        [529.0, 225.0, 400.0, 441.0, 784.0, 49.0, 25.0, 256.0, 256.0, 625.0, 1024.0],
    ];
    let current = ndarray::array![
        [2, 8, 0, 6, 8, 7, 1, 9, 0, 10, 8, 5, 4, 3],
        [2, 3, 4, 5, 8, 2, 7, 9, 2, 10, 1, 10, 6, 0],
        [0, 7, 2, 9, 6, 4, 8, 4, 7, 6, 10, 5, 3, 1],
    ];
    let topology = Topology::new(&[2, 5, 4, 3]).unwrap().with_speed(&[2.0, 2.0, 0.5, 0.5]).unwrap();
    let options = Options {
        policy: Policy::Incremental,
        target: Some(0.8),
        budget: Budget { moves: Some(20), moves_per_rank: Some(1), ..Budget::default() },
        expert_bytes: vec![2, 3, 4],
        max_replicas: Some(3),
        ..Options::default()
    };
    let case = Case {
        loads,
        topology: topology.with_dead(&[RankId::at(3)]).unwrap(),
        current: Placement::new(11, current).unwrap(),
        options,
    };
    let curve = case.curve();
    assert!(curve.is_sorted_by(|a, b| a.moves < b.moves && a.balancedness < b.balancedness), "{curve:?}");
    assert_eq!(curve.last().unwrap().balancedness, case.plan(&case.loads, 1).after.mean);
}
