//! The numbers a placement is judged by. One definition of each; planners, exchange, replay and reports use these.

use ndarray::{ArrayView1, ArrayView2};

use crate::error::CoreError;
use crate::ids::{LayerId, RankId};
use crate::load::LoadMatrix;
use crate::placement::Placement;
use crate::share::Share;
use crate::topology::Topology;

/// Tokens per unit of speed that reach each rank in one layer, `[ranks]`; 0 for dead ranks.
///
/// `row` is the load of the layer's experts, `[E]`. `share` is the split over replicas, `[P]`; without it every
/// replica gets the same part.
pub fn rank_loads(
    row: ArrayView1<'_, f64>,
    placement: &Placement,
    layer: LayerId,
    share: Option<&Share>,
    topology: &Topology,
) -> Vec<f64> {
    let phy2log = placement.layer(layer);
    let logcnt = placement.logcnt();
    let counts = logcnt.row(layer.index());
    let share = share.map(|s| s.layer(layer));
    topology
        .all_ranks()
        .map(|rank| {
            if !topology.is_alive(rank) {
                return 0.0;
            }
            let mut load = 0.0;
            for slot in topology.slots_of(rank) {
                if let Ok(expert) = usize::try_from(phy2log[slot]) {
                    load += match &share {
                        Some(share) => row[expert] * share[slot],
                        None => row[expert] / f64::from(counts[expert]),
                    };
                }
            }
            load / topology.speed(rank)
        })
        .collect()
}

/// Balancedness of one layer: mean over live ranks of the rank load, divided by the largest; 1 is perfect.
/// `None` if no rank has any load (an idle layer).
///
/// `rank_loads` is what [`rank_loads`] returns: already divided by rank speed.
pub fn layer_balancedness(rank_loads: &[f64], topology: &Topology) -> Option<f64> {
    let (mut sum, mut ranks, mut max) = (0.0, 0usize, 0.0f64);
    for rank in topology.live_ranks() {
        let load = rank_loads[rank.index()];
        sum += load;
        ranks += 1;
        max = max.max(load);
    }
    (max > 0.0).then(|| (sum / ranks as f64 / max).min(1.0))
}

/// Balancedness over layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Balance {
    /// Balancedness of each layer, `None` where the layer is idle.
    pub per_layer: Vec<Option<f64>>,
    /// Mean over the layers that are not idle; 1 if all are.
    pub mean: f64,
    /// Smallest over the layers that are not idle; 1 if all are.
    pub min: f64,
}

impl Balance {
    /// Sums up per-layer values.
    pub fn over_layers(per_layer: Vec<Option<f64>>) -> Self {
        let (mut sum, mut count, mut min) = (0.0, 0usize, 1.0f64);
        for value in per_layer.iter().flatten() {
            sum += value;
            count += 1;
            min = min.min(*value);
        }
        let mean = if count == 0 { 1.0 } else { sum / count as f64 };
        Self { per_layer, mean, min }
    }
}

/// Balancedness of a placement on loads `[L, E]`, at even split or with `share`.
///
/// # Errors
/// Loads, placement, share and topology of different shapes.
pub fn balancedness(
    loads: ArrayView2<'_, f64>,
    placement: &Placement,
    share: Option<&Share>,
    topology: &Topology,
) -> Result<Balance, CoreError> {
    check_shapes(loads.dim(), placement, topology)?;
    Ok(Balance::over_layers(
        (0..placement.layers())
            .map(LayerId::at)
            .map(|layer| {
                let ranks = rank_loads(loads.row(layer.index()), placement, layer, share, topology);
                layer_balancedness(&ranks, topology)
            })
            .collect(),
    ))
}

/// Mean over the steps of a window of the per-step balancedness, at even split or with `share`.
///
/// # Errors
/// As [`balancedness`].
pub fn balancedness_steps(
    loads: &LoadMatrix,
    placement: &Placement,
    share: Option<&Share>,
    topology: &Topology,
) -> Result<f64, CoreError> {
    let mut sum = 0.0;
    for step in 0..loads.steps() {
        sum += balancedness(loads.step(step), placement, share, topology)?.mean;
    }
    Ok(sum / loads.steps() as f64)
}

/// What changes between two placements, counted over all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// Slots whose expert was not on their rank before: bytes cross a link.
    pub moves: usize,
    /// Slots filled from another slot of the same rank: more copies of an expert on a rank that had it already.
    pub local_copies: usize,
}

/// Counts moves and local copies from `old` to `new`. Which slot of a rank holds an expert does not matter.
///
/// # Errors
/// Placements and topology of different shapes.
pub fn changes(old: &Placement, new: &Placement, topology: &Topology) -> Result<Changes, CoreError> {
    check_same_shape(old, new)?;
    new.fits(topology)?;
    let mut total = Changes::default();
    let (mut before, mut after) = (vec![0u32; new.experts()], vec![0u32; new.experts()]);
    for layer in (0..new.layers()).map(LayerId::at) {
        for rank in topology.all_ranks() {
            let (counts_old, counts_new) = (old.layer(layer), new.layer(layer));
            let slots = topology.slots_of(rank);
            let experts = |row: ArrayView1<'_, i32>| {
                slots.clone().filter_map(move |s| usize::try_from(row[s]).ok()).collect::<Vec<_>>()
            };
            let (had, has) = (experts(counts_old), experts(counts_new));
            had.iter().for_each(|&e| before[e] += 1);
            has.iter().for_each(|&e| after[e] += 1);
            for &e in &has {
                if before[e] == 0 {
                    total.moves += after[e] as usize;
                } else {
                    total.local_copies += after[e].saturating_sub(before[e]) as usize;
                }
                after[e] = 0;
            }
            had.iter().for_each(|&e| before[e] = 0);
        }
    }
    Ok(total)
}

/// Number of slots that hold an expert which another slot of the same rank holds already, over all layers.
///
/// # Errors
/// Placement and topology of different shapes.
pub fn duplicates(placement: &Placement, topology: &Topology) -> Result<usize, CoreError> {
    placement.fits(topology)?;
    let mut seen = vec![None::<(LayerId, RankId)>; placement.experts()];
    let mut total = 0;
    for layer in (0..placement.layers()).map(LayerId::at) {
        let row = placement.layer(layer);
        for rank in topology.all_ranks() {
            for expert in topology.slots_of(rank).filter_map(|s| usize::try_from(row[s]).ok()) {
                if seen[expert].replace((layer, rank)) == Some((layer, rank)) {
                    total += 1;
                }
            }
        }
    }
    Ok(total)
}

/// Checks that loads `[L, E]` are for this placement and the placement for this topology.
///
/// # Errors
/// [`CoreError::Shape`] naming what differs.
pub fn check_shapes(
    loads: (usize, usize),
    placement: &Placement,
    topology: &Topology,
) -> Result<(), CoreError> {
    if loads != (placement.layers(), placement.experts()) {
        return Err(CoreError::Shape {
            what: "loads",
            found: vec![loads.0, loads.1],
            expected: format!(
                "[{}, {}], the layers and experts of the placement",
                placement.layers(),
                placement.experts()
            ),
        });
    }
    placement.fits(topology)
}

/// Checks that two placements have the same layers, experts and slots.
///
/// # Errors
/// [`CoreError::Shape`] naming what differs.
pub fn check_same_shape(old: &Placement, new: &Placement) -> Result<(), CoreError> {
    let shape = |p: &Placement| vec![p.layers(), p.experts(), p.slots()];
    if shape(old) == shape(new) {
        return Ok(());
    }
    let new = shape(new);
    Err(CoreError::Shape {
        what: "current placement [layers, experts, slots]",
        found: shape(old),
        expected: format!("[{}, {}, {}]", new[0], new[1], new[2]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn two_ranks() -> Topology {
        Topology::uniform(2, 4).unwrap()
    }

    #[test]
    fn balancedness_is_mean_over_max_of_ranks() {
        let placement = Placement::new(3, array![[0, 1, 2, 0]]).unwrap();
        // Rank 0: 8/2 + 2 = 6; rank 1: 2 + 8/2 = 6.
        let even = balancedness(array![[8.0, 2.0, 2.0]].view(), &placement, None, &two_ranks()).unwrap();
        assert_eq!(even.mean, 1.0);
        // Rank 0: 4 + 6 = 10; rank 1: 2 + 4 = 6; mean 8.
        let skewed = balancedness(array![[8.0, 6.0, 2.0]].view(), &placement, None, &two_ranks()).unwrap();
        assert_eq!(skewed.mean, 0.8);
        let share = Share::new(array![[0.25, 1.0, 1.0, 0.75]], &placement).unwrap();
        let split =
            balancedness(array![[8.0, 6.0, 2.0]].view(), &placement, Some(&share), &two_ranks()).unwrap();
        assert_eq!(split.mean, 1.0);
    }

    #[test]
    fn idle_layers_are_left_out() {
        let placement = Placement::new(2, array![[0, 1, 0, 1], [0, 1, 0, 0]]).unwrap();
        let loads = array![[0.0, 0.0], [3.0, 3.0]];
        let balance = balancedness(loads.view(), &placement, None, &two_ranks()).unwrap();
        assert_eq!(balance.per_layer[0], None);
        assert_eq!(balance.mean, 3.0 / 4.0);
        let idle =
            balancedness(array![[0.0, 0.0], [0.0, 0.0]].view(), &placement, None, &two_ranks()).unwrap();
        assert_eq!((idle.mean, idle.min), (1.0, 1.0));
    }

    #[test]
    fn speed_and_death_count() {
        let placement = Placement::new(2, array![[0, -1, 1, -1]]).unwrap();
        let loads = array![[2.0, 1.0]];
        let fast = two_ranks().with_speed(&[2.0, 1.0]).unwrap();
        assert_eq!(balancedness(loads.view(), &placement, None, &fast).unwrap().mean, 1.0);
        let dead = two_ranks().with_dead(&[RankId(1)]).unwrap();
        assert_eq!(balancedness(loads.view(), &placement, None, &dead).unwrap().mean, 1.0);
    }

    #[test]
    fn moves_are_counted_per_rank_not_per_slot() {
        let old = Placement::new(3, array![[0, 1, 2, 0]]).unwrap();
        let count = |new| changes(&old, &Placement::new(3, new).unwrap(), &two_ranks()).unwrap();
        assert_eq!(count(array![[1, 0, 0, 2]]), Changes { moves: 0, local_copies: 0 });
        assert_eq!(count(array![[0, 2, 1, 0]]), Changes { moves: 2, local_copies: 0 });
        assert_eq!(count(array![[0, 1, 2, 2]]), Changes { moves: 0, local_copies: 1 });
        assert_eq!(count(array![[2, 2, 1, 0]]), Changes { moves: 3, local_copies: 0 });
    }

    #[test]
    fn duplicates_are_second_copies_on_a_rank() {
        let placement = Placement::new(3, array![[0, 0, 1, 2], [0, 1, 2, 0]]).unwrap();
        assert_eq!(duplicates(&placement, &two_ranks()).unwrap(), 1);
    }

    #[test]
    fn shapes_are_checked() {
        let placement = Placement::new(3, array![[0, 1, 2, 0]]).unwrap();
        assert!(balancedness(array![[1.0, 1.0]].view(), &placement, None, &two_ranks()).is_err());
        let three = Topology::uniform(3, 3).unwrap();
        assert!(balancedness(array![[1.0, 1.0, 1.0]].view(), &placement, None, &three).is_err());
        assert!(duplicates(&placement, &three).is_err());
        let other = Placement::new(2, array![[0, 1, 1, 0]]).unwrap();
        assert!(changes(&other, &placement, &two_ranks()).is_err());
    }
}
