//! Properties of waves over random pairs of placements, checked by an executor that knows nothing of the planner: it
//! keeps what every slot and every staging range really holds, and who reads and writes it when.

use eplb_core::metrics::{balancedness, changes};
use eplb_core::{
    ExpertId, Fill, Landing, LayerId, ModelLayout, Placement, RankId, SlotId, TensorLayout, Topology, Wave,
};
use eplb_exchange::{ExchangeError, ExchangePlan, Limits, Part};
use ndarray::Array2;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRng;

/// One random exchange.
#[derive(Debug, Clone)]
struct Case {
    topology: Topology,
    layout: ModelLayout,
    old: Placement,
    new: Placement,
    loads: Option<Array2<f64>>,
    limits: Limits,
}

fn random_rows(
    rng: &mut TestRng,
    topology: &Topology,
    layers: usize,
    experts: usize,
    holes: bool,
) -> Array2<i32> {
    let slots = topology.slots();
    let live: Vec<usize> =
        (0..slots).filter(|&s| topology.is_alive(topology.rank_of(SlotId::at(s)))).collect();
    let mut map = Array2::from_elem((layers, slots), -1);
    for layer in 0..layers {
        let mut order = live.clone();
        for i in (1..order.len()).rev() {
            order.swap(i, rng.random_range(0..=i));
        }
        for (i, &slot) in order.iter().enumerate() {
            map[(layer, slot)] = if i < experts {
                i as i32
            } else if holes && rng.random_range(0..3) == 0 {
                -1
            } else {
                // Any expert: also one that the rank has already, so that ranks hold duplicates.
                rng.random_range(0..experts) as i32
            };
        }
    }
    map
}

fn case(max_ranks: usize) -> impl Strategy<Value = Case> {
    (1..=max_ranks, 1..=4usize, any::<bool>(), any::<bool>(), 0..4usize).prop_perturb(
        move |(ranks, layers, holes, with_loads, shape), mut rng| {
            let counts: Vec<usize> = (0..ranks).map(|_| rng.random_range(1..=6)).collect();
            let mut topology = Topology::new(&counts).unwrap();
            if ranks > 2 && rng.random_range(0..4) == 0 {
                topology = topology.with_nodes(2).unwrap();
            }
            let total = topology.slots();
            let experts = match shape {
                0 => total,
                1 => rng.random_range(1..=total),
                _ => rng.random_range(total.div_ceil(2)..=total),
            };
            let sizes = (0..layers).map(|l| {
                vec![
                    TensorLayout::contiguous("w13", 8 * (1 + (l % 3)) + rng.random_range(0..5)),
                    TensorLayout { name: "w2".into(), rows: 3, row_bytes: 5, pitch: 8, slot_stride: 24 },
                ]
            });
            let layout = ModelLayout::new(sizes.collect()).unwrap();
            let old =
                Placement::new(experts, random_rows(&mut rng, &topology, layers, experts, holes)).unwrap();
            let mut new_map = random_rows(&mut rng, &topology, layers, experts, holes);
            if shape == 3 {
                // A plan that changes little: the old one with a few slots swapped.
                new_map = old.phy2log().to_owned();
                for _ in 0..3 {
                    let (a, b) = (rng.random_range(0..total), rng.random_range(0..total));
                    for layer in 0..layers {
                        new_map.swap((layer, a), (layer, b));
                    }
                }
            }
            let new = Placement::new(experts, new_map).unwrap();
            let loads = with_loads.then(|| {
                Array2::from_shape_fn((layers, experts), |_| f64::from(rng.random_range(0..1000u32)))
            });
            let largest = layout.largest_staged();
            let most = old.max_replicas().max(new.max_replicas());
            let limits = Limits {
                staging_bytes: match rng.random_range(0..3) {
                    0 => largest,
                    1 => largest * rng.random_range(1..=6usize),
                    _ => largest * total,
                },
                drain_floor: [0.02, 0.0, 0.3][rng.random_range(0..3usize)],
                max_replicas: [None, Some(most), Some(most + 1)][rng.random_range(0..3usize)],
                exact_slots: rng.random_range(0..3) == 0,
                overlap: rng.random_range(0..4) > 0,
                followers: rng.random_range(0..3) > 0,
                wave_cost: [0, 1, 100, 100_000][rng.random_range(0..4usize)],
                wave_bytes: [None, Some(0), Some(rng.random_range(1..=4) * layout.largest_staged() as u64)]
                    [rng.random_range(0..3usize)],
            };
            Case { topology, layout, old, new, loads, limits }
        },
    )
}

/// What a rank's memory holds, by name: the expert whose bytes are there.
struct Memory {
    slots: Array2<i32>,
    staging: Vec<Vec<(usize, usize, i32)>>,
}

/// Runs one wave against the memory and checks the order of reads and writes.
fn run_wave(
    case: &Case,
    memory: &mut Memory,
    map: &mut Array2<i32>,
    wave: &Wave,
    index: usize,
) -> Result<(), TestCaseError> {
    let Case { topology, layout, .. } = case;
    for &(layer, slot) in &wave.drains {
        prop_assert!(map[(layer.index(), slot.index())] >= 0, "an empty slot is drained");
        map[(layer.index(), slot.index())] = -1;
    }
    valid(case, map, &format!("drained for wave {index}"))?;
    let in_service = map.clone();

    let (size, start) = case.limits.staging_part(layout, index);
    let mut used = vec![Vec::<(usize, usize, i32)>::new(); topology.ranks()];
    let mut landed = Vec::new();
    let canonical = wave.transfers.windows(2).all(|t| {
        let key = |t: &eplb_core::Transfer| (t.layer, t.expert, t.dest, t.dest_slot);
        key(&t[0]) < key(&t[1])
    });
    prop_assert!(canonical, "transfers are not in canonical order");
    for t in &wave.transfers {
        let at = (t.layer.index(), t.source_slot.index());
        prop_assert_eq!(topology.rank_of(t.source_slot), t.source);
        prop_assert_eq!(topology.rank_of(t.dest_slot), t.dest);
        prop_assert!(topology.is_alive(t.source) && topology.is_alive(t.dest));
        prop_assert_eq!(memory.slots[at], t.expert.0 as i32, "a source does not hold the expert");
        prop_assert_eq!(in_service[at], t.expert.0 as i32, "a source is drained in its own wave");
        let dest = (t.layer.index(), t.dest_slot.index());
        match t.landing {
            Landing::InPlace => {
                prop_assert_eq!(in_service[dest], -1, "bytes land in a slot that is in service");
                landed.push((dest, t.expert.0 as i32));
            }
            Landing::Staged { offset } => {
                let bytes = layout.layer(t.layer).staged_bytes();
                prop_assert!(
                    offset >= start && offset + bytes <= start + size,
                    "outside its part of staging"
                );
                prop_assert!(offset + bytes <= case.limits.staging_bytes, "staging above budget");
                let ranges = &mut used[t.dest.index()];
                prop_assert!(
                    ranges.iter().all(|&(o, b, _)| offset + bytes <= o || o + b <= offset),
                    "overlap"
                );
                ranges.push((offset, bytes, t.expert.0 as i32));
            }
        }
    }
    // One transfer per (expert, source, destination rank): duplicates inside a rank are sent once.
    let sent = wave.transfers.iter().filter(|t| !t.is_local());
    let mut pairs: Vec<_> = sent.map(|t| (t.layer, t.expert, t.dest)).collect();
    let count = pairs.len();
    pairs.dedup();
    prop_assert_eq!(pairs.len(), count);
    for (dest, expert) in landed {
        memory.slots[dest] = expert;
    }
    memory.staging = used;
    for commit in &wave.commits {
        let at = (commit.layer.index(), commit.slot.index());
        let rank = topology.rank_of(commit.slot);
        match commit.fill {
            Fill::InPlace(expert) => prop_assert_eq!(memory.slots[at], expert.0 as i32),
            Fill::Staged { expert, offset } => {
                let bytes = layout.layer(commit.layer).staged_bytes();
                let staged = (offset, bytes, expert.0 as i32);
                prop_assert!(memory.staging[rank.index()].contains(&staged), "not staged");
                memory.slots[at] = expert.0 as i32;
            }
            Fill::FromSlot { expert, slot } => {
                prop_assert_eq!(topology.rank_of(slot), rank);
                prop_assert_eq!(memory.slots[(at.0, slot.index())], expert.0 as i32, "copied over already");
                memory.slots[at] = expert.0 as i32;
            }
            Fill::Empty => {}
        }
        map[at] = commit.fill.expert().map_or(-1, |e| e.0 as i32);
    }
    // Every drained slot is put in service again, or left empty, by the commit of the same wave.
    for drain in &wave.drains {
        prop_assert!(wave.commits.iter().any(|c| (c.layer, c.slot) == *drain));
    }
    valid(case, map, &format!("after wave {index}"))
}

/// Every expert in service, maps true to memory, columns enough.
fn valid(case: &Case, map: &Array2<i32>, when: &str) -> Result<(), TestCaseError> {
    let placement = Placement::new(case.new.experts(), map.clone());
    prop_assert!(placement.is_ok(), "{when}: {placement:?}");
    if let Some(max) = case.limits.max_replicas {
        prop_assert!(placement.unwrap().max_replicas() <= max, "{when}: more than {max} replicas");
    }
    Ok(())
}

fn multisets(map: &Array2<i32>, topology: &Topology) -> Vec<Vec<i32>> {
    let mut sets = Vec::new();
    for layer in 0..map.nrows() {
        for rank in topology.all_ranks() {
            let mut set: Vec<i32> = topology.slots_of(rank).map(|s| map[(layer, s)]).collect();
            set.sort_unstable();
            sets.push(set);
        }
    }
    sets
}

/// The parts of wave `index` together are the wave; and what is early in the wave after it touches nothing of it. `map` is
/// the map before wave `index`.
fn check_early(
    case: &Case,
    plan: &ExchangePlan,
    map: &Array2<i32>,
    index: usize,
) -> Result<(), TestCaseError> {
    let wave = &plan.waves()[index];
    let mut transfers = [Part::Early, Part::Late].map(|part| plan.transfers(index, part).to_vec()).concat();
    transfers.sort_by_key(|t| (t.layer, t.expert, t.dest, t.dest_slot));
    prop_assert_eq!(&transfers, &wave.transfers);
    let mut drains = [Part::Early, Part::Late].map(|part| plan.drains(index, part).to_vec()).concat();
    drains.sort_unstable();
    prop_assert_eq!(&drains, &wave.drains);
    if index + 1 == plan.waves().len() {
        return Ok(());
    }
    let early = plan.transfers(index + 1, Part::Early);
    let overlaps = case.limits.overlap && case.limits.overlaps(&case.layout);
    prop_assert!(overlaps || early.is_empty());
    // What is in service meanwhile: every expert that is in service without the overlap, and above the floor.
    let mut during = plan.phy2log_drained(index);
    let mut after = plan.phy2log_after(index + 1);
    let whole = (during.clone(), after.clone());
    plan.apply_drains(&mut during, index + 1, Part::Early);
    plan.apply_drains(&mut after, index + 1, Part::Early);
    for (now, whole) in [(&during, whole.0), (&after, whole.1)] {
        for (layer, row) in now.rows().into_iter().enumerate() {
            let lost = |expert: i32| expert >= 0 && !row.iter().any(|&held| held == expert);
            prop_assert!(!whole.row(layer).iter().any(|&expert| lost(expert)), "layer {layer}: {now}");
        }
        let Some(loads) = &case.loads else { continue };
        let of = |map: &Array2<i32>| {
            let placement = Placement::with_missing(case.new.experts(), map.clone()).unwrap();
            balancedness(loads.view(), &placement, None, &case.topology).unwrap().per_layer
        };
        let (first, last, now) = (of(&plan.phy2log_after(0)), of(&case.new.phy2log().to_owned()), of(now));
        for &(layer, _) in plan.drains(index + 1, Part::Early) {
            let at = layer.index();
            if let (Some(first), Some(last), Some(now)) = (first[at], last[at], now[at]) {
                prop_assert!(now >= first.min(last) - case.limits.drain_floor - 1e-6, "{now} {first} {last}");
            }
        }
    }
    for transfer in early.iter() {
        let written = |slot| wave.commits.iter().any(|c| (c.layer, c.slot) == (transfer.layer, slot));
        prop_assert!(!written(transfer.source_slot));
        prop_assert_eq!(
            map[(transfer.layer.index(), transfer.source_slot.index())],
            transfer.expert.0 as i32
        );
        match transfer.landing {
            Landing::InPlace => {
                let at = (transfer.layer, transfer.dest_slot);
                prop_assert!(!written(transfer.dest_slot));
                prop_assert!(!wave.transfers.iter().any(|t| (t.layer, t.source_slot) == at));
                let copied = |fill| matches!(fill, Fill::FromSlot { slot, .. } if slot == at.1);
                prop_assert!(!wave.commits.iter().any(|c| c.layer == at.0 && copied(c.fill)));
                prop_assert_eq!(during[(at.0.index(), at.1.index())], -1);
            }
            Landing::Staged { offset } => {
                let size = case.layout.layer(transfer.layer).staged_bytes();
                for other in wave.transfers.iter().filter(|t| t.dest == transfer.dest) {
                    if let Landing::Staged { offset: used } = other.landing {
                        let used = used..used + case.layout.layer(other.layer).staged_bytes();
                        prop_assert!(offset >= used.end || offset + size <= used.start);
                    }
                }
            }
        }
    }
    Ok(())
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    let Case { topology, layout, old, new, loads, limits } = case;
    let view = loads.as_ref().map(|l| l.view());
    let plan = ExchangePlan::new(old, new, topology, layout, view, limits);
    prop_assert!(plan.is_ok(), "{plan:?}");
    let plan = plan.unwrap();
    let mut map = old.phy2log().to_owned();
    let mut memory = Memory { slots: map.clone(), staging: vec![Vec::new(); topology.ranks()] };
    let mut worst_drained = f64::INFINITY;
    for (index, wave) in plan.waves().iter().enumerate() {
        if let Some(loads) = loads
            && !wave.drains.is_empty()
        {
            let drained = Placement::new(new.experts(), plan.phy2log_drained(index)).unwrap();
            let of = |p: &Placement| balancedness(loads.view(), p, None, topology).unwrap().per_layer;
            let (before, after, now) = (of(old), of(new), of(&drained));
            for layer in 0..now.len() {
                let touched = wave.drains.iter().any(|d| d.0.index() == layer);
                let (Some(before), Some(after), Some(now)) = (before[layer], after[layer], now[layer]) else {
                    continue;
                };
                if touched {
                    prop_assert!(
                        now >= before.min(after) - limits.drain_floor - 1e-6,
                        "{now} {before} {after}"
                    );
                    worst_drained = worst_drained.min(now);
                }
            }
        }
        check_early(case, &plan, &map, index)?;
        run_wave(case, &mut memory, &mut map, wave, index)?;
        // What is in service is what memory holds: stopping after any wave loses nothing.
        for (at, &entry) in map.indexed_iter() {
            if entry >= 0 {
                prop_assert_eq!(memory.slots[at], entry);
            }
        }
        prop_assert_eq!(&map, &plan.phy2log_after(index + 1));
    }
    prop_assert_eq!(&map, &plan.target().phy2log().to_owned());
    prop_assert_eq!(multisets(&map, topology), multisets(&new.phy2log().to_owned(), topology));
    if limits.exact_slots {
        prop_assert_eq!(&map, &new.phy2log().to_owned());
    }
    let totals = plan.totals();
    prop_assert!(totals.staging_peak <= limits.staging_bytes);
    match totals.worst_drained {
        Some(worst) => prop_assert!((worst.balancedness - worst_drained).abs() < 1e-6),
        None => prop_assert!(worst_drained.is_infinite()),
    }
    // Bytes cross a link once per expert that is new to a rank, however many slots it takes there.
    let counted = changes(old, new, topology).unwrap();
    let second_copies = counted.moves - totals.moves;
    let duplicates = eplb_core::metrics::duplicates(new, topology).unwrap();
    prop_assert!(second_copies <= duplicates);
    let hash = |case: &Case| {
        ExchangePlan::new(&case.old, &case.new, topology, layout, view, limits).unwrap().hash64()
    };
    prop_assert_eq!(plan.hash64(), hash(case));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn waves_of_few_ranks_are_right(case in case(6)) {
        check(&case)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn waves_of_many_ranks_are_right(case in case(64)) {
        check(&case)?;
    }
}

fn layout(layers: usize, bytes: usize) -> ModelLayout {
    ModelLayout::new(vec![vec![TensorLayout::contiguous("w", bytes)]; layers]).unwrap()
}

#[test]
fn a_swap_of_only_copies_costs_one_staged_expert_per_rank() {
    let topology = Topology::uniform(2, 4).unwrap();
    let (old, new) = ([[0, 1, 2, 3]], [[0, 3, 2, 1]]);
    let place = |map: [[i32; 4]; 1]| Placement::new(4, ndarray::arr2(&map)).unwrap();
    let layout = layout(1, 32);
    let mut limits = Limits::new(&layout, &topology);
    limits.staging_bytes = 32;
    let plan = ExchangePlan::new(&place(old), &place(new), &topology, &layout, None, &limits).unwrap();
    assert_eq!(plan.waves().len(), 1);
    assert_eq!((plan.totals().staged, plan.totals().in_place, plan.totals().staging_peak), (2, 0, 32));
    assert!(plan.waves()[0].needs_agreed_step() && plan.waves()[0].drains.is_empty());
    limits.staging_bytes = 31;
    assert!(matches!(
        ExchangePlan::new(&place(old), &place(new), &topology, &layout, None, &limits),
        Err(ExchangeError::StagingTooSmall { needed: 32, budget: 31, .. })
    ));
}

#[test]
fn a_replica_is_drained_and_filled_without_staging() {
    let topology = Topology::uniform(2, 4).unwrap();
    let place = |map: [[i32; 4]; 1]| Placement::new(3, ndarray::arr2(&map)).unwrap();
    let layout = layout(1, 32);
    let limits = Limits { staging_bytes: 0, ..Limits::new(&layout, &topology) };
    let (old, new) = (place([[0, 1, 0, 2]]), place([[0, 1, 1, 2]]));
    let plan = ExchangePlan::new(&old, &new, &topology, &layout, None, &limits).unwrap();
    let [wave] = plan.waves() else { panic!("{:?}", plan.waves()) };
    assert_eq!(wave.drains, [(LayerId(0), SlotId(2))]);
    assert!(!wave.needs_agreed_step());
    assert_eq!((plan.totals().in_place, plan.totals().staging_peak), (1, 0));
}

#[test]
fn missing_experts_are_refused_with_their_names() {
    let topology = Topology::uniform(3, 3).unwrap();
    let old = Placement::new(3, ndarray::arr2(&[[0, 1, 2]])).unwrap();
    let dead = topology.with_dead(&[RankId(1)]).unwrap();
    let new = Placement::with_missing(3, ndarray::arr2(&[[0, -1, 1]])).unwrap();
    let layout = layout(1, 8);
    let limits = Limits::new(&layout, &dead);
    let plan = ExchangePlan::new(&old, &new, &dead, &layout, None, &limits);
    assert_eq!(plan, Err(ExchangeError::MissingExperts { experts: vec![(LayerId(0), ExpertId(1))] }));
    let on_dead = Placement::with_missing(3, ndarray::arr2(&[[0, 2, 2]])).unwrap();
    let plan = ExchangePlan::new(&old, &on_dead, &dead, &layout, None, &limits);
    assert!(matches!(plan, Err(ExchangeError::DeadRank { rank: RankId(1), slot: SlotId(1), .. })));
    // Leaving the lost expert out is allowed: the survivors go on.
    let left_out = Placement::with_missing(3, ndarray::arr2(&[[2, -1, 0]])).unwrap();
    let plan = ExchangePlan::new(&old, &left_out, &dead, &layout, None, &limits).unwrap();
    assert_eq!(plan.target().phy2log(), left_out.phy2log());
}

#[test]
fn sources_prefer_the_rank_then_the_node_then_the_idle_port() {
    // Four ranks on two nodes; expert 0 is held by ranks 0 and 2, and ranks 1 and 3 want it.
    let topology = Topology::uniform(4, 8).unwrap().with_nodes(2).unwrap();
    let old = Placement::new(4, ndarray::arr2(&[[0, 1, 2, -1, 0, 3, 1, -1]])).unwrap();
    let new = Placement::new(4, ndarray::arr2(&[[0, 1, 2, 0, 0, 3, 1, 0]])).unwrap();
    let layout = layout(1, 8);
    let plan =
        ExchangePlan::new(&old, &new, &topology, &layout, None, &Limits::new(&layout, &topology)).unwrap();
    let sources: Vec<_> = plan.waves()[0].transfers.iter().map(|t| (t.dest.0, t.source.0)).collect();
    assert_eq!(sources, [(1, 0), (3, 2)]);
    // On one node, two receivers are served by two senders.
    let flat = Topology::uniform(4, 8).unwrap();
    let plan = ExchangePlan::new(&old, &new, &flat, &layout, None, &Limits::new(&layout, &flat)).unwrap();
    let mut senders: Vec<_> = plan.waves()[0].transfers.iter().map(|t| t.source.0).collect();
    senders.sort_unstable();
    assert_eq!(senders, [0, 2]);
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

/// Every map that a rank may run with between the drains of two waves stands among those that are prepared for it.
#[test]
fn the_maps_of_a_wave_are_all_that_come_before_the_next() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..40 {
        let case = case(4).new_tree(&mut runner).unwrap().current();
        let Case { topology, layout, old, new, loads, limits } = &case;
        let loads = loads.as_ref().map(|loads| loads.view());
        let Ok(plan) = ExchangePlan::new(old, new, topology, layout, loads, limits) else { continue };
        let mut map = plan.old().phy2log().to_owned();
        for wave in 0..plan.waves().len() {
            let ready = plan.maps_of(wave);
            let mut seen = Vec::new();
            Part::ALL.into_iter().for_each(|part| plan.apply_drains(&mut map, wave, part));
            seen.push(map.clone());
            let ahead = wave + 1 < plan.waves().len();
            if ahead {
                plan.apply_drains(&mut map, wave + 1, Part::Early);
                seen.push(map.clone());
            }
            eplb_exchange::plan::apply_commits(&mut map, &plan.waves()[wave]);
            seen.push(map.clone());
            if ahead {
                let mut late = map.clone();
                plan.apply_drains(&mut late, wave + 1, Part::Late);
                seen.push(late);
            }
            assert!(seen.iter().all(|map| ready.contains(map)), "wave {wave}");
            assert!(ready.iter().enumerate().all(|(at, map)| !ready[..at].contains(map)));
        }
        assert_eq!(&map, plan.target().phy2log());
    }
}
