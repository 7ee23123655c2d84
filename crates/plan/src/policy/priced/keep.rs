//! The last look at an incremental plan: layers that came out worse than they are stay as they are.
//!
//! The search weighs changes by a smooth stand-in for the worst rank, and, where the server splits by `share` and active
//! experts take time, by a split that is not the final one. The final split may say otherwise.

use eplb_core::{ExpertId, LayerId, Placement, SlotId};
use ndarray::Array2;

use crate::error::PlanError;
use crate::objective::NodeRule;
use crate::planner::split_share;
use crate::predict::Prediction;
use crate::request::Request;
use crate::workers::Workers;

/// Rounding of the sums that are compared.
const ROUNDING: f64 = 1e-12;

/// Puts back layers of `phy2log` (`[L, P]`) that are worth less than what is in place, where that keeps all rules.
pub(crate) fn keep_better(
    request: &Request<'_>,
    workers: &Workers,
    phy2log: &mut [i32],
) -> Result<(), PlanError> {
    let Some(current) = request.current.filter(|_| request.options.replicate_top == 0) else {
        return Ok(());
    };
    let (layers, experts, slots) =
        (request.loads.layers(), request.loads.experts(), request.topology.slots());
    let placed = Array2::from_shape_fn((layers, slots), |(layer, slot)| phy2log[layer * slots + slot]);
    let (new, old) = (Placement::with_missing(experts, placed)?, current.survivors(request.topology)?);
    let (after, before) = (costs(request, workers, &new)?, costs(request, workers, &old)?);
    for (layer, row) in phy2log.chunks_mut(slots).enumerate() {
        if after[layer] > before[layer] * (1.0 + ROUNDING) && keeps_rules(request, &old, LayerId::at(layer)) {
            row.iter_mut().zip(old.layer(LayerId::at(layer))).for_each(|(entry, &kept)| *entry = kept);
        }
    }
    Ok(())
}

/// What each layer costs: the worst rank's time, and the price of the crossing in units of the mean time.
fn costs(request: &Request<'_>, workers: &Workers, placement: &Placement) -> Result<Vec<f64>, PlanError> {
    let share = split_share(request, placement, workers)?;
    let predicted = Prediction::new(request, placement, &share, workers);
    let (cost, topology) = (request.options.cost, request.topology);
    let speed: f64 = topology.live_ranks().map(|rank| topology.speed(rank)).sum();
    let price = match request.options.nodes {
        NodeRule::Priced(price) => price,
        NodeRule::Free | NodeRule::Strict => 0.0,
    };
    let mean = |layer: usize| {
        let row = request.layer_loads(layer);
        let active = row.iter().filter(|&&load| load > 0.0).count() as f64;
        (cost.per_expert * active + cost.per_token * row.iter().sum::<f64>()) / speed
    };
    let each = predicted.worst.iter().zip(&predicted.crossing).enumerate();
    Ok(each.map(|(layer, (worst, crossing))| worst + price * crossing * mean(layer)).collect())
}

/// Whether what is in place could be a plan: every expert has a slot, none more than allowed, and no rank two of one.
fn keeps_rules(request: &Request<'_>, old: &Placement, layer: LayerId) -> bool {
    let limit = request.options.replica_limit(old.slots());
    (0..old.experts()).map(ExpertId::at).all(|expert| {
        let slots = old.replicas(layer, expert);
        let rank = |slot: &SlotId| request.topology.rank_of(*slot);
        (1..=limit).contains(&slots.len()) && slots.windows(2).all(|pair| rank(&pair[0]) != rank(&pair[1]))
    })
}
