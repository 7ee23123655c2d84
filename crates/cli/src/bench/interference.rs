//! `eplb bench interference`.

use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use eplb_cuda::forward::Load;
use serde_json::json;

use super::exchange::{self, Exchange};
use crate::output::{Failure, number, optional, print_json};

/// Arguments of `eplb bench interference`: those of `eplb bench exchange`, and what runs beside. The result is JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct Interference {
    #[command(flatten)]
    exchange: Exchange,

    /// What every rank multiplies on its compute stream
    #[arg(long, value_enum, default_value_t = LoadArg::Grouped)]
    load: LoadArg,

    /// Seconds of each part: exchanges alone, products alone, both, products alone again
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LoadArg {
    /// 32 experts, 64 tokens each, 7168 x 2048, bfloat16
    Grouped,
    /// 4096 x 7168 x 4096, bfloat16
    Dense,
    /// Hardly anything
    Tiny,
}

pub(super) fn run(args: &Interference) -> Result<ExitCode, Failure> {
    let bench = args.exchange.bench()?;
    if !args.seconds.is_finite() || args.seconds <= 0.0 {
        return Err(Failure::input(format!("--seconds {} is no length of time", args.seconds)));
    }
    args.exchange.load_library()?;
    let load = match args.load {
        LoadArg::Grouped => Load::Grouped,
        LoadArg::Dense => Load::Dense,
        LoadArg::Tiny => Load::Tiny,
    };
    let report = bench.beside_forward(load, Duration::from_secs_f64(args.seconds))?;
    print_json(&json!({
        "backend": exchange::backend(&args.exchange),
        "placement": bench.moves.to_string(),
        "ranks": bench.ranks,
        "min_ctas": bench.config.min_ctas,
        "max_ctas": bench.config.max_ctas,
        "load": format!("{load:?}").to_lowercase(),
        "alone_us": number(report.alone_us),
        "alone_again_us": number(report.alone_again_us),
        "beside_us": number(report.beside_us),
        "slowdown": number(report.slowdown),
        "slowdown_with_commits": number(report.slowdown_with_commits),
        "stall_us_per_wave": number(report.stall_us_per_wave),
        "replays": report.replays,
        "exchanges": report.exchanges,
        "waves": report.waves,
        "gbps_worst_rank": number(report.gbps),
        "gbps_worst_rank_alone": number(report.gbps_alone),
        "memory_gbps": number(report.memory_gbps),
        "copy_gbps": number(report.copy_gbps),
        "slowdown_allowed": number(report.allowed),
        "slowdown_copies": optional(report.copies.map(|copies| copies.slowdown)),
        "gbps_copies": optional(report.copies.map(|copies| copies.gbps)),
        "memory_gbps_copies": optional(report.copies.map(|copies| copies.memory_gbps)),
        "slowdown_copies_paced": optional(report.paced.map(|copies| copies.slowdown)),
        "gbps_copies_paced": optional(report.paced.map(|copies| copies.gbps)),
        "memory_gbps_copies_paced": optional(report.paced.map(|copies| copies.memory_gbps)),
        "max_gbps": optional(bench.max_gbps),
        "verified": report.verified,
    }))?;
    if !report.verified {
        return Err(Failure::Run("bytes are wrong after the exchanges".into()));
    }
    Ok(ExitCode::SUCCESS)
}
