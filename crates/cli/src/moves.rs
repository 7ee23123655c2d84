//! What moves may cost: budgets, bytes, and when they pay.

use clap::Args;
use eplb_plan::{Budget, Options, Worth};

/// Limits in moves.
#[derive(Debug, Clone, Args)]
pub(crate) struct MoveArgs {
    /// Most moves over all layers together (`incremental`, `forecast`)
    #[arg(long, value_name = "M")]
    max_moves: Option<usize>,

    /// Most moves that any one rank receives, over all layers (`incremental`, `forecast`)
    #[arg(long, value_name = "M")]
    max_moves_per_rank: Option<usize>,
}

impl MoveArgs {
    /// Most that may move.
    pub(crate) fn budget(&self) -> Budget {
        Budget { moves: self.max_moves, moves_per_rank: self.max_moves_per_rank, ..Budget::default() }
    }
}

/// Limits in bytes, and when moves pay.
#[derive(Debug, Clone, Args)]
pub(crate) struct ByteArgs {
    /// Most bytes moved over all layers together (`incremental`, `forecast`)
    #[arg(long, value_name = "BYTES", requires = "expert_bytes")]
    max_bytes: Option<u64>,

    /// Most bytes that any one rank receives, over all layers (`incremental`, `forecast`)
    #[arg(long, value_name = "BYTES", requires = "expert_bytes")]
    max_bytes_per_rank: Option<u64>,

    /// Bytes of one expert of a layer: one number, or one per layer with commas between
    #[arg(long, value_name = "BYTES", value_delimiter = ',')]
    expert_bytes: Vec<u64>,

    /// Leave layers alone whose gain does not pay for its bytes within so many steps (`incremental`)
    #[arg(long, value_name = "N", requires_all = ["layer_us", "link_gbps", "expert_bytes"])]
    worth_steps: Option<f64>,

    /// Microseconds that one perfectly balanced layer takes in a step
    #[arg(long, value_name = "US", requires = "worth_steps")]
    layer_us: Option<f64>,

    /// What a rank's link carries, in 10^9 bytes per second
    #[arg(long, value_name = "GBPS", requires = "worth_steps")]
    link_gbps: Option<f64>,
}

impl ByteArgs {
    /// Adds the limits to the options of a plan that was asked for with `target`.
    pub(crate) fn limit(&self, options: Options, target: Option<f64>) -> Options {
        let limited = self.max_bytes.is_some() || self.max_bytes_per_rank.is_some();
        Options {
            target: if limited { target } else { options.target },
            budget: Budget {
                bytes: self.max_bytes,
                bytes_per_rank: self.max_bytes_per_rank,
                ..options.budget
            },
            expert_bytes: self.expert_bytes.clone(),
            worth: self.worth(),
            ..options
        }
    }

    fn worth(&self) -> Option<Worth> {
        let (steps, layer_us, link_gbps) = (self.worth_steps?, self.layer_us?, self.link_gbps?);
        Some(Worth { steps, layer_seconds: layer_us * 1e-6, link_gbps })
    }
}
