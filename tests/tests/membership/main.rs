//! Members change while the ranks are real processes that move experts through Gloo: they leave, join, are renumbered, die in
//! the middle of it, come too late, and come back when nobody counts on them any more.
//!
//! One driver runs the cases and prints them. Each starts a process per rank (this program again, as `rank`). Every survivor must
//! end in the same epoch with the same placement, with every expert somewhere and every byte right, and the next rebalance must work.
//! Two cases plant a fault, which must be noticed.
//!
//! Without Gloo there is nothing to run, and the driver says so as a failure, unless `EPLB_TESTS_WITHOUT_GLOO=1` allows it.
//! `EPLB_FAULTS=all` runs every case with every rank that it may befall.

mod case;
mod driver;
mod rank;
mod strike;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use case::{Case, Kind};
use eplb_tests::without_gloo;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "rank") {
        return rank::run(&args[1..]);
    }
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    if let Some(ended) = without_gloo("membership") {
        return ended;
    }
    let whole = std::env::var("EPLB_FAULTS").is_ok_and(|which| which == "all");
    let only = args.iter().find(|arg| !arg.starts_with('-'));
    let cases: Vec<Case> = cases(whole)
        .into_iter()
        .filter(|case| only.is_none_or(|only| case.to_string().contains(only.as_str())))
        .collect();
    let (next, failed, out) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(()));
    // Most of their time they wait for deadlines.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let outcome = driver::run(case);
                    let _line = out.lock();
                    match (outcome, case.kind.planted()) {
                        (Ok(said), None) => println!("{case:<40} {said}"),
                        (Err(why), Some(words)) if words.iter().any(|word| why.contains(word)) => {
                            println!("{case:<40} noticed, as it should be: {why}");
                        }
                        (Ok(said), Some(_)) => {
                            failed.fetch_add(1, Ordering::SeqCst);
                            println!("{case:<40} FAILED: nobody noticed: {said}");
                        }
                        (Err(why), _) => {
                            failed.fetch_add(1, Ordering::SeqCst);
                            println!("{case:<40} FAILED: {why}");
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!("{} of {} changes of members as they should be", cases.len() - failed, cases.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All cases, or each kind once.
fn cases(whole: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        let targets = if whole { kind.targets() } else { &kind.targets()[..1] };
        cases.extend(targets.iter().map(|&target| Case { kind, target }));
    }
    cases
}
