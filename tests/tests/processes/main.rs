//! Ranks that are real processes, moving experts through Gloo, or through memory that they share, while some of them die, stop, lie, or lose their store.
//!
//! One driver runs the matrix of faults and prints it. Each case starts a process per rank (this program again, as `rank`), lets
//! a fault strike at a known moment, and demands of every survivor: a named error, or success, within the deadline plus 2 s (a case that was late alone is tried again); a placement that
//! equals the bytes in its slots; and that the next rebalance works once all have joined again.
//!
//! Without Gloo its cases cannot run, and the driver says so as a failure, unless `EPLB_TESTS_WITHOUT_GLOO=1` allows it.
//! Two hosts are network namespaces, a small disk is a file system in memory: where the machine allows neither, the driver says so, and
//! such a case has not passed: the whole matrix fails without it.
//! `EPLB_FAULTS=all` runs the whole matrix, `EPLB_FAULTS_SEED` picks placements and ranks.

mod case;
mod driver;
mod gate;
mod junk;
mod place;
mod rank;

use std::process::ExitCode;

use case::{Carrier, Case, Fault, Phase};
use eplb_engine::process::GlooTransport;
use place::Trouble;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "rank") {
        return rank::run(&args[1..]);
    }
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    let gloo = GlooTransport::find_library();
    if let Err(error) = &gloo {
        if std::env::var_os("EPLB_TESTS_WITHOUT_GLOO").is_none() {
            println!("processes: FAILED, {error}; EPLB_TESTS_WITHOUT_GLOO=1 leaves these tests out");
            return ExitCode::FAILURE;
        }
        println!("processes over Gloo: NOT RUN, {error}");
    }
    let seed = std::env::var("EPLB_FAULTS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let whole = std::env::var("EPLB_FAULTS").is_ok_and(|which| which == "all");
    let only = args.iter().find(|arg| !arg.starts_with('-'));
    let cases: Vec<Case> = cases(whole, seed)
        .into_iter()
        .filter(|case| case.carrier == Carrier::Peer || gloo.is_ok())
        .filter(|case| only.is_none_or(|only| case.to_string().contains(only.as_str())))
        .collect();
    println!("{:<34} {:>9} {:>9}  what the survivors said", "fault", "slowest", "allowed");
    let (mut failed, mut impossible) = (0, 0);
    for (number, case) in cases.iter().enumerate() {
        match run(case, seed + number as u64) {
            Ok(_) if case.fault == Fault::WrongByte => {
                failed += 1;
                println!("{case:<34} FAILED: nobody noticed the planted byte");
            }
            Err(Trouble::NotPossible(why)) => {
                impossible += 1;
                println!("{case:<34} NOT POSSIBLE HERE: {why}");
            }
            Err(Trouble::Wrong(why)) if case.fault == Fault::WrongByte && why.contains("wrong 1 bytes") => {
                println!("{case:<34} {:>9} {:>9}  noticed, as it should be: {why}", "", "");
            }
            Ok(row) => println!("{row}"),
            Err(Trouble::Wrong(why) | Trouble::Late(why)) => {
                failed += 1;
                println!("{case:<34} FAILED: {why}");
            }
        }
    }
    println!(
        "{} of {} cases as they should be (seed {seed}); {failed} failed, {impossible} not possible here",
        cases.len() - failed - impossible,
        cases.len()
    );
    // Whoever asks for all of it has not had it.
    if failed == 0 && (impossible == 0 || !whole) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a case; up to twice more where nothing but its time was wrong, as a machine that is busy with other things may have made it so. Ranks that
/// take too long of themselves do so every time.
fn run(case: &Case, seed: u64) -> Result<driver::Row, Trouble> {
    for _ in 0..2 {
        match driver::run(case, seed) {
            Err(Trouble::Late(why)) => println!("{case:<34} late, and tried again: {why}"),
            ended => return ended,
        }
    }
    driver::run(case, seed)
}

/// The matrix: all of it, or a part that has every fault and every phase once; and ranks that are killed and stopped over shared memory.
fn cases(whole: bool, seed: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    let carrier = Carrier::Gloo;
    let phases = [
        Phase::Rendezvous,
        Phase::Connect,
        Phase::Agreement,
        Phase::Drain,
        Phase::Wave,
        Phase::Commit,
        Phase::BetweenWaves,
    ];
    for (at, phase) in phases.into_iter().enumerate() {
        for fault in [Fault::Kill, Fault::Stop] {
            if whole {
                cases.extend((0..driver::RANKS).map(|target| Case { fault, phase, target, carrier }));
            } else if (at % 2 == 0) == (fault == Fault::Kill) {
                let target = (seed as usize + at) % driver::RANKS;
                cases.push(Case { fault, phase, target, carrier });
            }
        }
    }
    for (fault, phase) in [
        (Fault::OtherPlan, Phase::Agreement),
        (Fault::OtherVersion, Phase::Rendezvous),
        (Fault::OtherExperts, Phase::Rendezvous),
    ] {
        cases.push(Case { fault, phase, target: (seed as usize + 1) % driver::RANKS, carrier });
    }
    let (store, junk): (&[Phase], &[Phase]) =
        if whole { (&phases, &phases) } else { (&phases[4..5], &phases[1..2]) };
    cases.extend(store.iter().map(|&phase| Case { fault: Fault::StoreDead, phase, target: 0, carrier }));
    cases.extend(junk.iter().map(|&phase| Case { fault: Fault::Junk, phase, target: 0, carrier }));
    cases.extend(store.iter().map(|&phase| Case {
        fault: Fault::DiskFull,
        phase,
        target: seed as usize % driver::RANKS,
        carrier,
    }));
    for (at, &phase) in store.iter().enumerate() {
        // On either host in turn.
        let target = (seed as usize + 2 * at) % driver::RANKS;
        cases.push(Case { fault: Fault::CutLink, phase, target, carrier });
    }
    cases.push(Case { fault: Fault::Frame, phase: Phase::Connect, target: 0, carrier });
    cases.push(Case {
        fault: Fault::WrongByte,
        phase: Phase::BetweenWaves,
        target: seed as usize % driver::RANKS,
        carrier,
    });
    let carrier = Carrier::Peer;
    for (at, phase) in
        [Phase::Connect, Phase::Wave, Phase::Commit, Phase::BetweenWaves].into_iter().enumerate()
    {
        for fault in [Fault::Kill, Fault::Stop] {
            if whole || phase == Phase::Wave || (at % 2 == 0) == (fault == Fault::Kill) {
                cases.push(Case { fault, phase, target: (seed as usize + at) % driver::RANKS, carrier });
            }
        }
    }
    cases
}
