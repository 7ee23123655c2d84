//! Why a plan cannot be made.

use eplb_core::CoreError;

/// What is wrong with a request, or with the machine that the planner runs on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Loads, placement or topology contradict each other.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// Not every expert can have a copy.
    #[error(
        "{slots} slots for {experts} experts: every expert needs at least one slot; give {experts} or more"
    )]
    TooFewSlots {
        /// Slots per layer over all ranks.
        slots: usize,
        /// Logical experts per layer.
        experts: usize,
    },
    /// More experts or slots than planners number.
    #[error("{found} {what} per layer; at most {most} are supported")]
    TooMany {
        /// Experts or slots.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many are supported.
        most: usize,
    },
    /// Numbers that a policy needs to divide do not.
    #[error("policy {policy}: {what} ({left}) is not a multiple of {by} ({right}); {advice}")]
    NotDivisible {
        /// The policy that needs it.
        policy: &'static str,
        /// What is divided.
        what: &'static str,
        /// How many there are.
        left: usize,
        /// What it is divided by.
        by: &'static str,
        /// How many of those there are.
        right: usize,
        /// What to do instead.
        advice: &'static str,
    },
    /// The policy cannot plan for this topology.
    #[error("policy {policy}: {reason}")]
    Unsupported {
        /// The policy.
        policy: &'static str,
        /// What it cannot do, and what to use instead.
        reason: String,
    },
    /// A policy name that does not exist.
    #[error("unknown policy {name:?}; use one of {known}")]
    UnknownPolicy {
        /// The name given.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// An option with a value that means nothing.
    #[error("option {option} is {value}: {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The planner's threads could not be started.
    #[error("cannot start {threads} planner threads: {reason}; ask for fewer")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the operating system said.
        reason: String,
    },
}
