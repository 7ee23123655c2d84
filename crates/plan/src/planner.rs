//! The planner: threads, and the way from a request to a plan.

use eplb_core::metrics::check_shapes;
use eplb_core::{Placement, Share};
use ndarray::Array2;

use crate::curve::CurvePoint;
use crate::error::PlanError;
use crate::options::Policy;
use crate::plan::Plan;
use crate::policy;
use crate::request::Request;
use crate::split::Splitter;
use crate::workers::Workers;

/// Makes plans on threads of its own. Keep one and reuse it: its scratch memory stays allocated between plans.
#[derive(Debug)]
pub struct Planner {
    workers: Workers,
}

impl Planner {
    /// A planner with its own pool of `threads` threads; 1 plans on the calling thread. The number changes the time
    /// that a plan takes, never the plan.
    ///
    /// # Errors
    /// No thread asked for, or none to be had.
    pub fn new(threads: usize) -> Result<Self, PlanError> {
        Ok(Self { workers: Workers::new(threads)? })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.workers.threads()
    }

    /// Places the experts, splits their tokens over the replicas, and scores the result.
    ///
    /// # Errors
    /// A request that contradicts itself, or that its policy cannot answer.
    pub fn plan(&self, request: &Request<'_>) -> Result<Plan, PlanError> {
        let placement = self.place(request)?;
        let share = self.split(request, &placement)?;
        Plan::score(request, placement, share, &self.workers)
    }

    /// Places the experts and nothing else: planning alone, without split and scores.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn place(&self, request: &Request<'_>) -> Result<Placement, PlanError> {
        request.check()?;
        let phy2log = policy::place(request, &self.workers)?;
        let experts = request.loads.experts();
        // What `split` keeps may lack the experts that only dead ranks held.
        let missing = request.options.policy == Policy::Split || request.topology.live_slots() < experts;
        Ok(if missing {
            Placement::with_missing(experts, phy2log)?
        } else {
            Placement::new(experts, phy2log)?
        })
    }

    /// The whole trade of moves against balancedness from the placement in force, from one run: the start, and every
    /// stop at which [`Policy::Incremental`] may end with these options, each with more moves and better balanced. A
    /// target ends the curve where it is reached, a budget where it is spent.
    ///
    /// # Errors
    /// As [`Planner::plan`]; no placement in force.
    pub fn curve(&self, request: &Request<'_>) -> Result<Vec<CurvePoint>, PlanError> {
        request.check()?;
        if !request.options.is_plain() {
            return Err(PlanError::Unsupported {
                policy: Policy::Incremental.name(),
                reason: "the curve knows tokens at even split alone; leave out node prices, other costs, other dispatch and \
                         replicate_top"
                    .into(),
            });
        }
        policy::incremental::curve(request, &self.workers)
    }

    /// The best split of the loads over the replicas of a placement: the last step of every plan.
    ///
    /// # Errors
    /// A placement of another shape than the loads or the topology.
    pub fn split(&self, request: &Request<'_>, placement: &Placement) -> Result<Share, PlanError> {
        split_share(request, placement, &self.workers)
    }
}

/// As [`Planner::split`].
pub(crate) fn split_share(
    request: &Request<'_>,
    placement: &Placement,
    workers: &Workers,
) -> Result<Share, PlanError> {
    check_shapes(request.loads.sum().dim(), placement, request.topology)?;
    let splitter = Splitter::new(request.topology);
    let phy2log = placement.phy2log();
    // A placement keeps its map in C order, so it is one slice.
    let (phy2log, slots) = (phy2log.as_slice().unwrap_or_default(), placement.slots());
    let mut share = Array2::zeros((placement.layers(), slots));
    let rows = share.as_slice_mut().unwrap_or_default();
    workers.for_each_layer(rows, slots, |layer, share, scratch| {
        let phy2log = &phy2log[layer * slots..][..slots];
        splitter.split_layer(request.layer_loads(layer), phy2log, share, &mut scratch.split);
    });
    Ok(Share::new(share, placement)?)
}
