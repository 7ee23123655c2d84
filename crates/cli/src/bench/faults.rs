//! `eplb bench faults`.

use std::process::ExitCode;
use std::time::Duration;

use eplb_core::RankId;
use eplb_engine::bench::faults::{Fate, watch};
use eplb_engine::deadlines::Deadlines;
use serde_json::{Value, json};

use super::exchange::{self, Exchange};
use super::processes;
use crate::output::{Failure, number, print_json};

/// Arguments of `eplb bench faults`: those of `eplb bench exchange`, and who dies when. Ranks are processes; the result is JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct Faults {
    #[command(flatten)]
    exchange: Exchange,

    /// The rank that is killed
    #[arg(long, default_value_t = 1, value_name = "R")]
    kill: usize,

    /// Stop it (SIGSTOP) instead of killing it; it runs on when all others have had their errors
    #[arg(long)]
    stop: bool,

    /// Milliseconds from the first exchange after the warm-up to its end
    #[arg(long, default_value_t = 20.0, value_name = "MS")]
    after_ms: f64,
}

/// Least ranks of which one may die, so that the others still have something to exchange.
const LEAST_RANKS: usize = 3;

/// Longest that a rank waits for the others between exchanges.
const COLLECTIVE: Duration = Duration::from_secs(10);

pub(super) fn run(args: &Faults) -> Result<ExitCode, Failure> {
    let bench = args.exchange.bench()?;
    let (ranks, victim) = (bench.ranks, RankId::at(args.kill));
    if ranks < LEAST_RANKS || args.kill >= ranks {
        let text =
            format!("--kill {} of {ranks} ranks: at least {LEAST_RANKS} are needed, 0..{ranks}", args.kill);
        return Err(Failure::input(text));
    }
    if !args.after_ms.is_finite() || args.after_ms < 0.0 {
        return Err(Failure::input(format!("--after-ms {} is no length of time", args.after_ms)));
    }
    let mut deadlines = Deadlines::new();
    deadlines.store.collective = COLLECTIVE;
    let own = args.exchange.own();
    if own.rank.is_some() {
        args.exchange.load_library()?;
        let Some(joined) = own.join_within(ranks, &deadlines)? else {
            return Err(Failure::input("--rank without --store"));
        };
        let survival = bench.survive(&joined.store, joined.session, victim, &deadlines)?;
        let mut after = exchange::object(&bench, &survival.after, &args.exchange);
        after["ranks"] = json!(ranks - 1);
        print_json(&json!({
            "exchanges": survival.exchanges,
            "error": survival.error,
            "bytes_wrong": survival.bytes_wrong,
            "after": after,
        }))?;
        exchange::check(&survival.after)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut started = processes::start(ranks, bench.nodes)?;
    let delay = Duration::from_secs_f64(args.after_ms / 1e3);
    let fate = if args.stop { Fate::Stopped } else { Fate::Killed };
    let heard = watch(&mut started.0, ranks, (victim, fate), delay, bench.patience);
    let (outputs, failed) = started.wait_but(Some(victim))?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    let heard = heard?;
    let mut survivors = Vec::new();
    let mut wrong = 0;
    for &(rank, time) in &heard {
        let told: Value = serde_json::from_str(&outputs[rank.index()])
            .map_err(|error| Failure::Run(format!("{rank} said nothing that can be read: {error}")))?;
        wrong += told["bytes_wrong"].as_u64().unwrap_or(u64::MAX);
        survivors
            .push(json!({ "rank": rank.0, "ms_to_error": number(time.as_secs_f64() * 1e3), "told": told }));
    }
    print_json(&json!({
        "backend": exchange::backend(&args.exchange),
        "ranks": ranks,
        "killed": if args.stop { Value::Null } else { json!(victim.0) },
        "stopped": if args.stop { json!(victim.0) } else { Value::Null },
        "after_ms": number(args.after_ms),
        "ms_to_last_error": heard.iter().map(|(_, time)| time.as_secs_f64() * 1e3).fold(0.0, f64::max),
        "bytes_wrong": wrong,
        "survivors": survivors,
    }))?;
    if wrong > 0 {
        return Err(Failure::Run(format!("{wrong} bytes are wrong on those that are left")));
    }
    Ok(ExitCode::SUCCESS)
}
