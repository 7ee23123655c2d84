//! Arguments that several commands share.

use std::ops::Range;

use clap::Args;
use eplb_core::Topology;
use eplb_plan::{Budget, Options, Policy, Window};
use eplb_trace::Trace;

use crate::moves::MoveArgs;
use crate::objective::ObjectiveArgs;
use crate::output::Failure;
use crate::ranks::RankArgs;

/// How placements are planned.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlanArgs {
    /// Nodes that the ranks are spread over
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) nodes: usize,

    /// Expert groups of the model's router (`deepseek` keeps them on one node)
    #[arg(long, default_value_t = 1, value_name = "K")]
    pub(crate) groups: usize,

    /// Balancedness that is enough, 0..1 (`incremental`; 0.95 if no budget is given either)
    #[arg(long, value_name = "B")]
    pub(crate) target: Option<f64>,

    /// Mean balancedness of a layer that a move must gain in the steps to come (`forecast`): less buys more balance with more
    /// moves
    #[arg(long, default_value_t = Options::default().move_price, value_name = "B")]
    pub(crate) move_price: f64,

    /// Steps after which a step of the window weighs half (`forecast`; inf = all weigh the same)
    #[arg(long, default_value_t = Window::default().half_life, value_name = "H")]
    pub(crate) half_life: f64,

    /// Steps at which half of a measured gain is taken for noise: short windows move less (`forecast`)
    #[arg(long, default_value_t = Window::default().shrinkage, value_name = "N")]
    pub(crate) shrinkage: f64,

    /// Part of the drift over the window that is expected to go on, 0..1 (`forecast`)
    #[arg(long, default_value_t = Window::default().drift, value_name = "D")]
    pub(crate) drift: f64,

    /// Seed of `random`
    #[arg(long, default_value_t = 0, value_name = "S")]
    pub(crate) seed: u64,

    /// Threads that plan (default: one per core); the plan does not depend on it
    #[arg(long, value_name = "T")]
    pub(crate) threads: Option<usize>,

    /// Most replicas of one expert: the columns of the server's log2phy
    #[arg(long, value_name = "C")]
    pub(crate) max_replicas: Option<usize>,

    #[command(flatten)]
    pub(crate) ranks: RankArgs,

    #[command(flatten)]
    pub(crate) moves: MoveArgs,

    #[command(flatten)]
    pub(crate) objective: ObjectiveArgs,
}

impl PlanArgs {
    /// Options of the planner for a policy.
    pub(crate) fn options(&self, policy: Policy) -> Options {
        let budget = self.moves.budget();
        let unlimited = policy == Policy::Incremental && budget == Budget::default();
        self.objective.apply(Options {
            policy,
            groups: self.groups,
            seed: self.seed,
            max_replicas: self.max_replicas,
            target: self.target.or(unlimited.then_some(DEFAULT_TARGET)),
            budget,
            move_price: self.move_price,
            window: Window {
                half_life: self.half_life,
                shrinkage: self.shrinkage,
                drift: self.drift,
                ..Window::default()
            },
            ..Options::default()
        })
    }

    /// Threads to plan with.
    pub(crate) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Ranks on nodes, as [`RankArgs`] says that they differ.
    pub(crate) fn topology(&self, ranks: usize, slots: usize) -> Result<Topology, Failure> {
        let topology = self.ranks.topology(ranks, slots)?;
        topology.with_nodes(self.nodes).map_err(|error| Failure::input(error.to_string()))
    }
}

/// Balancedness that `incremental` aims at when neither a target nor a budget is given.
const DEFAULT_TARGET: f64 = 0.95;

/// For clap.
pub(crate) fn policy(name: &str) -> Result<Policy, String> {
    name.parse().map_err(|error: eplb_plan::PlanError| error.to_string())
}

/// Steps `A:B` of a trace: `A..B-1`. Either side may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Steps {
    first: usize,
    end: Option<usize>,
}

impl Steps {
    /// For clap.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not A:B with two step numbers");
        let (first, end) = text.split_once(':').ok_or_else(wrong)?;
        let number = |part: &str| part.parse::<usize>().map_err(|_| wrong());
        let first = if first.is_empty() { 0 } else { number(first)? };
        let end = if end.is_empty() { None } else { Some(number(end)?) };
        if end.is_some_and(|end| end <= first) {
            return Err(format!("{text:?} has no steps: A:B means A..B-1, so B must be larger than A"));
        }
        Ok(Self { first, end })
    }

    fn range(self, steps: usize) -> Range<usize> {
        self.first..self.end.unwrap_or(steps)
    }
}

/// Opens a trace and takes the steps asked for.
pub(crate) fn open(path: &std::path::Path, steps: Option<Steps>) -> Result<Trace, Failure> {
    let trace = Trace::open(path)?;
    match steps {
        None => Ok(trace),
        Some(steps) => Ok(trace.select_steps(steps.range(trace.steps()))?),
    }
}
