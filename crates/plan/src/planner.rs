//! The planner: threads, and the way from a request to a plan.

use eplb_core::metrics::check_shapes;
use eplb_core::{Placement, RankId, Share, Topology};
use ndarray::Array2;

use crate::curve::CurvePoint;
use crate::error::PlanError;
use crate::objective::{CostModel, Dispatch};
use crate::options::Policy;
use crate::plan::Plan;
use crate::policy;
use crate::predict::Prediction;
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

    /// What any placement would do under the loads of a request, by its options' dispatch, cost and groups: as
    /// [`Plan::predicted`](crate::Plan::predicted) tells of a plan.
    ///
    /// # Errors
    /// Options that mean nothing; a placement of another shape than the loads or the topology.
    pub fn predict(&self, request: &Request<'_>, placement: &Placement) -> Result<Prediction, PlanError> {
        request.check()?;
        check_shapes(request.loads.sum().dim(), placement, request.topology)?;
        let share = match request.options.dispatch {
            Dispatch::Share => self.split(request, placement)?,
            _ => Share::even(placement),
        };
        Ok(Prediction::new(request, placement, &share, &self.workers))
    }
}

/// As [`Planner::split`]. Where active experts take time and the server uses the split, what they take is no matter of the
/// split but levels with it: each rank gets one more slot for an expert of its own that takes as long.
pub(crate) fn split_share(
    request: &Request<'_>,
    placement: &Placement,
    workers: &Workers,
) -> Result<Share, PlanError> {
    check_shapes(request.loads.sum().dim(), placement, request.topology)?;
    let CostModel { per_expert, per_token } = request.options.cost;
    let wide = per_expert > 0.0 && request.options.dispatch == Dispatch::Share;
    let splitter =
        if wide { Splitter::new(&widened(request.topology)?) } else { Splitter::new(request.topology) };
    let phy2log = placement.phy2log();
    // A placement keeps its map in C order, so it is one slice.
    let (phy2log, slots) = (phy2log.as_slice().unwrap_or_default(), placement.slots());
    let mut share = Array2::zeros((placement.layers(), slots));
    let rows = share.as_slice_mut().unwrap_or_default();
    workers.for_each_layer(rows, slots, |layer, share, scratch| {
        let (row, phy2log) = (request.layer_loads(layer), &phy2log[layer * slots..][..slots]);
        if !wide {
            splitter.split_layer(row, phy2log, share, &mut scratch.split);
            return;
        }
        let (topology, experts) = (request.topology, row.len());
        let mut times: Vec<f64> = row.iter().map(|load| load * per_token).collect();
        let mut widened = Vec::with_capacity(slots + topology.ranks());
        for rank in topology.all_ranks() {
            let held = &phy2log[topology.slots_of(rank)];
            let gets_tokens = |&&expert: &&i32| row.get(expert as usize).is_some_and(|&load| load > 0.0);
            times.push(per_expert * held.iter().filter(gets_tokens).count() as f64);
            widened.extend_from_slice(held);
            widened.push((experts + rank.index()) as i32);
        }
        let mut wide_share = vec![0.0; widened.len()];
        splitter.split_layer(&times, &widened, &mut wide_share, &mut scratch.split);
        for rank in topology.all_ranks() {
            let slots = topology.slots_of(rank);
            let from = slots.start + rank.index();
            share[slots.clone()].copy_from_slice(&wide_share[from..from + slots.len()]);
        }
    });
    Ok(Share::new(share, placement)?)
}

/// The same ranks with one more slot each.
fn widened(topology: &Topology) -> Result<Topology, PlanError> {
    let slots: Vec<usize> = topology.all_ranks().map(|rank| topology.slot_count(rank) + 1).collect();
    let speed: Vec<f64> = topology.all_ranks().map(|rank| topology.speed(rank)).collect();
    let dead: Vec<RankId> = topology.all_ranks().filter(|&rank| !topology.is_alive(rank)).collect();
    Ok(Topology::new(&slots)?.with_speed(&speed)?.with_dead(&dead)?)
}
