//! What a plan should be like.

use std::fmt;
use std::str::FromStr;

use crate::budget::{Budget, Worth};
use crate::error::PlanError;
use crate::objective::{CostModel, Dispatch, NodeRule};

/// How a placement is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Policy {
    /// Slot `p` holds expert `p % E`: what a server starts with. Ignores the loads.
    Static,
    /// A valid placement drawn with [`Options::seed`]. Ignores the loads; a baseline.
    Random,
    /// A fresh plan as good as the loads allow, whatever is in place.
    Balanced,
    /// From the placement in force, the changes that buy most balance per move, until [`Options::target`] is reached or
    /// [`Options::budget`] is spent. Needs a current placement.
    Incremental,
    /// From the placement in force, the changes that pay their price in the steps to come: each step of the window is a sample of
    /// them, and a change is made if it gains [`Options::move_price`] per move. Made for small plans at every step; with
    /// nothing in place, a fresh plan for the same samples.
    Forecast,
    /// What is in place stays; only the split of tokens over the replicas is solved again. Needs a current placement.
    Split,
    /// DeepSeek EPLB's algorithm, slot for slot: hierarchical where the groups divide over the nodes, else global.
    Deepseek,
}

impl Policy {
    /// Every policy, in the order of the documentation.
    pub const ALL: &[Policy] = &[
        Policy::Balanced,
        Policy::Incremental,
        Policy::Forecast,
        Policy::Split,
        Policy::Deepseek,
        Policy::Static,
        Policy::Random,
    ];

    /// The name that the command line and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Policy::Static => "static",
            Policy::Random => "random",
            Policy::Balanced => "balanced",
            Policy::Incremental => "incremental",
            Policy::Forecast => "forecast",
            Policy::Split => "split",
            Policy::Deepseek => "deepseek",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Policy {
    type Err = PlanError;

    fn from_str(name: &str) -> Result<Self, PlanError> {
        Self::ALL.iter().copied().find(|p| p.name() == name).ok_or_else(|| PlanError::UnknownPolicy {
            name: name.to_owned(),
            known: Self::ALL.iter().map(|p| p.name()).collect::<Vec<_>>().join(", "),
        })
    }
}

/// Policy and limits of a plan. Fields that a policy does not know do not change its plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How the placement is found.
    pub policy: Policy,
    /// Expert groups of the model's router (1 = none): consecutive experts, equally many in each. `deepseek` packs
    /// whole groups on nodes.
    pub groups: usize,
    /// Wanted balancedness at even split, mean over the layers that are not idle, 0..1; [`Plan::target_reached`]
    /// tells whether the plan has it. `None` = as good as the policy's other limits allow.
    ///
    /// [`Plan::target_reached`]: crate::Plan::target_reached
    pub target: Option<f64>,
    /// Most that `incremental` and `forecast` may move.
    pub budget: Budget,
    /// Bytes of one expert, weights and all that moves with them: a number per layer, or one for all layers. Empty =
    /// not known; then moves are counted, else bytes.
    pub expert_bytes: Vec<u64>,
    /// Leaves layers alone whose gain does not pay for their bytes, in `incremental`; needs [`Options::expert_bytes`].
    /// `None` = every gain is worth its moves.
    pub worth: Option<Worth>,
    /// What `forecast` asks a move for: mean balancedness of a layer over the steps to come, per expert moved. Smaller prices buy
    /// more balance with more moves; 0 = whatever gains at all.
    pub move_price: f64,
    /// How `forecast` looks on the window of loads.
    pub window: Window,
    /// Seed of `random`.
    pub seed: u64,
    /// Most replicas of one expert (columns of the server's `log2phy`); `None` = no limit but the slots.
    pub max_replicas: Option<usize>,
    /// What experts may do across nodes, [`Options::groups`] being the router's; `balanced`, but for `Strict` also
    /// `incremental`. Other policies refuse it, as `deepseek` has a rule of its own.
    pub nodes: NodeRule,
    /// What a rank's time is made of; `balanced` and `incremental` make the worst rank's time small, and predictions
    /// for all policies are made with it.
    pub cost: CostModel,
    /// What the server does with replicas; `balanced` and `incremental` plan for it, and predictions for all policies are
    /// made under it.
    pub dispatch: Dispatch,
    /// So many experts of each layer, those with most tokens, get a replica on every live rank (`balanced` and
    /// `incremental`; others refuse it).
    pub replicate_top: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: Policy::Balanced,
            target: None,
            budget: Budget::default(),
            expert_bytes: Vec::new(),
            worth: None,
            groups: 1,
            move_price: 0.0015,
            window: Window::default(),
            seed: 0,
            max_replicas: None,
            nodes: NodeRule::default(),
            cost: CostModel::default(),
            dispatch: Dispatch::default(),
            replicate_top: 0,
        }
    }
}

/// How a window of steps speaks for the steps to come.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Steps after which a step weighs half: above 0, infinite = all steps weigh the same.
    pub half_life: f64,
    /// Steps of equal weight at which half of a measured gain is taken for noise: with `n` steps, the price of a move is
    /// `1 + shrinkage / n` times [`Options::move_price`]. 0 = gains are taken as measured.
    pub shrinkage: f64,
    /// Most scenarios: longer windows are cut into as many blocks, and a block counts as its mean.
    pub scenarios: usize,
    /// Part of the drift measured over the window that is expected to go on, 0 to 1: each step is carried along the line
    /// through its expert's loads to the step to come. 0 = loads stay what they were; on recorded traffic a drift
    /// gained nothing (docs/benchmarks/windows.md).
    pub drift: f64,
}

impl Default for Window {
    fn default() -> Self {
        Self { half_life: 10.0, shrinkage: 3.0, scenarios: 32, drift: 0.0 }
    }
}

impl Options {
    /// Most replicas of one expert when there are `slots` slots.
    pub(crate) fn replica_limit(&self, slots: usize) -> usize {
        self.max_replicas.unwrap_or(slots).min(slots)
    }

    /// Whether plans are judged by tokens at even split alone, whatever the nodes.
    pub(crate) fn is_plain(&self) -> bool {
        self.nodes == NodeRule::Free
            && self.cost.per_expert == 0.0
            && self.dispatch == Dispatch::Even
            && self.replicate_top == 0
    }

    /// # Errors
    /// [`PlanError::Option`] for a value that means nothing.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        if let Some(target) = self.target.filter(|t| !(0.0..=1.0).contains(t)) {
            let expected = "a balancedness is a number from 0 to 1";
            return Err(PlanError::Option { option: "target", value: target.to_string(), expected });
        }
        self.worth.map_or(Ok(()), |worth| worth.check())?;
        if self.expert_bytes.is_empty() && (self.worth.is_some() || self.budget.counts_bytes()) {
            return Err(PlanError::Option {
                option: "expert_bytes",
                value: "unknown".into(),
                expected: "budgets in bytes and the worth of moves need the bytes of one expert",
            });
        }
        let at_least = |option, value: f64, least: f64, expected| match value {
            value if value >= least => Ok(()),
            _ => Err(PlanError::Option { option, value: value.to_string(), expected }),
        };
        at_least("move_price", self.move_price, 0.0, "a price is a balancedness per move, 0 or more")?;
        let half_life = self.window.half_life;
        at_least("half_life", half_life, f64::MIN_POSITIVE, "give steps above 0, or inf for no decay")?;
        at_least("shrinkage", self.window.shrinkage, 0.0, "give a number of steps, 0 or more")?;
        if !(0.0..=1.0).contains(&self.window.drift) {
            let (value, expected) =
                (self.window.drift.to_string(), "give the part of a drift that goes on, 0 to 1");
            return Err(PlanError::Option { option: "drift", value, expected });
        }
        let positive = |option, value: usize, expected| match value {
            0 => Err(PlanError::Option { option, value: value.to_string(), expected }),
            _ => Ok(()),
        };
        positive("scenarios", self.window.scenarios, "give the most scenarios of a window, at least 1")?;
        positive("groups", self.groups, "give the number of expert groups, 1 if there are none")?;
        let CostModel { per_expert, per_token } = self.cost;
        for (option, value) in [("cost.per_expert", per_expert), ("cost.per_token", per_token)] {
            if !(value.is_finite() && value >= 0.0) {
                let expected = "a time is a finite number, 0 or more";
                return Err(PlanError::Option { option, value: value.to_string(), expected });
            }
        }
        if per_expert + per_token == 0.0 {
            let expected = "one of per_expert and per_token must be above 0, or every plan takes no time";
            return Err(PlanError::Option { option: "cost", value: "0, 0".into(), expected });
        }
        if let NodeRule::Priced(price) = self.nodes
            && !(price.is_finite() && price >= 0.0)
        {
            let expected =
                "a price is a finite number, 0 or more; nodes that experts may not leave are the strict rule";
            return Err(PlanError::Option { option: "nodes", value: price.to_string(), expected });
        }
        positive("max_replicas", self.max_replicas.unwrap_or(1), "every expert needs at least 1 replica")
    }
}
