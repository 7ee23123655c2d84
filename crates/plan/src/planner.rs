//! The planner: threads, and the way from a request to a plan.

use eplb_core::{Placement, Share};

use crate::error::PlanError;
use crate::plan::Plan;
use crate::policy;
use crate::request::Request;
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
        let share = Share::even(&placement);
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
        Ok(if request.topology.live_slots() < experts {
            Placement::with_missing(experts, phy2log)?
        } else {
            Placement::new(experts, phy2log)?
        })
    }
}
