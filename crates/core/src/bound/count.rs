//! First proof: mean load and slot count.

use super::ranks::Ranks;
use super::sorted::SortedLoads;

/// Replicas that no placement can do without when no rank is loaded above `rank_load`, or `None` if some expert
/// would need more than it may have.
pub(super) fn needed(loads: &SortedLoads, ranks: &Ranks, rank_load: f64) -> Option<f64> {
    let hot = loads.above(rank_load * ranks.top_speed);
    let mut sum = (loads.len() - hot.len()) as f64;
    for &load in hot {
        let replicas = ranks.replicas(load, rank_load);
        if replicas > ranks.max_replicas {
            return None;
        }
        sum += replicas;
    }
    Some(sum)
}

/// Least rank load, not below the mean, at which the replicas that every expert needs fit in the slots.
pub(super) fn prove(loads: &SortedLoads, ranks: &Ranks) -> f64 {
    let mean = loads.total() / ranks.speed;
    let fits = |rank_load| needed(loads, ranks, rank_load).is_some_and(|sum| sum <= ranks.slots as f64);
    if fits(mean) {
        return mean;
    }
    // At the upper end every expert fits on the fastest rank whole.
    last_that_holds(mean, mean.max(loads.desc()[0] / ranks.top_speed), |rank_load| !fits(rank_load))
}

/// Bisects between `holds`, where a proof holds, and `fails`, where it does not: the largest point found where it holds.
pub(super) fn last_that_holds(holds: f64, fails: f64, mut proof: impl FnMut(f64) -> bool) -> f64 {
    let (mut low, mut high) = (holds, fails);
    while high - low > 1e-12 * high {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if proof(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}
