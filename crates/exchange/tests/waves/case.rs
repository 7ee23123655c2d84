//! Random exchanges.

use eplb_core::{ModelLayout, Placement, SlotId, TensorLayout, Topology};
use eplb_exchange::Limits;
use ndarray::Array2;
use proptest::prelude::*;
use proptest::test_runner::TestRng;

/// One random exchange.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) topology: Topology,
    pub(crate) layout: ModelLayout,
    pub(crate) old: Placement,
    pub(crate) new: Placement,
    pub(crate) loads: Option<Array2<f64>>,
    pub(crate) limits: Limits,
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

/// Any exchange of up to so many ranks.
pub(crate) fn case(max_ranks: usize) -> impl Strategy<Value = Case> {
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
