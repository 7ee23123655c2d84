//! What a plan may be asked for beside tokens at even split, and which policies know it.

use std::fmt;

use crate::objective::{CostModel, Dispatch, NodeRule};
use crate::options::{Options, Policy};

/// Something that options ask for and that only some policies plan for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Aim {
    /// [`Options::nodes`] at a price.
    NodePrice,
    /// [`Options::nodes`] as a wall.
    Strict,
    /// [`Options::cost`] with time for active experts.
    Cost,
    /// [`Options::dispatch`] other than even.
    Dispatch,
    /// [`Options::replicate_top`].
    ReplicateTop,
    /// [`Options::worth`].
    Worth,
}

impl Aim {
    /// Every aim.
    pub const ALL: &[Aim] =
        &[Aim::NodePrice, Aim::Strict, Aim::Cost, Aim::Dispatch, Aim::ReplicateTop, Aim::Worth];

    /// How errors call it.
    pub const fn name(self) -> &'static str {
        match self {
            Aim::NodePrice => "node rules (a price of crossing nodes)",
            Aim::Strict => "node rules (the strict one, which moves whole groups)",
            Aim::Cost => "the cost model (time per active expert)",
            Aim::Dispatch => "dispatch other than even",
            Aim::ReplicateTop => "replicate_top",
            Aim::Worth => "the worth of moves",
        }
    }

    /// Policies that plan for it, as an advice.
    pub(crate) const fn instead(self) -> &'static str {
        match self {
            Aim::NodePrice | Aim::Cost | Aim::Dispatch | Aim::ReplicateTop => "use incremental or balanced",
            Aim::Strict => "use balanced, or a price per token that crosses nodes",
            Aim::Worth => "use incremental, or a larger move_price with forecast",
        }
    }

    /// Whether options ask for it.
    pub fn is_asked(self, options: &Options) -> bool {
        match self {
            Aim::NodePrice => matches!(options.nodes, NodeRule::Priced(_)),
            Aim::Strict => options.nodes == NodeRule::Strict,
            Aim::Cost => options.cost.per_expert != 0.0,
            Aim::Dispatch => options.dispatch != Dispatch::Even,
            Aim::ReplicateTop => options.replicate_top > 0,
            Aim::Worth => options.worth.is_some(),
        }
    }

    /// Takes it out of options.
    fn drop_from(self, options: &mut Options) {
        match self {
            Aim::NodePrice | Aim::Strict => options.nodes = NodeRule::Free,
            Aim::Cost => options.cost = CostModel::default(),
            Aim::Dispatch => options.dispatch = Dispatch::Even,
            Aim::ReplicateTop => options.replicate_top = 0,
            Aim::Worth => options.worth = None,
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Policy {
    /// Whether plans of this policy are made for it.
    pub fn plans_for(self, aim: Aim) -> bool {
        match self {
            Policy::Balanced => aim != Aim::Worth,
            Policy::Incremental => aim != Aim::Strict,
            Policy::Forecast | Policy::Split | Policy::Deepseek | Policy::Static | Policy::Random => false,
        }
    }

    /// Whether it refuses options that ask for it. What is neither planned for nor refused changes no plan, only
    /// what is predicted of it: baselines do not look at loads, let alone at what the server does with replicas.
    pub(crate) fn refuses(self, aim: Aim) -> bool {
        let node_rule = matches!(aim, Aim::NodePrice | Aim::Strict | Aim::ReplicateTop);
        !self.plans_for(aim) && (node_rule || self == Policy::Forecast)
    }
}

impl Options {
    /// These options without what their policy does not plan for, and what that is: for policies side by side.
    ///
    /// ```
    /// use eplb_plan::{Aim, NodeRule, Options, Policy};
    ///
    /// let asked = Options { policy: Policy::Static, nodes: NodeRule::Priced(0.3), ..Options::default() };
    /// let (options, without) = asked.for_policy();
    /// assert_eq!((options.nodes, without), (NodeRule::Free, vec![Aim::NodePrice]));
    /// ```
    #[must_use]
    pub fn for_policy(&self) -> (Options, Vec<Aim>) {
        let mut options = self.clone();
        let left_out = |aim: &&Aim| aim.is_asked(self) && !self.policy.plans_for(**aim);
        let without: Vec<Aim> = Aim::ALL.iter().filter(left_out).copied().collect();
        without.iter().for_each(|aim| aim.drop_from(&mut options));
        (options, without)
    }
}
