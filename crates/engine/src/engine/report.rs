//! What a round did.

use std::fmt;
use std::time::Duration;

use super::SetId;

/// Why a round began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// [`Engine::rebalance_now`](super::Engine::rebalance_now).
    Demand,
    /// The interval is over.
    Interval,
    /// Balancedness fell below the threshold.
    Below,
    /// The loads drifted from those of the last plan.
    Drift,
    /// The round before came too late for a step, or was broken off.
    Retry,
}

impl Reason {
    /// Every reason, in the order of their numbers on the wire.
    pub(super) const ALL: [Self; 5] = [Self::Demand, Self::Interval, Self::Below, Self::Drift, Self::Retry];

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Interval => "interval",
            Self::Below => "below",
            Self::Drift => "drift",
            Self::Retry => "retry",
        }
    }
}

/// How a round ended on this rank.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RoundOutcome {
    /// The plan is in force.
    Moved,
    /// The plan moves nothing; its shares are in force.
    NothingToMove,
    /// A dry run: planned, and not moved.
    DryRun,
    /// A proposal came too late for a rank; it is tried again by itself, with a larger margin.
    TooLate,
    /// Broken off; what was committed before stays.
    Aborted {
        /// Why.
        cause: String,
    },
}

impl RoundOutcome {
    /// Its name in logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::NothingToMove => "nothing",
            Self::DryRun => "dry_run",
            Self::TooLate => "too_late",
            Self::Aborted { .. } => "aborted",
        }
    }
}

impl fmt::Display for RoundOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted { cause } => write!(f, "aborted: {cause}"),
            other => f.write_str(other.name()),
        }
    }
}

/// One round, as this rank saw it. Balancedness is [`eplb_core::metrics`]' one definition, on the loads planned for, at even
/// split unless the server uses shares.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Number of the round in its epoch, from 1. Connecting takes numbers, too.
    pub round: u64,
    /// The layer set.
    pub set: SetId,
    /// Why it began.
    pub reason: Reason,
    /// How it ended.
    pub outcome: RoundOutcome,
    /// Balancedness of the placement before.
    pub before: f64,
    /// Balancedness that the plan promised.
    pub predicted: f64,
    /// The best that any placement could reach.
    pub bound: f64,
    /// Balancedness of what is in force now, on the same loads.
    pub reached: f64,
    /// Balancedness per layer of what is in force now, on the same loads; `None` where a layer is idle. `[L]`
    pub per_layer: Vec<Option<f64>>,
    /// Experts that crossed links, over all ranks.
    pub moves: usize,
    /// Copies inside ranks.
    pub local_copies: usize,
    /// Bytes over links, over all ranks.
    pub link_bytes: u64,
    /// Waves planned.
    pub waves: usize,
    /// Waves committed.
    pub committed: usize,
    /// Time that the leading rank planned.
    pub plan_time: Duration,
    /// Time from the round's beginning on this rank to its end.
    pub time: Duration,
    /// Longest time that a step of this rank took to launch waves of the round; zero where steps do not ([`Transport::launches_in_steps`]).
    ///
    /// [`Transport::launches_in_steps`]: crate::process::Transport::launches_in_steps
    pub launch: Duration,
}
