//! Walks a trace with ranks that are processes: the lowest plans, all move.

use std::sync::Arc;
use std::time::Instant;

use eplb_core::{LoadMatrix, Placement};
use eplb_plan::{Planner, Request};
use eplb_trace::Trace;
use ndarray::Array2;

use super::job::Job;
use super::member::Member;
use super::moving::Exchanged;
use super::session::{Session, Stage, at};
use super::standing::decode_map;
use super::transport::{MadeUp, Transport};
use crate::error::EngineError;
use crate::rebalance::{Carried, Position, Rebalance, Report, Window};

impl Rebalance {
    /// What every rank of this run is started with, over a backend.
    ///
    /// # Errors
    /// As [`Rebalance::settings`].
    pub fn job(&self, trace: &Trace, transport: Arc<dyn Transport>) -> Result<Job, EngineError> {
        self.check_slots(trace)?;
        let (layout, mut settings) = self.settings(trace.layers())?;
        // A proposal travels through the store while steps of 1 ms go on; threads need less.
        settings.margin = settings.margin.max(32);
        Ok(Job {
            topology: self.topology.clone(),
            layout: Arc::new(layout),
            start: Placement::round_robin(trace.layers(), trace.experts(), self.topology.slots())?,
            settings,
            versions: String::new(),
            transport,
            source: Arc::new(MadeUp),
        })
    }

    /// Runs the trace as one rank of a session. Every rank calls it with the same trace; the lowest plans.
    /// `progress` is called before every window and at the end.
    ///
    /// # Errors
    /// [`EngineError::AtStage`]. Wrong bytes are no error here: they are counted in the [`Report`].
    pub fn run_as_rank(
        &self,
        trace: &Trace,
        session: Session,
        job: Job,
        progress: &mut dyn FnMut(Position),
    ) -> Result<Report, EngineError> {
        let rank = session.rank();
        let planner = at(rank, Stage::Planning, Planner::new(self.threads.max(1)))?;
        let mut member = Member::start(session, job)?;
        let ranges: Vec<_> = trace.windows(self.window).collect();
        let mut report = Report { windows: Vec::new(), bytes_wrong: 0, first_wrong: None };
        for (done, range) in ranges.iter().enumerate() {
            progress(Position { done, windows: ranges.len() });
            let loads = at(rank, Stage::Planning, trace.loads(range.clone()))?;
            let window = self.rank_window(range.start, &loads, &planner, &mut member, &mut report)?;
            report.windows.push(window);
        }
        progress(Position { done: ranges.len(), windows: ranges.len() });
        Ok(report)
    }

    pub(super) fn rank_window(
        &self,
        step: usize,
        loads: &LoadMatrix,
        planner: &Planner,
        member: &mut Member,
        report: &mut Report,
    ) -> Result<Window, EngineError> {
        let rank = member.rank();
        let current = member.placement().clone();
        let message = member.plan_of_leader(|member| {
            let start = Instant::now();
            let request = Request::new(loads, &self.topology, &self.plan).with_current(member.placement());
            let plan = planner.plan(&request)?;
            let plan_ms = start.elapsed().as_secs_f64() * 1e3;
            Ok(Planned { plan_ms, bound: plan.bound.mean, map: plan.placement.phy2log().to_owned() }.encode())
        })?;
        let Some(planned) = Planned::decode(&message, current.phy2log().dim()) else {
            let leader = member.session().members()[0];
            let error = EngineError::Unreadable { rank: leader, what: "its plan" };
            return at(rank, Stage::Planning, Err(error));
        };
        let new = at(rank, Stage::Planning, Placement::new(current.experts(), planned.map))?;
        let moved = member.rebalance(&new, loads.sum())?;
        take_reports(member, &moved, report)?;
        let carried =
            Carried { waves: moved.waves, totals: moved.totals, steps: moved.steps, time: moved.time };
        let planned = (planned.plan_ms, planned.bound);
        self.line(step, loads, (&current, member.placement()), planned, &carried)
    }
}

/// What every rank found wrong, and whether all hold the same placement.
pub(super) fn take_reports(
    member: &mut Member,
    moved: &Exchanged,
    report: &mut Report,
) -> Result<(), EngineError> {
    let rank = member.rank();
    let wrong = moved.bytes_wrong + member.check()?;
    let map = member.placement().hash64();
    let first = moved.first_wrong.clone().unwrap_or_default();
    let message = [&wrong.to_le_bytes()[..], &map.to_le_bytes(), first.as_bytes()].concat();
    let said = member.gather("window", &message)?;
    let members = member.session().members().to_vec();
    for (&other, message) in members.iter().zip(&said) {
        let fields = message.split_first_chunk::<8>().and_then(|(wrong, rest)| {
            let (map, first) = rest.split_first_chunk::<8>()?;
            Some((u64::from_le_bytes(*wrong), u64::from_le_bytes(*map), String::from_utf8_lossy(first)))
        });
        let Some((wrong, theirs, first)) = fields else {
            let error = EngineError::Unreadable { rank: other, what: "its report" };
            return at(rank, Stage::Reporting, Err(error));
        };
        if theirs != map {
            return at(rank, Stage::Reporting, Err(EngineError::Diverged { a: rank, b: other }));
        }
        report.bytes_wrong += wrong;
        if !first.is_empty() {
            report.first_wrong.get_or_insert_with(|| format!("{other}: {first}"));
        }
    }
    Ok(())
}

/// What the planning rank sends to all.
struct Planned {
    plan_ms: f64,
    bound: f64,
    map: Array2<i32>,
}

impl Planned {
    fn encode(&self) -> Vec<u8> {
        let mut out = [self.plan_ms.to_le_bytes(), self.bound.to_le_bytes()].concat();
        self.map.iter().for_each(|entry| out.extend(entry.to_le_bytes()));
        out
    }

    fn decode(bytes: &[u8], shape: (usize, usize)) -> Option<Self> {
        let (plan_ms, rest) = bytes.split_first_chunk::<8>()?;
        let (bound, rest) = rest.split_first_chunk::<8>()?;
        let map = decode_map(rest, shape)?;
        Some(Self { plan_ms: f64::from_le_bytes(*plan_ms), bound: f64::from_le_bytes(*bound), map })
    }
}
