//! What waves ask of ports and of staging, in the shapes that `eplb bench exchange` measures.

use eplb_core::{ModelLayout, Placement, TensorLayout, Topology};
use eplb_exchange::{ExchangePlan, Limits};
use ndarray::Array2;

const LAYERS: usize = 2;
const PER_RANK: usize = 20;

fn layout(layers: usize) -> ModelLayout {
    // An expert of a large model in 8-bit floats.
    let tensors = [29_360_128, 14_680_064, 7168, 3584].map(|bytes| TensorLayout::contiguous("w", bytes));
    ModelLayout::new(vec![tensors.to_vec(); layers]).unwrap()
}

/// Every rank takes what its left neighbour has in the first `few` slots.
fn from_left(now: &Placement, few: usize) -> Placement {
    let map = now.phy2log();
    let slots = map.ncols();
    let moved = |slot: usize| if slot % PER_RANK < few { (slot + slots - PER_RANK) % slots } else { slot };
    let new = Array2::from_shape_fn(map.raw_dim(), |(layer, slot)| map[(layer, moved(slot))]);
    Placement::new(now.experts(), new).unwrap()
}

/// Transfers over links into and out of each rank.
fn ports(plan: &ExchangePlan) -> [[usize; 4]; 2] {
    let mut ports = [[0; 4]; 2];
    for transfer in plan.waves().iter().flat_map(|wave| &wave.transfers).filter(|t| !t.is_local()) {
        ports[0][transfer.dest.index()] += 1;
        ports[1][transfer.source.index()] += 1;
    }
    ports
}

#[test]
fn a_slot_that_could_be_drained_stays_a_source_where_the_other_holders_port_is_busy() {
    let (layout, topology) = (layout(LAYERS), Topology::uniform(4, 4 * PER_RANK).unwrap());
    let mut limits = Limits::new(&layout, &topology);
    // Experts 0 and 1 lie on the first rank and on the last, which has to send to the first.
    let start = Placement::round_robin(LAYERS, 64, 4 * PER_RANK).unwrap();
    let new = from_left(&start, 2);
    let plan = ExchangePlan::new(&start, &new, &topology, &layout, None, &limits).unwrap();
    assert_eq!(ports(&plan), [[2 * LAYERS; 4]; 2], "each rank sends what one other wants");
    // Where nothing goes through staging that could do without, the first rank drains its own, and the last sends twice as much.
    limits.followers = false;
    let plan = ExchangePlan::new(&start, &new, &topology, &layout, None, &limits).unwrap();
    assert_eq!(ports(&plan)[1][3], 4 * LAYERS);
}

#[test]
fn an_odd_expert_of_staging_is_not_lost() {
    let (layout, topology) = (layout(LAYERS), Topology::uniform(4, 4 * PER_RANK).unwrap());
    let expert = layout.largest_staged();
    let mut limits = Limits::new(&layout, &topology);
    for (experts, parts) in [(1, [1, 1]), (2, [1, 1]), (3, [2, 1]), (4, [2, 2]), (5, [3, 2]), (6, [3, 3])] {
        for more in [0, expert / 3, expert - 1] {
            limits.staging_bytes = experts * expert + more;
            let [(first, at), (second, behind)] = [0, 1].map(|wave| limits.staging_part(&layout, wave));
            assert_eq!([first / expert, second / expert], parts, "{experts} experts and {more} bytes");
            let (end, apart) = (limits.staging_bytes, if experts > 1 { first } else { 0 });
            assert!(at == 0 && behind == apart && behind + second <= end, "{experts} experts, {more} bytes");
            assert_eq!(limits.staging_part(&layout, 0), limits.staging_part(&layout, 2));
        }
    }
    // Three experts of staging are used as three: two at a time, not one.
    let start = Placement::round_robin(LAYERS, 64, 4 * PER_RANK).unwrap();
    let start = from_left(&start, PER_RANK);
    let waves = |experts: usize| {
        let limits = Limits { staging_bytes: experts * expert, ..Limits::new(&layout, &topology) };
        let plan = ExchangePlan::new(&start, &from_left(&start, PER_RANK), &topology, &layout, None, &limits)
            .unwrap();
        plan.totals().staging_peak / expert
    };
    assert_eq!((waves(2), waves(3)), (1, 2));
}
