//! The best balancedness that any placement and any split can reach.

use ndarray::{ArrayView1, ArrayView2};

use crate::metrics::Balance;
use crate::topology::Topology;

/// A proof about one layer: no placement on this topology, with any split over replicas, loads its busiest
/// rank with less than `rank_load`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerBound {
    /// Least possible load of the busiest rank, in tokens per unit of speed.
    pub rank_load: f64,
    /// Largest possible balancedness, 0..1.
    pub balancedness: f64,
}

/// Bound of one layer with loads `row` (`[E]`); `None` if the layer is idle.
///
/// A rank of speed `v` loaded at most `T` takes at most `T v` tokens of one expert, so expert `e` needs at least
/// `max(1, ceil(w_e / T v))` slots, with `v` the speed of the fastest live rank; the needs must fit in the
/// live slots. The least such `T` that is not below the mean load is the bound.
pub fn layer_bound(row: ArrayView1<'_, f64>, topology: &Topology) -> Option<LayerBound> {
    let total: f64 = row.sum();
    if total <= 0.0 {
        return None;
    }
    let (mut speed, mut fastest) = (0.0, 0.0f64);
    for rank in topology.live_ranks() {
        speed += topology.speed(rank);
        fastest = fastest.max(topology.speed(rank));
    }
    let mean = total / speed;
    let slots = topology.live_slots();
    let fits = |rank_load: f64| {
        let most = rank_load * fastest;
        // An expert that exceeds `most` by rounding alone is not charged a further slot: the bound stays a bound.
        let needs = row.iter().map(|w| ((w / most) * (1.0 - 1e-12)).ceil().max(1.0)).sum::<f64>();
        needs <= slots as f64
    };
    let at = |rank_load: f64| LayerBound {
        rank_load,
        balancedness: (largest_mean(total, rank_load, topology) / rank_load).min(1.0),
    };
    if fits(mean) || slots < row.len() {
        // With fewer slots than experts some are left out, and only the mean can be promised.
        return Some(at(mean));
    }
    let (mut low, mut high) = (mean, mean.max(row.iter().copied().fold(0.0, f64::max) / fastest));
    while high - low > 1e-12 * high {
        let middle = 0.5 * (low + high);
        if fits(middle) {
            high = middle;
        } else {
            low = middle;
        }
        if middle == low && middle == high {
            break;
        }
    }
    Some(at(low))
}

/// Largest mean over live ranks of the rank load when no rank is loaded above `rank_load`. With equal speeds it is
/// the mean itself; otherwise tokens weigh more on slow ranks, so those are filled first.
fn largest_mean(total: f64, rank_load: f64, topology: &Topology) -> f64 {
    let mut speeds: Vec<f64> = topology.live_ranks().map(|r| topology.speed(r)).collect();
    if topology.equal_speed() {
        return total / (speeds[0] * speeds.len() as f64);
    }
    speeds.sort_by(f64::total_cmp);
    let (mut left, mut sum) = (total, 0.0);
    for speed in &speeds {
        let tokens = left.min(rank_load * speed);
        sum += tokens / speed;
        left -= tokens;
    }
    sum / speeds.len() as f64
}

/// Bound of every layer for loads `[L, E]`, summed up as balancedness is.
pub fn bound(loads: ArrayView2<'_, f64>, topology: &Topology) -> Balance {
    Balance::over_layers(
        loads.rows().into_iter().map(|row| layer_bound(row, topology).map(|b| b.balancedness)).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, array};

    #[test]
    fn one_hot_expert_is_spread_over_all_spare_slots() {
        // 4 ranks, 6 slots, 4 experts: expert 0 can have 3 replicas, so its rank gets at least 12/3 = 4; mean 15/4.
        let topology = Topology::uniform(4, 6).unwrap();
        let bound = layer_bound(array![12.0, 1.0, 1.0, 1.0].view(), &topology).unwrap();
        assert!((bound.rank_load - 4.0).abs() < 1e-9, "{bound:?}");
        assert!((bound.balancedness - 3.75 / 4.0).abs() < 1e-9);
    }

    #[test]
    fn even_loads_can_be_perfect_and_idle_layers_have_no_bound() {
        let topology = Topology::uniform(4, 8).unwrap();
        assert_eq!(layer_bound(Array1::from_elem(8, 3.0).view(), &topology).unwrap().balancedness, 1.0);
        assert_eq!(layer_bound(Array1::zeros(8).view(), &topology), None);
    }

    #[test]
    fn slow_ranks_do_not_break_the_proof() {
        // Speeds 1 and 4, three tokens on one expert: on the slow rank it makes 3 beside 0, on the fast one 3/4 beside 0;
        // with two replicas split 3/5 to 12/5 both ranks take 0.6.
        let topology = Topology::uniform(2, 2).unwrap().with_speed(&[1.0, 4.0]).unwrap();
        let bound = layer_bound(array![3.0].view(), &topology).unwrap();
        assert!((bound.balancedness - 1.0).abs() < 1e-9, "{bound:?}");
        // Two experts of 10 and 2, one slot each: at best 10 on the fast rank (2.5) and 2 on the slow one.
        let bound = layer_bound(array![10.0, 2.0].view(), &topology).unwrap();
        assert!(
            bound.rank_load <= 2.5 + 1e-9 && bound.balancedness >= (2.5 + 2.0) / 2.0 / 2.5 - 1e-9,
            "{bound:?}"
        );
    }

    #[test]
    fn scale_does_not_matter() {
        let topology = Topology::uniform(3, 7).unwrap();
        let row = array![9.0, 5.0, 4.0, 1.0, 1.0];
        let one = layer_bound(row.view(), &topology).unwrap().balancedness;
        for scale in [1e-6, 0.5, 1e9] {
            let scaled = layer_bound((&row * scale).view(), &topology).unwrap().balancedness;
            assert!((one - scaled).abs() < 1e-9);
        }
    }
}
