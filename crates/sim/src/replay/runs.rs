//! What a replay found.

use std::num::NonZeroUsize;

use eplb_core::Placement;

/// One plan of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Rebalance {
    /// First step that it is in force for.
    pub step: usize,
    /// Slots whose expert came from another rank; 0 for the first plan.
    pub moves: usize,
    /// Milliseconds of planning.
    pub plan_ms: f64,
}

/// A trace under one policy.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyRun {
    /// The policy, or what the planner was called.
    pub name: String,
    /// Steps from one plan to the next.
    pub interval: NonZeroUsize,
    /// First step that is scored.
    pub first_step: usize,
    /// Balancedness of each scored step: mean over its layers that are not idle, even split.
    pub balancedness: Vec<f64>,
    /// The same with the split that each plan's window asks for, in force as long as the plan is.
    pub balancedness_share: Vec<f64>,
    /// Part of each scored step's tokens that crosses nodes beyond what whole groups would, mean over its layers, 0..1;
    /// empty where there is one node, or where the planner's options are not known.
    pub crossing: Vec<f64>,
    /// The plans, the first included.
    pub rebalances: Vec<Rebalance>,
    /// Part of the time of the mixture layers that ranks wait for the slowest, 0..1: with a layer's time taken as the load
    /// of its busiest rank, the sum of (largest - mean) over the sum of largest.
    pub waiting: f64,
    /// Seconds of link time: per plan, the bytes into the rank that gets most, at the link's speed.
    pub link_seconds: f64,
    /// The placement after the first plan.
    pub first_placement: Placement,
    /// The placement at the end.
    pub last_placement: Placement,
}

impl PolicyRun {
    /// Mean balancedness over the scored steps.
    pub fn mean(&self) -> f64 {
        self.balancedness.iter().sum::<f64>() / self.balancedness.len() as f64
    }

    /// Mean balancedness over the scored steps with the split of the plan in force.
    pub fn mean_share(&self) -> f64 {
        self.balancedness_share.iter().sum::<f64>() / self.balancedness_share.len() as f64
    }

    /// Balancedness that all but the worst hundredth of the steps reach (nearest rank).
    pub fn p01(&self) -> f64 {
        let mut sorted = self.balancedness.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() as f64 * 0.01).ceil().max(1.0) as usize - 1]
    }

    /// Mean crossing over the scored steps; 0 if it was not measured.
    pub fn mean_crossing(&self) -> f64 {
        self.crossing.iter().sum::<f64>() / self.crossing.len().max(1) as f64
    }

    /// Moves of all plans but the first.
    pub fn moves(&self) -> usize {
        self.rebalances.iter().map(|r| r.moves).sum()
    }

    /// Mean over the scored steps of the part of all slots that moved.
    pub fn moves_fraction(&self) -> f64 {
        let slots = self.last_placement.layers() * self.last_placement.slots();
        self.moves() as f64 / slots as f64 / self.balancedness.len() as f64
    }

    /// Median of the time of a plan, in milliseconds.
    pub fn plan_ms_median(&self) -> f64 {
        let mut times: Vec<f64> = self.rebalances.iter().map(|r| r.plan_ms).collect();
        times.sort_by(f64::total_cmp);
        let middle = times.len() / 2;
        if times.len().is_multiple_of(2) { (times[middle - 1] + times[middle]) / 2.0 } else { times[middle] }
    }

    /// Shortest and longest time of a plan, in milliseconds.
    pub fn plan_ms_range(&self) -> (f64, f64) {
        let times = self.rebalances.iter().map(|r| r.plan_ms);
        (times.clone().fold(f64::INFINITY, f64::min), times.fold(0.0, f64::max))
    }
}

/// A trace under several policies.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// One entry per policy, in the order asked for.
    pub policies: Vec<PolicyRun>,
    /// Bound of each scored step (mean over layers that are not idle), if asked for: no placement and no split could
    /// have been better in that step.
    pub oracle: Option<Vec<f64>>,
}
