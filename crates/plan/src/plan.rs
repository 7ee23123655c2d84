//! A finished plan and the numbers it is judged by.

use eplb_core::bound::layer_bound;
use eplb_core::metrics::{self, Balance, Changes};
use eplb_core::{ExpertId, LayerId, Placement, Share};

use crate::error::PlanError;
use crate::objective::{Dispatch, NodeRule};
use crate::options::Policy;
use crate::planner::split_share;
use crate::policy::strict_bound;
use crate::predict::Prediction;
use crate::request::Request;
use crate::workers::Workers;

/// A target counts as reached this far below it: sums of loads are rounded.
const TARGET_ROUNDING: f64 = 1e-9;

/// A placement, the split over its replicas, and what they are worth on the loads planned for.
///
/// Balancedness is [`eplb_core::metrics`]' one definition: on the summed window unless said, mean and minimum over
/// the layers that are not idle, 0..1.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The policy that made it.
    pub policy: Policy,
    /// Which expert is in which slot, `[L, P]`.
    pub placement: Placement,
    /// The part of its expert's tokens that each slot gets, `[L, P]`.
    pub share: Share,
    /// Moves and local copies from the current placement; `None` without one.
    pub changes: Option<Changes>,
    /// Slots that hold an expert which another slot of their rank holds already.
    pub duplicates: usize,
    /// Empty slots on live ranks: no expert could use them without a second copy on a rank or more replicas than
    /// allowed, or `incremental` took a second copy off and nothing else was worth a move.
    pub shortages: usize,
    /// Balancedness of the current placement on these loads, even split; `None` without one.
    pub before: Option<Balance>,
    /// Balancedness of the plan, even split.
    pub after: Balance,
    /// Balancedness of the plan with [`Plan::share`].
    pub after_share: Balance,
    /// Whether [`Plan::after`] has the wanted balancedness; `None` if none was asked for. With node rules, another cost
    /// model, another dispatch or experts on every rank it is [`Plan::predicted`]'s balance that should have it.
    pub target_reached: Option<bool>,
    /// What ranks will take and what will cross nodes, under the request's cost model and dispatch.
    pub predicted: Prediction,
    /// The same for the current placement; `None` without one.
    pub predicted_before: Option<Prediction>,
    /// Under node rules, the best balancedness that whole groups on nodes, equally many on each, could reach; `None`
    /// where that cannot be kept.
    pub strict_bound: Option<Balance>,
    /// Mean over the steps of the window of the balancedness of each step, even split.
    pub balancedness_steps: f64,
    /// The best balancedness that any placement with any split could reach.
    pub bound: Balance,
    /// Experts with no slot: live ranks own fewer slots than there are experts, or `split` kept a placement without them.
    pub left_out: Vec<(LayerId, ExpertId)>,
    /// Experts that the current placement held on dead ranks alone: their bytes must come from elsewhere. Empty
    /// without a current placement.
    pub lost: Vec<(LayerId, ExpertId)>,
}

impl Plan {
    /// Scores a placement and its split against the request that they answer.
    pub(crate) fn score(
        request: &Request<'_>,
        placement: Placement,
        share: Share,
        workers: &Workers,
    ) -> Result<Self, PlanError> {
        let (loads, topology) = (request.loads, request.topology);
        let sum = loads.sum().view();
        let shortages = topology
            .live_ranks()
            .flat_map(|rank| topology.slots_of(rank))
            .map(|slot| placement.phy2log().column(slot).iter().filter(|&&e| e < 0).count())
            .sum();
        let (changes, before, lost) = match request.current {
            None => (None, None, Vec::new()),
            Some(current) => (
                Some(metrics::changes(current, &placement, topology)?),
                Some(metrics::balancedness(sum, current, None, topology)?),
                current.survivors(topology)?.missing().collect(),
            ),
        };
        let after = metrics::balancedness(sum, &placement, None, topology)?;
        let predicted = Prediction::new(request, &placement, &share, workers);
        let options = request.options;
        let strict_bound = match options.nodes {
            NodeRule::Free => None,
            _ => strict_bound(request, workers),
        };
        let predicted_before = match request.current {
            None => None,
            Some(current) => {
                let held = current.survivors(topology)?;
                // Another dispatch never asks for the split.
                let share = match options.dispatch {
                    Dispatch::Share => split_share(request, &held, workers)?,
                    _ => Share::even(&held),
                };
                Some(Prediction::new(request, &held, &share, workers))
            }
        };
        let reached = if options.is_plain() { after.mean } else { predicted.balance.mean };
        Ok(Self {
            policy: options.policy,
            changes,
            duplicates: metrics::duplicates(&placement, topology)?,
            shortages,
            before,
            target_reached: options.target.map(|target| reached >= target - TARGET_ROUNDING),
            predicted,
            predicted_before,
            strict_bound,
            after,
            after_share: metrics::balancedness(sum, &placement, Some(&share), topology)?,
            balancedness_steps: metrics::balancedness_steps(loads, &placement, None, topology)?,
            bound: Balance::over_layers(workers.map_layers(loads.layers(), |layer, _| {
                layer_bound(sum.row(layer), topology).map(|b| b.balancedness)
            })),
            left_out: placement.missing().collect(),
            lost,
            placement,
            share,
        })
    }

    /// Slots of all layers together, those of dead ranks included: what fractions of moves are fractions of.
    pub fn total_slots(&self) -> usize {
        self.placement.layers() * self.placement.slots()
    }
}
