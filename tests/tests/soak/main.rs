//! Thousands of random rebalances over long-lived processes: right bytes after each, flat memory, no descriptor left behind.
//!
//! Four ranks live through one run. Every rebalance goes to a random placement (a few slots change, now and then
//! all of it), waves are reported late by random times, ranks come late,
//! and some waves fail on a random rank, after which all ranks leave the epoch and form the next. After each rebalance every rank
//! compares all bytes of its slots with what they must be, computed from names. Ranks report memory in use, resident memory, open descriptors
//! and threads at fixed rounds; the driver looks at their trends, and at what the store holds.
//!
//! A second run has faults planted: one rank leaves keys in the store, one leaks memory, one
//! descriptors, one changes a byte. The checks must name all four.
//!
//! `EPLB_FAULTS=all` runs 10,000 rebalances, else 200; `EPLB_FAULTS_SEED` picks them. The Gloo library is needed, as in `processes`.

mod driver;
mod plan;
mod rank;
mod trend;
mod weather;

use std::process::ExitCode;

use driver::{Finding, Run};
use eplb_tests::without_gloo;
use rank::Planted;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "rank") {
        return rank::run(&args[1..]);
    }
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    if let Some(ended) = without_gloo("soak") {
        return ended;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let whole = std::env::var("EPLB_FAULTS").is_ok_and(|which| which == "all");
    let seed = number("EPLB_FAULTS_SEED").unwrap_or(1);
    let rounds = number("EPLB_SOAK_ROUNDS").unwrap_or(if whole { 10_000 } else { 200 });
    // Keys in the store, leaks of the size that the bounds are meant for, and a byte.
    let planted = [Planted::Keys, Planted::Memory, Planted::Descriptors, Planted::Byte];
    let runs = [
        Run { seed, rounds, planted: [Planted::Nothing; driver::RANKS] },
        Run { seed: seed + 1, rounds: rounds.min(5000) * 3 / 5, planted },
    ];
    let mut failed = false;
    for run in runs {
        let found = match driver::run(&run) {
            Ok(outcome) => {
                print!("{outcome}");
                outcome.findings
            }
            Err(why) => vec![Finding { rank: None, text: why, planted: Planted::Nothing }],
        };
        for (rank, &planted) in run.planted.iter().enumerate().filter(|(_, p)| **p != Planted::Nothing) {
            match found.iter().find(|finding| finding.is_of(rank, planted)) {
                Some(finding) => println!("  noticed, as it should be: rank {rank}: {}", finding.text),
                None => {
                    failed = true;
                    println!("  FAILED: nobody noticed what was planted in rank {rank}: {planted}");
                }
            }
        }
        let wanted = |finding: &&Finding| {
            // A wrong byte goes wherever its expert goes.
            let spreads = finding.planted == Planted::Byte && run.planted.contains(&Planted::Byte);
            spreads || (0..driver::RANKS).any(|rank| finding.is_of(rank, run.planted[rank]))
        };
        for finding in found.iter().filter(|finding| !wanted(finding)) {
            failed = true;
            match finding.rank {
                Some(rank) => println!("  FAILED: rank {rank}: {}", finding.text),
                None => println!("  FAILED: {}", finding.text),
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
