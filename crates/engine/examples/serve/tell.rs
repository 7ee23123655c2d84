//! What a run came to, in words.

use std::time::Duration;

use eplb_engine::engine::{Report, RoundOutcome};

use super::options::Options;
use super::rank::Seen;

/// What a rank saw, the rounds that it took part in, and its metrics.
pub(crate) type Served = (Seen, Vec<Report>, String);

/// Prints what ranks of this process saw; how much of it was wrong.
pub(crate) fn tell(options: &Options, balancing: bool, ranks: &[Served]) -> u64 {
    let seen: Vec<&Seen> = ranks.iter().map(|(seen, ..)| seen).collect();
    let (_, reports, metrics) = &ranks[0];
    let mut times: Vec<Duration> = seen.iter().flat_map(|seen| seen.times.iter().copied()).collect();
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "{}: {} steps on {} ranks; ms per step p50 {:.2}, p90 {:.2}, p99 {:.2}, max {:.2}",
        if balancing { "balancing" } else { "not balancing" },
        seen[0].steps,
        seen.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
    let bad: u64 = seen.iter().map(|seen| seen.wrong).sum();
    let tokens = seen[0].steps * (options.tokens * seen.len()) as u64;
    println!("  outputs: {tokens} compared bit for bit, {bad} wrong");
    if let Some(first) = seen.iter().find_map(|seen| seen.first_wrong.as_ref()) {
        println!("  first wrong: {first}");
    }
    if balancing {
        tell_rounds(&seen, reports, metrics);
    }
    tell_calls(&seen);
    bad
}

/// Prints what the rounds did, and what they cost the steps of rank 0.
fn tell_rounds(seen: &[&Seen], reports: &[Report], metrics: &str) {
    let moved: Vec<&Report> = reports.iter().filter(|r| r.outcome == RoundOutcome::Moved).collect();
    let mean = |of: fn(&Report) -> f64| {
        moved.iter().map(|report| of(report)).sum::<f64>() / moved.len().max(1) as f64
    };
    let count = |name: &str| reports.iter().filter(|report| report.outcome.name() == name).count();
    let (aborted, late) = (count("aborted"), count("too_late"));
    println!("  rounds broken off: {aborted}; that came too late for a step: {late}");
    println!(
        "  rounds: {} of {} moved experts: {} moves, {} waves; balancedness {:.3} before, {:.3} planned, {:.3} reached, \
         bound {:.3}; ms planning {:.2}, in all {:.1}",
        moved.len(),
        reports.len(),
        moved.iter().map(|report| report.moves).sum::<usize>(),
        moved.iter().map(|report| report.waves).sum::<usize>(),
        mean(|report| report.before),
        mean(|report| report.predicted),
        mean(|report| report.reached),
        mean(|report| report.bound),
        mean(|report| report.plan_time.as_secs_f64() * 1e3),
        mean(|report| report.time.as_secs_f64() * 1e3)
    );
    let switches: u64 = seen.iter().map(|seen| seen.switches).sum();
    println!("  maps changed before {switches} of the ranks' steps; in the engine these took, on rank 0:");
    for line in metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter(|line| ["stall", "hold", "launch"].iter().any(|word| line.contains(word)))
    {
        println!("    {line}");
    }
}

/// Prints how long steps stood in the engine.
fn tell_calls(seen: &[&Seen]) {
    let calls = |only: fn(&(Duration, bool)) -> bool| {
        let all = seen.iter().flat_map(|seen| seen.calls.iter().filter(|call| only(call)));
        let mut times: Vec<Duration> = all.map(|(time, _)| *time).collect();
        times.sort_unstable();
        times
    };
    for (which, calls) in [("all", calls(|_| true)), ("those that changed maps", calls(|call| call.1))] {
        let at = |part: f64| calls[((calls.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
        if !calls.is_empty() {
            let (p50, p99, most) = (at(0.5), at(0.99), at(1.0));
            let count = calls.len();
            println!(
                "  us of steps in the engine, {which}, {count}: p50 {p50:.2}, p99 {p99:.2}, max {most:.2}"
            );
        }
    }
}
