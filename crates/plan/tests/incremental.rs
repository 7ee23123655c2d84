//! Promises of `incremental` as properties, from random placements on ranks that differ.

use eplb_core::{LoadMatrix, Placement, RankId, Topology, metrics};
use eplb_plan::{Budget, Options, Plan, Planner, Policy, Request};
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
            let counts: Vec<usize> = (0..ranks).map(|_| rng.random_range(2..=5)).collect();
            let total: usize = counts.iter().sum();
            let mut topology = Topology::new(&counts).unwrap();
            if rng.random_range(0..3) == 0 {
                let speed: Vec<f64> =
                    (0..ranks).map(|_| [0.5, 1.0, 2.0][rng.random_range(0..3usize)]).collect();
                topology = topology.with_speed(&speed).unwrap();
            }
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
            let live = total - counts[ranks - 1];
            if rng.random_range(0..4) == 0 && live >= experts {
                topology = topology.with_dead(&[RankId::at(ranks - 1)]).unwrap();
            }
            let options = Options {
                policy: Policy::Incremental,
                target: [None, Some(0.8), Some(0.95)][rng.random_range(0..3usize)],
                budget: Budget {
                    moves: [None, Some(0), Some(3), Some(20)][rng.random_range(0..4usize)],
                    ..Budget::default()
                },
                max_replicas: [None, Some(current.max_replicas())][rng.random_range(0..2usize)],
                ..Options::default()
            };
            Case { loads, topology, current, options }
        },
    )
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
