//! What every policy promises, on random loads and topologies.

use eplb_core::{LayerId, LoadMatrix, Placement, RankId, Topology, metrics};
use eplb_plan::{Options, Plan, Planner, Policy, Request};
use ndarray::Array2;
use proptest::prelude::*;

/// Everything a plan is made from.
#[derive(Debug, Clone)]
struct Case {
    loads: LoadMatrix,
    topology: Topology,
    current: Option<Placement>,
    options: Options,
}

impl Case {
    fn plan(&self, threads: usize) -> Plan {
        let request = Request::new(&self.loads, &self.topology, &self.options);
        let request = Request { current: self.current.as_ref(), ..request };
        Planner::new(threads).unwrap().plan(&request).unwrap()
    }

    fn experts(&self) -> usize {
        self.loads.experts()
    }

    fn max_replicas(&self) -> usize {
        self.options.max_replicas.unwrap_or(usize::MAX)
    }
}

fn loads(layers: usize, experts: usize) -> impl Strategy<Value = Array2<f64>> {
    let load = prop_oneof![
        1 => Just(0.0),
        2 => (1u32..4).prop_map(f64::from),
        6 => (0.0..4.0).prop_map(|power| 10f64.powf(power)),
    ];
    let layer = prop_oneof![
        1 => Just(vec![0.0; experts]),
        9 => prop::collection::vec(load, experts),
    ];
    prop::collection::vec(layer, layers)
        .prop_map(move |rows| Array2::from_shape_vec((rows.len(), experts), rows.concat()).unwrap())
}

/// A placement with the loads' shape, without regard to them: what another planner left behind.
fn current(layers: usize, experts: usize, slots: usize) -> impl Strategy<Value = Option<Placement>> {
    let row = prop::collection::vec(-1..experts as i32, slots);
    prop::option::of(prop::collection::vec(row, layers).prop_map(move |rows| {
        Placement::with_missing(experts, Array2::from_shape_vec((rows.len(), slots), rows.concat()).unwrap())
            .unwrap()
    }))
}

/// Ranks that differ in slots and speed, some of them dead.
fn uneven() -> impl Strategy<Value = Case> {
    let ranks = prop::collection::vec((1usize..7, prop_oneof![3 => Just(1.0), 1 => 0.3..3.0], 0u8..8), 1..9);
    (1usize..4, ranks, 1usize..40, prop::option::of(1usize..6), any::<u64>()).prop_flat_map(
        |(layers, ranks, experts, max_replicas, seed)| {
            let slots: Vec<usize> = ranks.iter().map(|r| r.0).collect();
            let speed: Vec<f64> = ranks.iter().map(|r| r.1).collect();
            let dead: Vec<RankId> = (1..ranks.len()).filter(|&i| ranks[i].2 == 0).map(RankId::at).collect();
            let topology =
                Topology::new(&slots).unwrap().with_speed(&speed).unwrap().with_dead(&dead).unwrap();
            let experts = experts.min(topology.slots());
            let policy = prop_oneof![
                4 => Just(Policy::Balanced),
                1 => Just(Policy::Static),
                1 => Just(Policy::Random),
            ];
            let slots = topology.slots();
            (loads(layers, experts), Just(topology), current(layers, experts, slots), policy).prop_map(
                move |(loads, topology, current, policy)| Case {
                    loads: LoadMatrix::from_sum(loads).unwrap(),
                    topology,
                    current,
                    options: Options { policy, max_replicas, seed, ..Options::default() },
                },
            )
        },
    )
}

/// Shapes that `deepseek` takes: everything divides.
fn even() -> impl Strategy<Value = Case> {
    (1usize..4, 1usize..4, 1usize..4, 1usize..4, 1usize..5, 1usize..4).prop_flat_map(
        |(layers, nodes, ranks_per_node, groups_per_node, group_size, spread)| {
            let (ranks, groups) = (nodes * ranks_per_node, nodes * groups_per_node);
            let experts = groups * group_size;
            let slots = experts.div_ceil(ranks) * spread * ranks;
            loads(layers, experts).prop_map(move |loads| Case {
                loads: LoadMatrix::from_sum(loads).unwrap(),
                topology: Topology::uniform(ranks, slots).unwrap().with_nodes(nodes).unwrap(),
                current: None,
                options: Options { policy: Policy::Deepseek, groups, ..Options::default() },
            })
        },
    )
}

fn any_case() -> impl Strategy<Value = Case> {
    prop_oneof![3 => uneven(), 1 => even()]
}

/// Slots that can be filled without a second copy on a rank and within the replica limit.
fn fillable(case: &Case) -> usize {
    let (experts, topology) = (case.experts(), &case.topology);
    let room: usize = topology.live_ranks().map(|r| topology.slot_count(r).min(experts)).sum();
    room.min(experts * case.max_replicas().min(topology.live_ranks().count()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn placements_are_valid(case in any_case()) {
        let plan = case.plan(1);
        let (placement, topology) = (&plan.placement, &case.topology);
        let (layers, live) = (case.loads.layers(), topology.live_slots());
        // Every expert has a slot; with too few live slots, as many as possible have.
        let left_out = case.experts().saturating_sub(
            topology.live_ranks().map(|r| topology.slot_count(r).min(case.experts())).sum(),
        );
        prop_assert_eq!(plan.left_out.len(), left_out * layers);
        prop_assert_eq!(&plan.left_out, &placement.missing().collect::<Vec<_>>());
        // Counts add up.
        let filled = placement.phy2log().iter().filter(|&&e| e >= 0).count();
        prop_assert_eq!(filled as u32, placement.logcnt().sum());
        prop_assert_eq!(filled + plan.shortages, live * layers);
        for rank in topology.all_ranks().filter(|&r| !topology.is_alive(r)) {
            for slot in topology.slots_of(rank) {
                prop_assert!(placement.phy2log().column(slot).iter().all(|&e| e == -1));
            }
        }
        // Maps are inverse of each other.
        for layer in (0..layers).map(LayerId::at) {
            for (slot, &expert) in placement.layer(layer).iter().enumerate().filter(|(_, e)| **e >= 0) {
                let replicas = placement.replicas(layer, eplb_core::ExpertId::at(expert as usize));
                prop_assert!(replicas.iter().any(|s| s.index() == slot));
            }
        }
        // Limits.
        prop_assert!(placement.max_replicas() <= case.max_replicas());
        prop_assert_eq!(plan.duplicates, metrics::duplicates(placement, topology).unwrap());
        if case.options.policy != Policy::Deepseek {
            prop_assert_eq!(plan.duplicates, 0);
        }
        if case.options.policy == Policy::Balanced {
            prop_assert_eq!(plan.shortages, (live - fillable(&case)) * layers, "places left empty for nothing");
        }
    }

    #[test]
    fn nothing_is_better_than_its_bound(case in any_case()) {
        let plan = case.plan(1);
        if !plan.left_out.is_empty() {
            return Ok(());
        }
        for (layer, bound) in plan.bound.per_layer.iter().enumerate() {
            for balance in [&plan.after, &plan.after_share] {
                let value = balance.per_layer[layer];
                prop_assert_eq!(value.is_some(), bound.is_some());
                prop_assert!(value <= bound.map(|b| b + 1e-9), "layer {}: {:?} above {:?}", layer, value, bound);
            }
        }
    }

    #[test]
    fn threads_change_nothing(case in any_case()) {
        let one = case.plan(1);
        for threads in [2, 8] {
            prop_assert_eq!(&one, &case.plan(threads));
        }
    }

    #[test]
    fn a_used_planner_plans_as_a_new_one(first in any_case(), second in any_case()) {
        let planner = Planner::new(1).unwrap();
        for case in [&first, &second] {
            let request = Request::new(&case.loads, &case.topology, &case.options);
            let request = Request { current: case.current.as_ref(), ..request };
            prop_assert_eq!(planner.plan(&request).unwrap(), case.plan(1));
        }
    }

    #[test]
    fn powers_of_two_change_nothing(case in any_case(), exponent in -900i32..900) {
        let scaled = case.loads.sum() * 2f64.powi(exponent);
        let scaled = Case { loads: LoadMatrix::from_sum(scaled).unwrap(), ..case.clone() };
        prop_assert_eq!(case.plan(1).placement, scaled.plan(1).placement);
    }

    #[test]
    fn other_units_change_no_balance(case in uneven(), scale in 1e-3..1e3) {
        let scaled = Case { loads: LoadMatrix::from_sum(case.loads.sum() * scale).unwrap(), ..case.clone() };
        let (one, other) = (case.plan(1).after.mean, scaled.plan(1).after.mean);
        prop_assert!((one - other).abs() < 1e-9, "{} {}", one, other);
    }

    #[test]
    fn what_is_in_place_changes_moves_and_not_the_balance(case in uneven()) {
        let options = Options { policy: Policy::Balanced, ..case.options.clone() };
        let case = Case { options, ..case };
        let fresh = Case { current: None, ..case.clone() };
        let (kept, fresh) = (case.plan(1), fresh.plan(1));
        prop_assert!((kept.after.mean - fresh.after.mean).abs() < 1e-12);
        let Some(current) = &case.current else { return Ok(()) };
        let moved_fresh = metrics::changes(current, &fresh.placement, &case.topology).unwrap().moves;
        // Sets are only exchanged between ranks to keep more; idle layers may move less still.
        prop_assert!(kept.changes.unwrap().moves <= moved_fresh);
    }
}
