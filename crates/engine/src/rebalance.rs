//! Walks a trace window by window: plan on the window, agree, move wave by wave, check every byte.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::{LoadMatrix, ModelLayout, Placement, Topology, metrics};
use eplb_exchange::Totals;
use eplb_plan::{Options, Planner, Request};
use eplb_trace::Trace;

use crate::cluster::{Cluster, Settings, Verify, weights};
use crate::error::EngineError;
use crate::process::{Alone, MadeUp};

/// What to run on a trace.
#[derive(Debug, Clone)]
pub struct Rebalance {
    /// Ranks and slots.
    pub topology: Topology,
    /// Steps per window.
    pub window: NonZeroUsize,
    /// Policy and its limits.
    pub plan: Options,
    /// Threads that plan; 0 = one per core.
    pub threads: usize,
    /// Bytes of one expert, over all tensors.
    pub expert_bytes: usize,
    /// Staging per rank in bytes; `None` = the default of [`eplb_exchange::Limits::new`].
    pub staging_bytes: Option<usize>,
    /// How bytes are checked.
    pub verify: Verify,
}

/// One window of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// First step of the window in the trace.
    pub step: usize,
    /// Balancedness of the placement in force before, on the window's loads.
    pub balancedness_before: f64,
    /// Balancedness of the placement in force after, on the same loads, even split.
    pub balancedness: f64,
    /// Best balancedness that any placement could have.
    pub bound: f64,
    /// Slots whose expert came from another rank.
    pub moves: usize,
    /// Bytes that crossed links.
    pub bytes: u64,
    /// Waves that they took.
    pub waves: usize,
    /// Least balancedness of a layer on the way, on the planned loads: with slots drained or between two waves. `None`
    /// if nothing moved.
    pub worst: Option<f64>,
    /// Milliseconds of planning the placement.
    pub plan_ms: f64,
    /// Milliseconds from the first rank's plan of waves to the last rank's last commit, checks included.
    pub move_ms: f64,
    /// Steps served while the experts moved.
    pub steps_served: u64,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Its windows, in order.
    pub windows: Vec<Window>,
    /// Bytes found wrong, by steps while experts moved and by checks after every wave and window.
    pub bytes_wrong: u64,
    /// The first wrong slot, in words.
    pub first_wrong: Option<String>,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Windows done.
    pub done: usize,
    /// Windows in all.
    pub windows: usize,
}

impl Rebalance {
    /// The settings of the cluster that the run uses, and the layout of its weights.
    ///
    /// # Errors
    /// Experts of no bytes, or more memory than 80% of what is free.
    pub fn settings(&self, layers: usize) -> Result<(ModelLayout, Settings), EngineError> {
        let layout = weights::layout(layers, self.expert_bytes)?;
        let mut settings = Settings::new(&layout, &self.topology);
        settings.verify = self.verify;
        settings.limits.max_replicas = self.plan.max_replicas;
        if let Some(bytes) = self.staging_bytes {
            settings.limits.staging_bytes = bytes;
        }
        check_memory(&layout, &self.topology, settings.limits.staging_bytes)?;
        Ok((layout, settings))
    }

    /// Runs the trace from the `round_robin` placement on. `progress` is called before every window and at the end.
    ///
    /// # Errors
    /// Bad options or loads, an exchange that stopped, or a rank that failed. Wrong bytes are no error here: they
    /// are counted in the [`Report`].
    pub fn run(&self, trace: &Trace, progress: &mut dyn FnMut(Position)) -> Result<Report, EngineError> {
        if self.topology.ranks() == 1 {
            return self.run_alone(trace, progress);
        }
        let (layout, settings) = self.settings(trace.layers())?;
        self.run_with(trace, layout, settings, progress)
    }

    /// As [`Rebalance::run`] with another cluster, for tests that put faults into it.
    ///
    /// # Errors
    /// As [`Rebalance::run`].
    pub fn run_with(
        &self,
        trace: &Trace,
        layout: ModelLayout,
        settings: Settings,
        progress: &mut dyn FnMut(Position),
    ) -> Result<Report, EngineError> {
        self.check_slots(trace)?;
        let slots = self.topology.slots();
        let threads = match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let planner = Planner::new(threads)?;
        let start = Placement::round_robin(trace.layers(), trace.experts(), slots)?;
        let ranges: Vec<_> = trace.windows(self.window).collect();
        let mut cluster = Cluster::start(&self.topology, layout, start, settings)?;
        let mut report = Report { windows: Vec::new(), bytes_wrong: 0, first_wrong: None };
        for (done, range) in ranges.iter().enumerate() {
            progress(Position { done, windows: ranges.len() });
            let loads = trace.loads(range.clone())?;
            let window = self.window(range.start, &loads, &planner, &mut cluster, &mut report)?;
            report.windows.push(window);
        }
        progress(Position { done: ranges.len(), windows: ranges.len() });
        Ok(report)
    }

    /// Refuses what cannot be run on a trace, without running anything.
    ///
    /// # Errors
    /// As [`Rebalance::settings`], and fewer slots than experts.
    pub fn check(&self, trace: &Trace) -> Result<(), EngineError> {
        self.check_slots(trace)?;
        self.settings(trace.layers()).map(drop)
    }

    pub(crate) fn check_slots(&self, trace: &Trace) -> Result<(), EngineError> {
        let slots = self.topology.slots();
        if slots < trace.experts() {
            return Err(EngineError::Options(format!(
                "{slots} slots for {} experts: every expert needs a slot; give at least {0} slots",
                trace.experts()
            )));
        }
        Ok(())
    }

    fn window(
        &self,
        step: usize,
        loads: &LoadMatrix,
        planner: &Planner,
        cluster: &mut Cluster,
        report: &mut Report,
    ) -> Result<Window, EngineError> {
        let current = cluster.placement().clone();
        let request = Request::new(loads, &self.topology, &self.plan).with_current(&current);
        let start = Instant::now();
        let plan = planner.plan(&request)?;
        let plan_ms = start.elapsed().as_secs_f64() * 1e3;

        let moved = cluster.rebalance(&plan.placement, loads.sum())?;
        report.bytes_wrong += moved.bytes_wrong + cluster.check()?;
        report.first_wrong =
            report.first_wrong.take().or_else(|| moved.first_wrong.as_ref().map(ToString::to_string));
        let carried =
            Carried { waves: moved.waves, totals: moved.totals, steps: moved.steps, time: moved.time };
        let planned = (plan_ms, plan.bound.mean);
        self.line(step, loads, (&current, cluster.placement()), planned, &carried)
    }

    /// A rank that is alone moves between slots of its own: on this thread, with nothing else started.
    fn run_alone(&self, trace: &Trace, progress: &mut dyn FnMut(Position)) -> Result<Report, EngineError> {
        self.check_slots(trace)?;
        let (layout, settings) = self.settings(trace.layers())?;
        let planner = Planner::new(1)?;
        let start = Placement::round_robin(trace.layers(), trace.experts(), self.topology.slots())?;
        let limits = settings.limits;
        let mut alone = Alone::start(&self.topology, Arc::new(layout), start, limits, &MadeUp)?;
        let ranges: Vec<_> = trace.windows(self.window).collect();
        let mut report = Report { windows: Vec::new(), bytes_wrong: 0, first_wrong: None };
        for (done, range) in ranges.iter().enumerate() {
            progress(Position { done, windows: ranges.len() });
            let loads = trace.loads(range.clone())?;
            let current = alone.placement().clone();
            let begun = Instant::now();
            let plan =
                planner.plan(&Request::new(&loads, &self.topology, &self.plan).with_current(&current))?;
            let plan_ms = begun.elapsed().as_secs_f64() * 1e3;
            let begun = Instant::now();
            let (waves, totals) = alone.rebalance(&plan.placement, loads.sum())?;
            report.bytes_wrong += alone.check(self.verify)?;
            let carried = Carried { waves, totals, steps: 0, time: begun.elapsed() };
            let planned = (plan_ms, plan.bound.mean);
            let places = (&current, alone.placement());
            report.windows.push(self.line(range.start, &loads, places, planned, &carried)?);
        }
        progress(Position { done: ranges.len(), windows: ranges.len() });
        Ok(report)
    }

    /// The line of a window: the placements before and after, milliseconds of planning and the bound, and what was moved.
    pub(crate) fn line(
        &self,
        step: usize,
        loads: &LoadMatrix,
        (before, after): (&Placement, &Placement),
        (plan_ms, bound): (f64, f64),
        carried: &Carried,
    ) -> Result<Window, EngineError> {
        let score = |placement: &Placement| -> Result<f64, EngineError> {
            Ok(metrics::balancedness(loads.sum().view(), placement, None, &self.topology)?.mean)
        };
        let totals = &carried.totals;
        Ok(Window {
            step,
            balancedness_before: score(before)?,
            balancedness: score(after)?,
            bound,
            moves: metrics::changes(before, after, &self.topology)?.moves,
            bytes: totals.link_bytes,
            waves: carried.waves,
            worst: [totals.worst_drained, totals.worst_between]
                .into_iter()
                .flatten()
                .map(|worst| worst.balancedness)
                .filter(|_| carried.waves > 0)
                .reduce(f64::min),
            plan_ms,
            move_ms: carried.time.as_secs_f64() * 1e3,
            steps_served: carried.steps,
        })
    }
}

/// What the waves of a window were, and what they took.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) waves: usize,
    pub(crate) totals: Totals,
    pub(crate) steps: u64,
    pub(crate) time: Duration,
}

/// Refuses a run whose weights and staging would take more than 80% of the memory that is free. Where the system does not
/// say how much is free, the allocator has the last word.
fn check_memory(layout: &ModelLayout, topology: &Topology, staging: usize) -> Result<(), EngineError> {
    let per_slot: u64 = (0..layout.layers())
        .flat_map(|layer| layout.layer(eplb_core::LayerId::at(layer)).tensors())
        .map(|tensor| tensor.slot_stride as u64)
        .fold(0, u64::saturating_add);
    let needed = per_slot
        .saturating_mul(topology.slots() as u64)
        .saturating_add((staging as u64).saturating_mul(topology.ranks() as u64));
    check_bytes(needed)
}

/// Refuses what would take more than 80% of the memory that is free.
pub(crate) fn check_bytes(needed: u64) -> Result<(), EngineError> {
    match available_memory() {
        Some(available) if needed > available / 10 * 8 => Err(EngineError::Memory { needed, available }),
        _ => Ok(()),
    }
}

/// Bytes of memory that can be had without swapping, on Linux.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
