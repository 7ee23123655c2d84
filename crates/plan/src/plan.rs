//! A finished plan and the numbers it is judged by.

use eplb_core::bound::layer_bound;
use eplb_core::metrics::{self, Balance, Changes};
use eplb_core::{ExpertId, LayerId, Placement, Share};

use crate::error::PlanError;
use crate::options::Policy;
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
    /// allowed.
    pub shortages: usize,
    /// Balancedness of the current placement on these loads, even split; `None` without one.
    pub before: Option<Balance>,
    /// Balancedness of the plan, even split.
    pub after: Balance,
    /// Balancedness of the plan with [`Plan::share`].
    pub after_share: Balance,
    /// Whether [`Plan::after`] has the wanted balancedness; `None` if none was asked for.
    pub target_reached: Option<bool>,
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
        Ok(Self {
            policy: request.options.policy,
            changes,
            duplicates: metrics::duplicates(&placement, topology)?,
            shortages,
            before,
            target_reached: request.options.target.map(|target| after.mean >= target - TARGET_ROUNDING),
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
