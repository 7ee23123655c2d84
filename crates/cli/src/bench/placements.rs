//! `eplb bench placements`.

use std::process::ExitCode;

use serde_json::json;

use super::exchange::Exchange;
use crate::output::{Failure, print_json};

/// Arguments of `eplb bench placements`: those of `eplb bench exchange`, whose warm-up and iterations say how many.
#[derive(Debug, clap::Args)]
pub(crate) struct Placements {
    #[command(flatten)]
    exchange: Exchange,
}

pub(super) fn run(args: &Placements) -> Result<ExitCode, Failure> {
    let bench = args.exchange.bench()?;
    let maps: Vec<Vec<Vec<i32>>> = bench
        .placements(bench.warmup + bench.iterations)?
        .iter()
        .map(|placement| placement.phy2log().outer_iter().map(|layer| layer.to_vec()).collect())
        .collect();
    print_json(&json!({ "placement": bench.moves.to_string(), "ranks": bench.ranks, "maps": maps }))?;
    Ok(ExitCode::SUCCESS)
}
