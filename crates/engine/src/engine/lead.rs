//! What the leading rank does beside its part: it sums the counts of all ranks, looks at triggers, and plans.

use std::time::{Duration, Instant};

use eplb_core::{LoadMatrix, Placement, metrics};
use eplb_plan::{Dispatch, Planner, Request};
use ndarray::{Array2, Array3, Axis};

use super::config::EngineConfig;
use super::report::Reason;
use super::shared::{Set, lock};
use super::trigger::{Situation, drift, due};
use super::wire::Plan;
use crate::error::EngineError;
use crate::margin::Margin;

/// What the leading rank knows of one layer set.
#[derive(Debug)]
pub(super) struct LeadSet {
    /// Last counts of each member, `[members]`.
    last: Vec<Option<Array3<u64>>>,
    /// Loads since the last round, `[L, E]`.
    since: Array2<f64>,
    /// Loads that the last plan was made on.
    planned_on: Option<Array2<f64>>,
    ended: Instant,
    failures: u32,
    retry: bool,
    balancedness: f64,
}

impl LeadSet {
    pub(super) fn new(set: &Set, members: usize) -> Self {
        Self {
            last: vec![None; members],
            since: Array2::zeros((set.layers(), set.experts)),
            planned_on: None,
            ended: Instant::now(),
            failures: 0,
            retry: false,
            balancedness: 1.0,
        }
    }

    /// A new epoch: counts begin anew.
    pub(super) fn forget_members(&mut self, members: usize) {
        self.last = vec![None; members];
    }

    /// Takes in the counts of all members, `[tags, L, E]` each, of which those of `tags` are planned for.
    pub(super) fn take(
        &mut self,
        counts: Vec<Option<Array3<u64>>>,
        tags: &[usize],
        set: &Set,
        placement: &Placement,
    ) -> Result<(), EngineError> {
        let mut sample = Array2::<f64>::zeros(self.since.dim());
        for (last, now) in self.last.iter_mut().zip(counts) {
            let Some(now) = now else { continue };
            for &tag in tags {
                let now = now.index_axis(Axis(0), tag);
                for ((layer, expert), &sum) in now.indexed_iter() {
                    let before = last.as_ref().map_or(0, |last| last[(tag, layer, expert)]);
                    sample[(layer, expert)] += sum.wrapping_sub(before) as f64;
                }
            }
            *last = Some(now);
        }
        if sample.iter().all(|&tokens| tokens == 0.0) {
            return Ok(());
        }
        self.since += &sample;
        lock(&set.window).push(sample);
        self.balancedness = metrics::balancedness(self.since.view(), placement, None, &set.topology)?.mean;
        Ok(())
    }

    /// Balancedness measured since the last round.
    pub(super) fn balancedness(&self) -> f64 {
        self.balancedness
    }

    /// Why a round begins now, if one does.
    pub(super) fn due(&self, config: &EngineConfig, demanded: bool) -> Option<Reason> {
        let planned_on = self.planned_on.as_ref();
        let situation = Situation {
            demanded,
            retry: self.retry,
            since: self.ended.elapsed(),
            failures: self.failures,
            tokens: self.since.sum() as u64,
            balancedness: self.balancedness,
            drift: planned_on.map(|planned| drift(planned.view(), self.since.view())),
        };
        due(&config.trigger, &situation)
    }

    /// A round of this set has ended on all ranks.
    pub(super) fn ended(&mut self, too_late: bool, broken_off: bool) {
        self.ended = Instant::now();
        self.retry = too_late;
        self.failures = if broken_off { self.failures + 1 } else { 0 };
        if !too_late && !broken_off {
            self.since.fill(0.0);
        }
    }

    /// Plans for the window.
    pub(super) fn plan(
        &mut self,
        planner: &Planner,
        (at, set): (usize, &Set),
        placement: &Placement,
        reason: Reason,
        (margin, dry): (u64, bool),
    ) -> Result<Plan, EngineError> {
        let window = lock(&set.window).stacked().unwrap_or_else(|| self.since.clone().insert_axis(Axis(0)));
        let loads = LoadMatrix::from_window(window)?;
        let start = Instant::now();
        let request = Request::new(&loads, &set.topology, &set.options).with_current(placement);
        let plan = planner.plan(&request)?;
        let plan_time = start.elapsed();
        let shared = set.options.dispatch == Dispatch::Share;
        let after = if shared { &plan.after_share } else { &plan.after };
        self.planned_on = Some(loads.sum().clone());
        Ok(Plan {
            set: at,
            reason,
            dry,
            margin,
            plan_nanos: u64::try_from(plan_time.as_nanos()).unwrap_or(u64::MAX),
            before: plan.before.as_ref().map_or(1.0, |before| before.mean),
            predicted: after.mean,
            bound: plan.bound.mean,
            phy2log: plan.placement.phy2log().to_owned(),
            share: shared.then(|| plan.share.view().to_owned()),
            loads: loads.sum().clone(),
        })
    }
}

/// The leading rank's view of all sets.
#[derive(Debug)]
pub(super) struct Lead {
    pub(super) sets: Vec<LeadSet>,
    pub(super) planner: Option<Planner>,
    pub(super) margin: Margin,
    /// Demands of all ranks in this epoch that have been answered.
    pub(super) demands: u64,
    /// Layer sets that still have to answer the demands seen last.
    pub(super) owing: Vec<usize>,
    pub(super) sampled: Option<Instant>,
    /// The set of the round under way.
    pub(super) under_way: Option<usize>,
    /// Number of the round that was announced last.
    pub(super) announced: u64,
}

impl Lead {
    pub(super) fn new(sets: &[Set], config: &EngineConfig, members: usize) -> Self {
        Self {
            sets: sets.iter().map(|set| LeadSet::new(set, members)).collect(),
            planner: None,
            margin: Margin::new(config.margin),
            demands: 0,
            owing: Vec::new(),
            sampled: None,
            under_way: None,
            announced: 0,
        }
    }

    /// A new epoch: nothing is under way in it, and ranks demand anew.
    pub(super) fn forget_demands(&mut self) {
        (self.demands, self.under_way, self.announced) = (0, None, 0);
        self.owing.clear();
    }

    /// Whether a sample is due.
    pub(super) fn sample_due(&self, sample: Duration) -> bool {
        self.sampled.is_none_or(|at| at.elapsed() >= sample)
    }
}
