//! What waves ask of ports and of staging, in the shapes that `eplb bench exchange` measures.

use eplb_core::{ModelLayout, Placement, TensorLayout, Topology};
use eplb_exchange::{ExchangePlan, Limits, Part};
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

/// Bytes in units of experts that each wave carries through its busiest port, summed up; and through the busiest port of all
/// waves together.
fn port_loads(plan: &ExchangePlan, ranks: usize) -> (Vec<usize>, usize) {
    let mut whole = vec![0; 2 * ranks];
    let mut worst = Vec::new();
    for wave in plan.waves() {
        let mut ports = vec![0; 2 * ranks];
        for transfer in wave.transfers.iter().filter(|transfer| !transfer.is_local()) {
            ports[transfer.dest.index()] += 1;
            ports[ranks + transfer.source.index()] += 1;
        }
        worst.push(ports.iter().copied().max().unwrap_or(0));
        whole.iter_mut().zip(ports).for_each(|(sum, port)| *sum += port);
    }
    (worst, whole.into_iter().max().unwrap_or(0))
}

/// Every rank takes all experts of its left neighbour: what can go first is on one rank only.
#[test]
fn ports_are_busy_together() {
    let (ranks, layers, per_rank, experts) = (4, 8, 20, 64);
    let topology = Topology::uniform(ranks, ranks * per_rank).unwrap();
    let layout = ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 64)]; layers]).unwrap();
    let old = Placement::round_robin(layers, experts, ranks * per_rank).unwrap();
    let from_left = |slot: usize| (slot + (ranks - 1) * per_rank) % (ranks * per_rank);
    let map = Array2::from_shape_fn(old.phy2log().raw_dim(), |(l, slot)| old.phy2log()[(l, from_left(slot))]);
    let new = Placement::new(experts, map).unwrap();
    let plan = |wave_bytes| {
        let limits = Limits { wave_bytes, staging_bytes: 6 * 64, ..Limits::new(&layout, &topology) };
        ExchangePlan::new(&old, &new, &topology, &layout, None, &limits).unwrap()
    };
    let (worst, whole) = port_loads(&plan(Some(13 * 64)), ranks);
    let sum: usize = worst.iter().sum();
    assert!(worst.iter().all(|&worst| worst <= 14), "{worst:?}");
    assert!(4 * sum <= 5 * whole, "one wave after the other: {sum}, all at once: {whole}; {worst:?}");
    // Without a limit, ranks take turns.
    let (worst, whole) = port_loads(&plan(Some(u64::MAX)), ranks);
    assert!(worst.iter().sum::<usize>() > 2 * whole, "{worst:?}, {whole}");
}

/// Two slots of every rank take the experts of its left neighbour: chains of slots of which only the last can be drained at once.
#[test]
fn chains_keep_all_ports_busy_through_staging() {
    let (ranks, layers, per_rank, experts, bytes) = (4, 8, 20, 64, 64);
    let topology = Topology::uniform(ranks, ranks * per_rank).unwrap();
    let layout = ModelLayout::new(vec![vec![TensorLayout::contiguous("w", bytes)]; layers]).unwrap();
    let old = Placement::round_robin(layers, experts, ranks * per_rank).unwrap();
    let from_left = |slot: usize| (slot + (ranks - 1) * per_rank) % (ranks * per_rank);
    let from = |slot: usize| if slot % per_rank < 2 { from_left(slot) } else { slot };
    let map = Array2::from_shape_fn(old.phy2log().raw_dim(), |(l, slot)| old.phy2log()[(l, from(slot))]);
    let new = Placement::new(experts, map).unwrap();
    let plan = |followers, staged: usize, wave_cost: usize| {
        let (wave_cost, staging_bytes) = ((wave_cost * bytes) as u64, staged * bytes);
        let limits = Limits { followers, wave_cost, staging_bytes, ..Limits::new(&layout, &topology) };
        ExchangePlan::new(&old, &new, &topology, &layout, None, &limits).unwrap()
    };
    let busy = |plan: &ExchangePlan| {
        let (worst, whole) = port_loads(plan, ranks);
        worst.iter().sum::<usize>() as f64 / whole as f64
    };
    let through_staging = plan(true, 6, 2);
    assert!(busy(&through_staging) < 1.1, "{}", busy(&through_staging));
    assert!(through_staging.totals().staged > 0);
    // What the check is worth: chains that wait for their drains take turns. But then no byte is staged.
    let drained = plan(false, 6, 2);
    assert!(busy(&drained) > 1.5 && drained.totals().staged == 0, "{}", busy(&drained));
    // Where agreements are dear, waves are few.
    let dear = plan(true, 6, 1 << 20);
    assert!(dear.waves().len() < through_staging.waves().len(), "{} waves", dear.waves().len());
    // Most of what comes next goes ahead.
    let early: usize = (0..through_staging.waves().len())
        .map(|wave| through_staging.transfers(wave, Part::Early).len())
        .sum();
    assert!(3 * early > 2 * through_staging.totals().moves, "{early} of {}", through_staging.totals().moves);
}
