//! Plans at intervals on what is past, and scores every following step with the placement then in force.
//!
//! The first plan of a policy is made from the first `window` steps; it starts from nothing, so its moves are not counted, and
//! steps are scored from it on. A plan made before step `t` sees steps before `t` only, at most `window` of them, and none from
//! before the last change of stream.

mod runs;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::Instant;

use eplb_core::metrics::{self, layer_balancedness, rank_loads};
use eplb_core::{CoreError, LayerId, LoadMatrix, Placement, RankId, Share, SlotId, Topology};
use eplb_plan::split::split;
use eplb_plan::{Options, PlanError, Planner, Policy, Request};
use eplb_trace::{Trace, TraceError};
use ndarray::ArrayView2;

pub use runs::{PolicyRun, Rebalance, Run};

/// Why a replay stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The trace has no step to score.
    #[error(
        "{file} has {steps} steps, and the first plan takes {window}: give a smaller window or a longer trace"
    )]
    TooShort {
        /// The trace.
        file: String,
        /// Its steps.
        steps: usize,
        /// Steps of a window.
        window: usize,
    },
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A plan cannot be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Shapes that do not fit.
    #[error(transparent)]
    Core(#[from] CoreError),
}

/// What to replay.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Ranks and slots.
    pub topology: Topology,
    /// Most steps that a plan looks back on.
    pub window: NonZeroUsize,
    /// Bytes of one expert, for the cost of moves.
    pub expert_bytes: u64,
    /// Speed of a rank's link, in 10^9 bytes per second each way.
    pub link_gbps: f64,
}

/// A policy, and how often it plans.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Policy and its options.
    pub options: Options,
    /// Steps from one plan to the next.
    pub interval: NonZeroUsize,
}

/// Anything that plans: the loads of the window and the placement in force, if there is one, give a placement.
pub type Plan<'a> = dyn FnMut(&LoadMatrix, Option<&Placement>) -> Result<Placement, PlanError> + 'a;

/// Part of a step's tokens that crosses nodes.
type Cross<'a> = dyn Fn(&LoadMatrix, &Placement) -> Result<f64, PlanError> + 'a;

impl Replay {
    /// Steps that are scored.
    ///
    /// # Errors
    /// [`ReplayError::TooShort`].
    pub fn scored(&self, trace: &Trace) -> Result<Range<usize>, ReplayError> {
        let (steps, window) = (trace.steps(), self.window.get());
        if steps <= window {
            return Err(ReplayError::TooShort { file: trace.source().to_owned(), steps, window });
        }
        Ok(window..steps)
    }

    /// Replays the trace under each of the policies; `progress` is called with every scored step of every policy.
    ///
    /// # Errors
    /// A trace that is too short, or a plan that cannot be made.
    pub fn run(
        &self,
        trace: &Trace,
        policies: &[Schedule],
        planner: &Planner,
        oracle: bool,
        progress: &mut dyn FnMut(),
    ) -> Result<Run, ReplayError> {
        let policies = policies
            .iter()
            .map(|schedule| {
                let options = &schedule.options;
                let name = options.policy.name();
                let mut plan = |loads: &LoadMatrix, current: Option<&Placement>| {
                    self.place(planner, options, loads, current)
                };
                let cross = |loads: &LoadMatrix, placement: &Placement| {
                    let request = Request::new(loads, &self.topology, options);
                    Ok(planner.predict(&request, placement)?.mean_crossing())
                };
                let cross: Option<&Cross<'_>> = (self.topology.nodes() > 1).then_some(&cross);
                self.follow_with(trace, name, schedule.interval, &mut plan, cross, progress)
            })
            .collect::<Result<_, _>>()?;
        let oracle = if oracle {
            let mut bounds = Vec::new();
            for step in self.scored(trace)? {
                bounds.push(eplb_core::bound::bound(trace.step(step)?.view(), &self.topology).mean);
            }
            Some(bounds)
        } else {
            None
        };
        Ok(Run { policies, oracle })
    }

    /// The steps that a plan in force from `step` on may look at; `None` if there are none.
    fn past(&self, trace: &Trace, step: usize) -> Option<Range<usize>> {
        let segment = trace.segments().iter().find(|segment| segment.contains(&step))?;
        let first = step.saturating_sub(self.window.get()).max(segment.start);
        // Before the first step of a stream there is only the stream before.
        (first < step).then_some(first..step)
    }

    /// Replays the trace under any planner. It is handed the past of the step that its plan will be in force from, and
    /// nothing else of the trace.
    ///
    /// # Errors
    /// As [`Replay::run`].
    pub fn follow(
        &self,
        trace: &Trace,
        name: &str,
        interval: NonZeroUsize,
        plan: &mut Plan<'_>,
        progress: &mut dyn FnMut(),
    ) -> Result<PolicyRun, ReplayError> {
        self.follow_with(trace, name, interval, plan, None, progress)
    }

    fn follow_with(
        &self,
        trace: &Trace,
        name: &str,
        interval: NonZeroUsize,
        plan: &mut Plan<'_>,
        cross: Option<&Cross<'_>>,
        progress: &mut dyn FnMut(),
    ) -> Result<PolicyRun, ReplayError> {
        let scored = self.scored(trace)?;
        let first_step = scored.start;
        let mut placement: Option<(Placement, Share)> = None;
        let mut first_placement = None;
        let (mut balancedness, mut rebalances) = (Vec::with_capacity(scored.len()), Vec::new());
        let (mut balancedness_share, mut crossing) = (Vec::with_capacity(scored.len()), Vec::new());
        let (mut waited, mut worked, mut link_seconds) = (0.0, 0.0, 0.0);
        for step in scored {
            let due = (step - first_step).is_multiple_of(interval.get());
            let window = if placement.is_none() {
                Some(self.past(trace, step).unwrap_or(step - 1..step))
            } else if due {
                self.past(trace, step)
            } else {
                None
            };
            if let Some(window) = window {
                let loads = trace.loads(window)?;
                let current = placement.as_ref().map(|(placement, _)| placement);
                let (planned, rebalance, seconds) = self.plan(step, &loads, current, plan)?;
                link_seconds += seconds;
                rebalances.push(rebalance);
                first_placement.get_or_insert_with(|| planned.clone());
                let share = split(loads.sum().view(), &planned, &self.topology)?;
                placement = Some((planned, share));
            }
            let Some((in_force, share)) = &placement else { continue };
            let loads = trace.step(step)?;
            let even = self.score(loads.view(), in_force, None);
            balancedness.push(even.balancedness);
            waited += even.waited;
            worked += even.worked;
            balancedness_share.push(self.score(loads.view(), in_force, Some(share)).balancedness);
            if let Some(cross) = cross {
                crossing.push(cross(&trace.loads(step..step + 1)?, in_force)?);
            }
            progress();
        }
        let Some((first_placement, (last_placement, _))) = first_placement.zip(placement) else {
            let (steps, window) = (trace.steps(), self.window.get());
            return Err(ReplayError::TooShort { file: trace.source().to_owned(), steps, window });
        };
        Ok(PolicyRun {
            name: name.to_owned(),
            interval,
            first_step,
            balancedness,
            balancedness_share,
            crossing,
            rebalances,
            waiting: if worked > 0.0 { waited / worked } else { 0.0 },
            link_seconds,
            first_placement,
            last_placement,
        })
    }

    /// Plans with one of the planner's policies.
    fn place(
        &self,
        planner: &Planner,
        options: &Options,
        loads: &LoadMatrix,
        current: Option<&Placement>,
    ) -> Result<Placement, PlanError> {
        // With nothing in place, policies that start from a placement start from a fresh one.
        let fresh = Options { policy: Policy::Balanced, ..options.clone() };
        let needs_current = matches!(options.policy, Policy::Incremental | Policy::Split);
        let options = if current.is_none() && needs_current { &fresh } else { options };
        let mut request = Request::new(loads, &self.topology, options);
        if let Some(current) = current {
            request = request.with_current(current);
        }
        planner.place(&request)
    }

    fn plan(
        &self,
        step: usize,
        loads: &LoadMatrix,
        current: Option<&Placement>,
        plan: &mut Plan<'_>,
    ) -> Result<(Placement, Rebalance, f64), ReplayError> {
        let start = Instant::now();
        let planned = plan(loads, current)?;
        let plan_ms = start.elapsed().as_secs_f64() * 1e3;
        let (mut moves, mut seconds) = (0, 0.0);
        if let Some(current) = current {
            moves = metrics::changes(current, &planned, &self.topology)?.moves;
            let most = self.most_received(current, &planned);
            seconds = most as f64 * self.expert_bytes as f64 / (self.link_gbps * 1e9);
        }
        Ok((planned, Rebalance { step, moves, plan_ms }, seconds))
    }

    /// Experts that the rank which gets most of them gets from others.
    fn most_received(&self, old: &Placement, new: &Placement) -> usize {
        let received = |rank: RankId| {
            let slots = self.topology.slots_of(rank);
            (0..new.layers())
                .map(LayerId::at)
                .map(|layer| {
                    let held = |expert| {
                        let mut had = slots.clone().map(|s| old.expert_at(layer, SlotId::at(s)));
                        had.any(|had| had == Some(expert))
                    };
                    let mut fresh: Vec<_> = slots
                        .clone()
                        .filter_map(|s| new.expert_at(layer, SlotId::at(s)))
                        .filter(|&e| !held(e))
                        .collect();
                    fresh.sort_unstable();
                    fresh.dedup();
                    fresh.len()
                })
                .sum()
        };
        self.topology.all_ranks().map(received).max().unwrap_or(0)
    }

    /// What one step comes to under a placement, at even split or with `share`.
    fn score(&self, loads: ArrayView2<'_, f64>, placement: &Placement, share: Option<&Share>) -> Score {
        let (mut score, mut layers) = (Score { balancedness: 0.0, waited: 0.0, worked: 0.0 }, 0usize);
        for layer in 0..placement.layers() {
            let ranks = rank_loads(loads.row(layer), placement, LayerId::at(layer), share, &self.topology);
            if let Some(value) = layer_balancedness(&ranks, &self.topology) {
                let most = ranks.iter().copied().fold(0.0, f64::max);
                score.waited += most * (1.0 - value);
                score.worked += most;
                score.balancedness += value;
                layers += 1;
            }
        }
        score.balancedness = if layers == 0 { 1.0 } else { score.balancedness / layers as f64 };
        score
    }
}

/// One step under a placement.
#[derive(Debug, Clone, Copy)]
struct Score {
    /// Mean over the layers that are not idle; 1 if all are.
    balancedness: f64,
    /// Waiting and working time of the layers, in tokens.
    waited: f64,
    worked: f64,
}
