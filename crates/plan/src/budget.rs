//! What moves may cost, and when they pay.

use crate::error::PlanError;

/// Most that `incremental` may move from the placement in force, over all layers together; `None` = no limit.
///
/// A rank's part is what it *receives*: the experts that must land on it. What it sends depends on the source that
/// the exchange chooses. Experts that no live rank holds are put back whatever the budget says, and count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Moves in all.
    pub moves: Option<usize>,
    /// Moves to any one rank.
    pub moves_per_rank: Option<usize>,
    /// Bytes in all. Needs [`Options::expert_bytes`](crate::Options::expert_bytes).
    pub bytes: Option<u64>,
    /// Bytes to any one rank. Needs [`Options::expert_bytes`](crate::Options::expert_bytes).
    pub bytes_per_rank: Option<u64>,
}

impl Budget {
    /// Whether a limit is in bytes.
    pub(crate) fn counts_bytes(&self) -> bool {
        self.bytes.is_some() || self.bytes_per_rank.is_some()
    }

    /// Whether a limit is on single ranks.
    pub(crate) fn counts_ranks(&self) -> bool {
        self.moves_per_rank.is_some() || self.bytes_per_rank.is_some()
    }
}

/// When a layer's gain pays for its bytes.
///
/// A layer at balancedness `b` takes `layer_seconds / b` per step, as its slowest rank does. A better placement saves
/// the difference in each of the `steps` to come; moving `n` experts keeps the links of all live ranks busy
/// for `n * bytes / (ranks * gbps * 1e9)` seconds, counted as if the server stood still: give more gbps than the links
/// have where moves are hidden behind serving. `incremental` takes a layer only as far as each stop pays more than
/// the ones before, and leaves a layer alone where none pays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Worth {
    /// Steps that the plan is expected to serve.
    pub steps: f64,
    /// Seconds that the experts of one layer take in a step if perfectly balanced.
    pub layer_seconds: f64,
    /// What a rank's link carries, in 10^9 bytes per second.
    pub link_gbps: f64,
}

impl Worth {
    /// Seconds that a layer saves by going from one balancedness to another, over all steps.
    pub fn saved_seconds(&self, before: f64, after: f64) -> f64 {
        self.steps * self.layer_seconds * (1.0 / before - 1.0 / after)
    }

    /// Seconds that `moves` experts of `expert_bytes` bytes keep the links of `ranks` ranks busy.
    pub fn link_seconds(&self, moves: usize, expert_bytes: u64, ranks: usize) -> f64 {
        moves as f64 * expert_bytes as f64 / (ranks as f64 * self.link_gbps * 1e9)
    }

    /// # Errors
    /// [`PlanError::Option`] for a number that is not above 0.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        let fields = [
            ("worth.steps", self.steps, "give the number of steps that the plan is expected to serve"),
            ("worth.layer_seconds", self.layer_seconds, "give the seconds that one layer takes in a step"),
            ("worth.link_gbps", self.link_gbps, "give the 10^9 bytes per second that a rank's link carries"),
        ];
        match fields.into_iter().find(|(_, value, _)| !(value.is_finite() && *value > 0.0)) {
            Some((option, value, expected)) => {
                Err(PlanError::Option { option, value: value.to_string(), expected })
            }
            None => Ok(()),
        }
    }
}
