//! What must not matter to a bound, and what must.

use eplb_core::bound::{BoundSolver, bound, even_bound, layer_bound, layer_bound_with};
use eplb_core::{RankId, Topology};
use ndarray::{Array1, Array2, array};

use crate::Random;

#[test]
fn scale_order_and_memory_do_not_matter() {
    let mut random = Random(5);
    for _ in 0..60 {
        let ranks = 2 + random.below(20);
        let slots = ranks + random.below(5 * ranks);
        let topology = Topology::uniform(ranks, slots).unwrap();
        let row = Array1::from_vec({
            let experts = 1 + random.below(slots);
            random.loads(experts)
        });
        let mut reversed = row.to_vec();
        reversed.reverse();
        let mut used = BoundSolver::new(&topology, None);
        used.even_layer(Array1::from_elem(slots, 1.0).view());
        let one = BoundSolver::new(&topology, None).even_layer(row.view());
        assert_eq!(one, used.even_layer(row.view()));
        assert_eq!(one, used.even_layer(Array1::from_vec(reversed).view()));
        // Powers of two change no digit; other factors round.
        for scale in [0.25, 1024.0] {
            let scaled = used.even_layer((&row * scale).view());
            assert_eq!(
                one.map(|b| (b.rank_load * scale, b.balancedness)),
                scaled.map(|b| (b.rank_load, b.balancedness))
            );
        }
        for scale in [1e-9, 3.0, 1e12] {
            let scaled = used.layer((&row * scale).view()).map_or(1.0, |b| b.balancedness);
            let one = used.layer(row.view()).map_or(1.0, |b| b.balancedness);
            assert!((one - scaled).abs() < 1e-6, "{one} {scaled}");
        }
    }
}

#[test]
fn more_slots_and_more_replicas_never_lower_the_bound() {
    let mut random = Random(6);
    for _ in 0..80 {
        let ranks = 2 + random.below(12);
        let experts = ranks + random.below(3 * ranks);
        let row = Array1::from_vec(random.loads(experts));
        let per_rank = experts.div_ceil(ranks);
        let mut last = 0.0;
        for slots in per_rank..per_rank + 4 {
            let topology = Topology::uniform(ranks, slots * ranks).unwrap();
            let now = layer_bound(row.view(), &topology).map_or(1.0, |b| b.balancedness);
            // The parameters of a proof are searched for, so a better proof may be missed by little.
            assert!(now >= last - 1e-3, "{slots} slots per rank: {now} after {last} for {row}");
            last = now;
            let mut fewer = 0.0;
            for replicas in 1..=ranks {
                let with =
                    layer_bound_with(row.view(), &topology, Some(replicas)).map_or(1.0, |b| b.balancedness);
                assert!(with >= fewer - 1e-3, "{replicas} replicas: {with} after {fewer} for {row}");
                fewer = with;
            }
            assert_eq!(fewer, now);
        }
    }
}

#[test]
fn idle_layers_and_idle_experts() {
    let topology = Topology::uniform(4, 8).unwrap();
    assert_eq!(layer_bound(Array1::zeros(8).view(), &topology), None);
    assert_eq!(BoundSolver::new(&topology, None).even_layer(Array1::zeros(8).view()), None);
    let loads = array![[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]];
    let both = bound(loads.view(), &topology);
    // No slot to spare: the one expert with load fills one rank.
    assert_eq!(both.per_layer[0], None);
    assert!((both.mean - 0.25).abs() < 1e-9, "{both:?}");
    assert_eq!(even_bound(loads.view(), &topology), both);
    assert_eq!(bound(Array2::zeros((2, 3)).view(), &topology).mean, 1.0);
}

#[test]
fn dead_ranks_and_ranks_without_slots_hold_nothing() {
    let row = array![6.0, 5.0, 4.0, 3.0];
    let three = layer_bound(row.view(), &Topology::uniform(3, 6).unwrap()).unwrap();
    let dead = Topology::uniform(4, 8).unwrap().with_dead(&[RankId(2)]).unwrap();
    assert_eq!(layer_bound(row.view(), &dead).unwrap(), three);
    let empty = layer_bound(row.view(), &Topology::new(&[2, 2, 0, 2]).unwrap()).unwrap();
    assert_eq!(empty.rank_load, three.rank_load);
    // The rank without a slot counts in the mean.
    assert!((empty.balancedness - 0.75 * three.balancedness).abs() < 1e-9);
    // Too few live slots: some expert is left out, whichever it is.
    let few = Topology::uniform(2, 6).unwrap().with_dead(&[RankId(0)]).unwrap();
    assert_eq!(layer_bound(row.view(), &few).unwrap().balancedness, 1.0);
}

#[test]
fn one_hot_expert_takes_the_spare_slots_and_its_companions() {
    // 2, 2, 1 and 1 slots: expert 0 alone on two ranks and beside one other expert on a third, 13 tokens on three ranks.
    let topology = Topology::uniform(4, 6).unwrap();
    let row = array![12.0, 1.0, 1.0, 1.0];
    let free = layer_bound(row.view(), &topology).unwrap();
    assert!((free.rank_load - 13.0 / 3.0).abs() < 1e-6, "{free:?}");
    let two = layer_bound_with(row.view(), &topology, Some(2)).unwrap();
    assert!((two.rank_load - 6.0).abs() < 1e-6, "{two:?}");
}

#[test]
fn the_largest_expert_drags_the_smallest_along() {
    // No spare slot, three per rank: whoever sits beside the expert of 10 tokens adds 1 + 2 at least.
    let topology = Topology::uniform(3, 9).unwrap();
    let row = array![10.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0];
    let bound = layer_bound(row.view(), &topology).unwrap();
    assert!((bound.rank_load - 13.0).abs() < 1e-6, "{bound:?}");
}

#[test]
fn three_large_experts_on_two_ranks_meet() {
    let bound = layer_bound(array![3.0, 3.0, 3.0, 1.0].view(), &Topology::uniform(2, 4).unwrap()).unwrap();
    assert!((bound.rank_load - 6.0).abs() < 1e-6, "{bound:?}");
}

#[test]
fn even_pieces_leave_gaps() {
    // Two slots per rank, one spare. Any split: the expert of 9 tokens fills what the two of 7 leave. Cut evenly it cannot.
    let topology = Topology::uniform(2, 4).unwrap();
    let row = array![9.0, 7.0, 6.0];
    let mut solver = BoundSolver::new(&topology, None);
    let any = solver.layer(row.view()).unwrap();
    let even = solver.even_layer(row.view()).unwrap();
    assert!((any.rank_load - 11.0).abs() < 1e-6, "{any:?}");
    assert!(even.rank_load >= any.rank_load && even.rank_load <= 11.5, "{even:?}");
}
