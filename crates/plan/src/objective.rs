//! What a plan is good for: what a rank's time is made of, what the server does with replicas, what crossing nodes costs.

use std::fmt;
use std::str::FromStr;

use crate::error::PlanError;

/// Time of a rank in one layer: `per_expert * (slots that got tokens) + per_token * tokens`, over the rank's speed, in
/// any unit. The worst rank's time is what plans make small.
///
/// In memory-bound decode a grouped matrix product reads the weights of every expert that got a token, however few
/// they are, so that the first part outweighs the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostModel {
    /// Time for every slot with tokens, 0 or more.
    pub per_expert: f64,
    /// Time for every token, 0 or more.
    pub per_token: f64,
}

impl Default for CostModel {
    /// Tokens alone count.
    fn default() -> Self {
        Self { per_expert: 0.0, per_token: 1.0 }
    }
}

impl CostModel {
    /// Time of a rank of speed 1.
    pub(crate) fn time(&self, active: f64, tokens: f64) -> f64 {
        self.per_expert * active + self.per_token * tokens
    }
}

/// What the server does with the replicas of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Dispatch {
    /// Every replica gets the same part of the tokens.
    #[default]
    Even,
    /// Replicas get the parts of [`Plan::share`](crate::Plan::share).
    Share,
    /// A token goes to the replica on its own rank; else to those on its own node, evenly; else to all, evenly. Tokens
    /// come from all live ranks alike.
    Nearest,
}

impl Dispatch {
    /// Every kind.
    pub const ALL: &[Dispatch] = &[Dispatch::Even, Dispatch::Share, Dispatch::Nearest];

    /// The name that the command line and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Dispatch::Even => "even",
            Dispatch::Share => "share",
            Dispatch::Nearest => "nearest",
        }
    }
}

impl fmt::Display for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dispatch {
    type Err = PlanError;

    fn from_str(name: &str) -> Result<Self, PlanError> {
        Self::ALL.iter().copied().find(|d| d.name() == name).ok_or_else(|| PlanError::Option {
            option: "dispatch",
            value: name.to_owned(),
            expected: "one of even, share, nearest",
        })
    }
}

/// What experts may do across nodes.
///
/// A router with expert groups picks a few groups for a token and experts inside these, so that a token whose groups are
/// each whole on one node visits few nodes, and is sent once to each (DeepSeek-V3, section 2.1.2, "node-limited
/// routing"). What a placement adds to that are *strays*: tokens served on a node that is neither the one they come from
/// nor the home of their expert's group, which is the node that gets most of the group's tokens from elsewhere.
/// Each of them is one more copy of a token on the links between nodes (at most: two strays of a token to one node
/// travel together). Their part of all tokens is the *crossing*, 0..1; tokens come from all live ranks alike.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum NodeRule {
    /// Nodes do not matter.
    #[default]
    Free,
    /// A plan is worth its worst rank's time, as a multiple of the mean time with one copy of every expert, plus this
    /// price times its crossing. At price 1 a hundredth of the tokens may cross for a hundredth of balance.
    Priced(f64),
    /// DeepSeek's rule: all replicas of a group's experts on one node, equally many groups on each: no crossing.
    Strict,
}
