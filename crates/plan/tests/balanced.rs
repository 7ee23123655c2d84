//! `balanced` on cases that a person can check.

use eplb_core::{ExpertId, LayerId, LoadMatrix, Placement, RankId, Topology};
use eplb_plan::{Options, Plan, Planner, Policy, Request};
use ndarray::{Array2, array};

fn plan(loads: &Array2<f64>, topology: &Topology, current: Option<&Placement>) -> Plan {
    let loads = LoadMatrix::from_sum(loads.clone()).unwrap();
    let options = Options { policy: Policy::Balanced, target: Some(0.9), ..Options::default() };
    let request = Request { current, ..Request::new(&loads, topology, &options) };
    Planner::new(1).unwrap().plan(&request).unwrap()
}

#[test]
fn the_hot_expert_gets_the_spare_slots() {
    // 24 + 8 tokens on 4 ranks: three replicas of 8 each, and the other four experts together make 8.
    let made = plan(&array![[24.0, 2.0, 2.0, 2.0, 2.0]], &Topology::new(&[1, 1, 1, 4]).unwrap(), None);
    assert_eq!(made.placement.phy2log(), array![[0, 0, 0, 1, 2, 3, 4]]);
    assert_eq!((made.after.mean, made.target_reached), (1.0, Some(true)));
}

#[test]
fn packing_alone_is_not_the_end() {
    // Largest first makes 8 + 5 + 4 and 7 + 6 + 0; exchanging 8 for 6 makes two halves of 15.
    let made = plan(&array![[8.0, 7.0, 6.0, 5.0, 4.0, 0.0]], &Topology::uniform(2, 6).unwrap(), None);
    assert_eq!(made.after.mean, 1.0, "{:?}", made.placement);
}

#[test]
fn one_expert_with_all_the_load_is_on_every_rank() {
    let mut loads = Array2::zeros((1, 6));
    loads[(0, 4)] = 5.0;
    let made = plan(&loads, &Topology::uniform(4, 12).unwrap(), None);
    assert_eq!(made.placement.replicas(LayerId(0), ExpertId(4)).len(), 4);
    assert_eq!(made.after.mean, 1.0);
}

#[test]
fn faster_ranks_take_more() {
    let topology = Topology::uniform(2, 8).unwrap().with_speed(&[3.0, 1.0]).unwrap();
    let made = plan(&array![[4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 0.0]], &topology, None);
    // 12 tokens at speed 3 beside 4 at speed 1.
    assert_eq!(made.after.mean, 1.0, "{:?}", made.placement);
}

#[test]
fn slots_that_no_expert_can_use_stay_empty() {
    let made = plan(&array![[3.0, 1.0]], &Topology::uniform(2, 8).unwrap(), None);
    assert_eq!((made.shortages, made.duplicates), (4, 0));
    assert_eq!(made.placement.logcnt(), array![[2, 2]]);
    assert_eq!(made.after.mean, 1.0);
}

#[test]
fn too_few_live_slots_leave_the_lightest_experts_out() {
    let topology = Topology::uniform(3, 6).unwrap().with_dead(&[RankId(1)]).unwrap();
    let made = plan(&array![[1.0, 9.0, 2.0, 9.0, 9.0, 9.0]], &topology, None);
    assert_eq!(made.left_out, [(LayerId(0), ExpertId(0)), (LayerId(0), ExpertId(2))]);
    assert_eq!(made.placement.layer(LayerId(0)).slice(ndarray::s![2..4]), array![-1, -1]);
}

#[test]
fn experts_stay_in_their_slots_and_sets_on_their_ranks() {
    let loads = array![[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]];
    let topology = Topology::uniform(3, 6).unwrap();
    let first = plan(&loads, &topology, None).placement;
    // The same sets with ranks and slots turned round: nothing needs to move.
    let mut turned = first.phy2log().to_owned();
    turned.row_mut(0).as_slice_mut().unwrap().reverse();
    let current = Placement::new(6, turned).unwrap();
    let made = plan(&loads, &topology, Some(&current));
    assert_eq!(made.placement, current);
    assert_eq!(made.changes.unwrap().moves, 0);
}

#[test]
fn idle_layers_keep_what_is_in_place_and_are_completed() {
    let topology = Topology::uniform(2, 6).unwrap();
    let zeros = Array2::zeros((1, 4));
    let current = Placement::with_missing(4, array![[2, 2, 1, -1, 0, 1]]).unwrap();
    let made = plan(&zeros, &topology, Some(&current));
    let kept = made.placement.layer(LayerId(0)).to_owned();
    assert_eq!((kept[0], kept[2], kept[4], kept[5]), (2, 1, 0, 1), "{kept}");
    // The second copy of 2 on rank 0 and the empty slot take expert 3, which was missing, and one more.
    assert_eq!((made.changes.unwrap().moves, made.shortages, made.left_out.len()), (2, 0, 0));
    let full = Placement::new(4, array![[0, 1, 2, 3, 0, 1]]).unwrap();
    assert_eq!(plan(&zeros, &topology, Some(&full)).placement, full);
    // Without anything in place, replicas are spread evenly.
    let fresh = plan(&zeros, &topology, None).placement;
    assert!(fresh.logcnt().iter().all(|&count| count == 1 || count == 2), "{fresh:?}");
}

#[test]
fn experts_of_dead_ranks_are_planned_again_and_listed() {
    let topology = Topology::uniform(3, 9).unwrap().with_dead(&[RankId(2)]).unwrap();
    let current = Placement::new(6, array![[0, 1, 2, 3, 4, 0, 5, 1, 2]]).unwrap();
    let made = plan(&array![[4.0, 3.0, 3.0, 2.0, 2.0, 2.0]], &topology, Some(&current));
    assert_eq!(made.lost, [(LayerId(0), ExpertId(5))]);
    assert!(made.left_out.is_empty());
    assert!(made.changes.unwrap().moves <= 3, "{:?}", made.placement);
}
