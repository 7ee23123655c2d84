//! Promises of `forecast` as properties, from random placements on ranks that differ, some of them dead.

mod arrivals;
mod drawn;

use arrivals::Arrivals;
use eplb_core::{LoadMatrix, Placement, RankId, Topology, metrics};
use eplb_plan::{
    Aim, Budget, CostModel, Dispatch, NodeRule, Options, Plan, Planner, Policy, Request, Window, Worth,
};
use ndarray::{Array2, Array3};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Case {
    loads: Array3<f64>,
    topology: Topology,
    current: Option<Placement>,
    options: Options,
}

impl Case {
    fn plan(&self, threads: usize) -> Plan {
        let loads = LoadMatrix::from_window(self.loads.clone()).unwrap();
        let mut request = Request::new(&loads, &self.topology, &self.options);
        request.current = self.current.as_ref();
        Planner::new(threads).unwrap().plan(&request).unwrap()
    }
}

fn case() -> impl Strategy<Value = Case> {
    (2..=6usize, 1..=4usize, 1..=3usize, any::<u64>()).prop_perturb(
        |(ranks, layers, spare, seed), mut rng| {
            let mut topology = drawn::topology(ranks, &mut rng);
            let total = topology.slots();
            let experts = (total - spare.min(total - 1)).max(1);
            let steps = rng.random_range(1..=9);
            let loads = Array3::from_shape_fn((steps, layers, experts), |_| {
                f64::from(rng.random_range(0..40u32).pow(2))
            });
            let options = Options { policy: Policy::Random, seed, ..Options::default() };
            let before = LoadMatrix::from_sum(Array2::ones((layers, experts))).unwrap();
            let placed = Planner::new(1).unwrap().plan(&Request::new(&before, &topology, &options)).unwrap();
            let current = (rng.random_range(0..5) > 0).then_some(placed.placement);
            let live = total - topology.slot_count(RankId::at(ranks - 1));
            if rng.random_range(0..4) == 0 && live >= experts {
                topology = topology.with_dead(&[RankId::at(ranks - 1)]).unwrap();
            }
            let most = current.as_ref().map_or(3, Placement::max_replicas);
            let options = Options {
                policy: Policy::Forecast,
                move_price: [0.0, 0.001, 0.05][rng.random_range(0..3usize)],
                window: Window {
                    half_life: [1.0, 10.0, f64::INFINITY][rng.random_range(0..3usize)],
                    shrinkage: [0.0, 2.0][rng.random_range(0..2usize)],
                    drift: [0.0, 1.0][rng.random_range(0..2usize)],
                    scenarios: [1, 4, 32][rng.random_range(0..3usize)],
                },
                budget: Budget {
                    moves: [None, Some(0), Some(3), Some(20)][rng.random_range(0..4usize)],
                    moves_per_rank: [None, Some(1)][rng.random_range(0..2usize)],
                    bytes: [None, Some(25)][rng.random_range(0..2usize)],
                    ..Budget::default()
                },
                expert_bytes: vec![4],
                max_replicas: [None, Some(most)][rng.random_range(0..2usize)],
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
        let plan = case.plan(1);
        prop_assert_eq!(plan.placement.missing().count(), 0);
        prop_assert_eq!(plan.duplicates, 0);
        if let Some(most) = case.options.max_replicas {
            prop_assert!(plan.placement.max_replicas() <= most);
        }
        prop_assert!(plan.after.mean <= plan.bound.mean + 1e-9);
        for rank in case.topology.all_ranks().filter(|&r| !case.topology.is_alive(r)) {
            for slot in case.topology.slots_of(rank) {
                prop_assert!(plan.placement.phy2log().column(slot).iter().all(|&e| e == -1));
            }
        }
        let Some(current) = &case.current else { return Ok(()) };
        let kept = current.survivors(&case.topology).unwrap();
        let moves = metrics::changes(&kept, &plan.placement, &case.topology).unwrap().moves;
        // Experts that only a dead rank held must be fetched, budget or not.
        let lost = kept.missing().count();
        let budget = case.options.budget;
        if let Some(most) = budget.moves {
            prop_assert!(moves <= most.max(lost), "{moves} moves of {most}, {lost} lost");
        }
        if let Some(most) = budget.bytes {
            prop_assert!(4 * moves as u64 <= most.max(4 * lost as u64), "{moves} moves, {lost} lost");
        }
        let arrivals = Arrivals::between(&kept, &plan.placement, &case.topology);
        let layers = 0..plan.placement.layers();
        prop_assert_eq!(moves, layers.map(|layer| arrivals.of_layer(layer)).sum::<usize>());
        if lost == 0 {
            prop_assert_eq!(arrivals.broken_budget(&case.options), None);
        }
        prop_assert!(moves >= lost);
    }

    #[test]
    fn threads_and_powers_of_two_change_nothing(case in case(), exponent in -400i32..400) {
        let one = case.plan(1).placement;
        for threads in [2, 8] {
            prop_assert_eq!(&one, &case.plan(threads).placement);
        }
        let scaled = Case { loads: &case.loads * 2f64.powi(exponent), ..case.clone() };
        prop_assert_eq!(&one, &scaled.plan(1).placement);
    }

    #[test]
    fn a_price_that_nothing_can_pay_moves_nothing(case in case()) {
        let options = Options { move_price: 1.0, budget: Budget::default(), ..case.options.clone() };
        let case = Case { options, ..case };
        let plan = case.plan(1);
        let Some(current) = &case.current else { return Ok(()) };
        let kept = current.survivors(&case.topology).unwrap();
        let moves = metrics::changes(&kept, &plan.placement, &case.topology).unwrap().moves;
        prop_assert_eq!(moves, kept.missing().count());
    }
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let loads = LoadMatrix::from_sum(Array2::ones((1, 4))).unwrap();
    let topology = Topology::uniform(2, 4).unwrap();
    let window = Window::default();
    for (options, name) in [
        (Options { move_price: -0.1, ..Options::default() }, "move_price"),
        (Options { move_price: f64::NAN, ..Options::default() }, "move_price"),
        (Options { window: Window { half_life: 0.0, ..window.clone() }, ..Options::default() }, "half_life"),
        (Options { window: Window { shrinkage: -1.0, ..window.clone() }, ..Options::default() }, "shrinkage"),
        (Options { window: Window { drift: 1.5, ..window.clone() }, ..Options::default() }, "drift"),
        (Options { window: Window { drift: f64::NAN, ..window.clone() }, ..Options::default() }, "drift"),
        (Options { window: Window { scenarios: 0, ..window.clone() }, ..Options::default() }, "scenarios"),
    ] {
        let error = Planner::new(1).unwrap().plan(&Request::new(&loads, &topology, &options)).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn what_it_does_not_weigh_is_refused_with_another_way() {
    let loads = LoadMatrix::from_sum(Array2::ones((1, 8))).unwrap();
    let topology = Topology::uniform(4, 12).unwrap().with_nodes(2).unwrap();
    let base = Options { policy: Policy::Forecast, ..Options::default() };
    let plan = |options: &Options| Planner::new(1).unwrap().plan(&Request::new(&loads, &topology, options));
    assert!(plan(&base).is_ok());
    let worth = Worth { steps: 1.0, layer_seconds: 1.0, link_gbps: 1.0 };
    let cases = [
        (Options { nodes: NodeRule::Priced(0.3), ..base.clone() }, Aim::NodePrice, "incremental or balanced"),
        (Options { nodes: NodeRule::Strict, groups: 2, ..base.clone() }, Aim::Strict, "balanced"),
        (
            Options { cost: CostModel { per_expert: 2.0, per_token: 1.0 }, ..base.clone() },
            Aim::Cost,
            "incremental or balanced",
        ),
        (Options { dispatch: Dispatch::Share, ..base.clone() }, Aim::Dispatch, "incremental or balanced"),
        (Options { dispatch: Dispatch::Nearest, ..base.clone() }, Aim::Dispatch, "incremental or balanced"),
        (Options { replicate_top: 1, ..base.clone() }, Aim::ReplicateTop, "incremental or balanced"),
        (Options { worth: Some(worth), expert_bytes: vec![1], ..base.clone() }, Aim::Worth, "move_price"),
    ];
    for (options, aim, instead) in cases {
        let error = plan(&options).unwrap_err().to_string();
        for part in ["forecast", aim.name(), instead] {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
        // Without it the plan is the one that was made before it was asked for.
        let (fitting, without) = options.for_policy();
        assert_eq!(without, [aim]);
        let plain = plan(&Options { groups: options.groups, ..base.clone() }).unwrap();
        assert_eq!(plan(&fitting).unwrap().placement, plain.placement);
    }
    // Times in another unit are no other objective.
    let unit = CostModel { per_expert: 0.0, per_token: 3.0 };
    assert!(plan(&Options { cost: unit, ..base }).is_ok());
}
