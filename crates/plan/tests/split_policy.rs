//! The split as the last step of every plan, and as a policy of its own.

use eplb_core::{LayerId, LoadMatrix, Placement, RankId, Topology};
use eplb_plan::split::split;
use eplb_plan::{Options, Plan, PlanError, Planner, Policy, Request};
use ndarray::{Array2, array};
use proptest::prelude::*;

fn options(policy: Policy) -> Options {
    Options { policy, ..Options::default() }
}

/// Loads `[layers, experts]` over three orders of magnitude, with idle experts.
fn loads(layers: usize, experts: usize) -> impl Strategy<Value = LoadMatrix> {
    let load = prop_oneof![1 => Just(0.0), 6 => (0.0..3.0).prop_map(|power| 10f64.powf(power).round())];
    prop::collection::vec(load, layers * experts).prop_map(move |v| {
        LoadMatrix::from_sum(Array2::from_shape_vec((layers, experts), v).unwrap()).unwrap()
    })
}

/// Loads now, loads later, ranks; 3 slots per rank.
fn drifted() -> impl Strategy<Value = (LoadMatrix, LoadMatrix, Topology)> {
    (1usize..4, 2usize..10, 0usize..8).prop_flat_map(|(layers, experts, spare_ranks)| {
        let ranks = experts.div_ceil(3) + spare_ranks;
        let topology = Topology::uniform(ranks, 3 * ranks).unwrap();
        (loads(layers, experts), loads(layers, experts), Just(topology))
    })
}

fn check_share(plan: &Plan, loads: &LoadMatrix, topology: &Topology) {
    assert_eq!(plan.share, split(loads.sum().view(), &plan.placement, topology).unwrap());
    for (layer, (even, best)) in plan.after.per_layer.iter().zip(&plan.after_share.per_layer).enumerate() {
        let (Some(even), Some(best)) = (even, best) else { continue };
        let bound = plan.bound.per_layer[layer].unwrap();
        assert!(*best >= even - 1e-9, "layer {layer}: {best} below the even split's {even}");
        assert!(*best <= bound + 1e-9, "layer {layer}: {best} above the bound {bound}");
    }
}

proptest! {
    #[test]
    fn every_plan_ends_with_the_best_split((then, now, topology) in drifted()) {
        for &policy in Policy::ALL {
            let current = Planner::new(1).unwrap().place(&Request::new(&then, &topology, &options(Policy::Random)));
            let current = current.unwrap();
            let options = options(policy);
            let request = Request::new(&now, &topology, &options).with_current(&current);
            let plan = Planner::new(1).unwrap().plan(&request).unwrap();
            check_share(&plan, &now, &topology);
        }
    }

    #[test]
    fn the_policy_moves_nothing_and_threads_change_nothing((then, now, topology) in drifted()) {
        let planner = Planner::new(1).unwrap();
        let current = planner.place(&Request::new(&then, &topology, &options(Policy::Random))).unwrap();
        let options = options(Policy::Split);
        let request = Request::new(&now, &topology, &options).with_current(&current);
        let plan = planner.plan(&request).unwrap();
        prop_assert_eq!(&plan.placement, &current);
        prop_assert_eq!(plan.changes.unwrap(), eplb_core::Changes::default());
        prop_assert_eq!(&plan.after, plan.before.as_ref().unwrap());
        prop_assert_eq!(&plan, &Planner::new(3).unwrap().plan(&request).unwrap());
    }
}

#[test]
fn the_policy_needs_a_placement() {
    let (loads, topology) =
        (LoadMatrix::from_sum(array![[1.0, 2.0]]).unwrap(), Topology::uniform(2, 4).unwrap());
    let error = Planner::new(1).unwrap().plan(&Request::new(&loads, &topology, &options(Policy::Split)));
    assert!(matches!(error, Err(PlanError::Unsupported { policy: "split", .. })), "{error:?}");
}

#[test]
fn what_dead_ranks_held_is_listed_and_the_rest_is_split_over_survivors() {
    let topology = Topology::uniform(3, 6).unwrap().with_dead(&[RankId(2)]).unwrap();
    let loads = LoadMatrix::from_sum(array![[6.0, 2.0, 0.0, 5.0]]).unwrap();
    let current = Placement::new(4, array![[0, 1, 0, 2, 0, 3]]).unwrap();
    let options = options(Policy::Split);
    let request = Request::new(&loads, &topology, &options).with_current(&current);
    let plan = Planner::new(1).unwrap().plan(&request).unwrap();
    assert_eq!(plan.placement.phy2log(), array![[0, 1, 0, 2, -1, -1]]);
    let lost = vec![(LayerId(0), eplb_core::ExpertId(3))];
    assert_eq!((plan.left_out, plan.lost), (lost.clone(), lost));
    assert!((plan.after_share.mean - 1.0).abs() < 1e-12, "{:?}", plan.after_share);
    let expected = [2.0 / 6.0, 1.0, 4.0 / 6.0, 1.0, 0.0, 0.0];
    for (slot, (share, expected)) in plan.share.layer(LayerId(0)).iter().zip(expected).enumerate() {
        assert!((share - expected).abs() < 1e-12, "slot {slot}: {share}, not {expected}");
    }
}
