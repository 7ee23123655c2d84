//! Runs one case and judges it.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use eplb_tests::ranks::{Line, Ranks};

use crate::case::{Case, Fault, Phase};
use crate::junk;
use crate::place::{Place, Trouble};

/// Ranks of every case.
pub(crate) const RANKS: usize = 4;

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    case: Case,
    slowest: Duration,
    said: Vec<String>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        let said: Vec<&str> = self.said.iter().map(String::as_str).collect();
        write!(
            f,
            "{:<34} {:>9} {:>9}  {}",
            self.case,
            seconds(self.slowest),
            seconds(self.case.allowed()),
            said.join("\n                                                        ")
        )
    }
}

/// How a rank of the case is started.
fn command(rank: usize, place: &Place, case: &Case, seed: u64) -> Result<Command, String> {
    let mut command = place.command(rank)?;
    command.args(["rank", &rank.to_string(), &RANKS.to_string(), &place.store()]);
    command.args([
        case.fault.to_string(),
        case.phase.to_string(),
        case.target.to_string(),
        seed.to_string(),
        case.carrier.to_string(),
    ]);
    Ok(command)
}

/// Runs a case.
pub(crate) fn run(case: &Case, seed: u64) -> Result<Row, Trouble> {
    // Outlives the ranks.
    let mut place = Place::new(case)?;
    let mut ranks = Ranks::default();
    for rank in 0..RANKS {
        ranks.start(command(rank, &place, case, seed)?)?;
    }
    let gated = case.is_gated();
    let dies = matches!(case.fault, Fault::Kill | Fault::Stop);
    let survivors: Vec<usize> = (0..RANKS).filter(|&rank| !dies || rank != case.target).collect();

    let mut struck: Option<Instant> = (!gated).then(Instant::now);
    let mut verdicts: Vec<Option<(Duration, String)>> = vec![None; RANKS];
    let mut truths = [false; RANKS];
    let mut resumed = false;
    let mut junk = None;
    let mut visited = 0;
    let mut opened = 0;
    // What strikes all does so when every rank has come to the store, however late one was started: the clock runs from there.
    let awaits_all = gated && !dies && case.phase == Phase::Rendezvous;
    let mut at_gate: Option<usize> = None;
    let hard = Instant::now() + Duration::from_secs(60);
    let done = |verdicts: &[Option<(Duration, String)>], truths: &[bool], who: &[usize]| {
        who.iter().all(|&rank| verdicts[rank].is_some() && truths[rank])
    };
    loop {
        if done(&verdicts, &truths, &survivors) {
            // The one that was stopped comes back, and must find out that the others have gone on.
            let all: Vec<usize> = (0..RANKS).collect();
            if case.fault != Fault::Stop || done(&verdicts, &truths, &all) {
                break;
            }
            if !resumed {
                resumed = true;
                ranks.resume(case.target)?;
            }
        }
        let Some(line) = ranks.line(hard) else {
            let silent: Vec<usize> =
                survivors.iter().copied().filter(|&rank| verdicts[rank].is_none()).collect();
            return Err(Trouble::Wrong(format!(
                "hang: nothing heard of {silent:?} after a minute (struck: {})",
                struck.is_some()
            )));
        };
        let Line { rank, at, text: Some(text), .. } = line else { continue };
        if text == "gate" {
            at_gate = Some(rank);
        } else if text == "open" {
            opened += 1;
        } else if text == "finished" || text.starts_with("failed ") {
            if text == "finished" && gated && struck.is_none() {
                return Err(format!("rank {rank} finished before the fault struck").into());
            }
            verdicts[rank] = Some((at.saturating_duration_since(struck.unwrap_or(at)), text));
        } else if text == "true" {
            truths[rank] = true;
        } else if text == "joined" {
            // Faults without a gate strike when ranks have come to where it matters.
            if !gated && case.phase == Phase::Agreement {
                struck = Some(at);
            }
        } else if let Some(ports) = text.strip_prefix("visited ") {
            visited += ports.parse::<usize>().unwrap_or(0);
        } else {
            return Err(format!("rank {rank}: {text}").into());
        }
        let Some(waiting) = at_gate.take_if(|_| !awaits_all || opened == RANKS) else { continue };
        struck = Some(at);
        match case.fault {
            Fault::StoreDead | Fault::DiskFull | Fault::CutLink => {
                place.strike()?;
                ranks.tell(waiting, "on")?;
            }
            Fault::Junk => {
                let ids = ranks.ids();
                let port = place.port().ok_or("no port")?;
                junk = Some(std::thread::spawn(move || junk::send_for_a_while(ids, port, seed)));
                ranks.tell(waiting, "on")?;
            }
            _ => {}
        }
    }

    let said: Vec<(usize, Duration, String)> =
        survivors.iter().filter_map(|&r| verdicts[r].clone().map(|(time, text)| (r, time, text))).collect();
    judge(case, &said)?;
    let sent: Option<usize> =
        junk.map(|thread| thread.join().map_err(|_| "the sender of junk panicked")).transpose()?;

    // Whoever is gone, or was started with something wrong, is started anew; all join again.
    let mends =
        matches!(case.fault, Fault::Kill | Fault::OtherPlan | Fault::OtherVersion | Fault::OtherExperts);
    let go = place.mend()?;
    for rank in 0..RANKS {
        if mends && rank == case.target {
            let none = Case { fault: Fault::None, ..*case };
            // This start has nothing to do before the others' second rebalance: the seed of its first is that.
            ranks.replace(rank, command(rank, &place, &none, seed + 1)?)?;
        } else {
            ranks.tell(rank, &go)?;
        }
    }
    again(case, &mut ranks, mends)?;
    if let Some(late) = latest(case, &said) {
        return Err(Trouble::Late(late));
    }
    let slowest = said.iter().map(|(_, time, _)| *time).max().unwrap_or_default();
    let mut words: Vec<String> = said.into_iter().map(|(_, _, text)| text).collect();
    words.dedup();
    if matches!(case.fault, Fault::Junk | Fault::Frame) {
        // Each pair of ranks has a connection, and a port at each of its ends.
        if visited < RANKS * (RANKS - 1) {
            return Err(format!("junk went to {visited} ports of ranks only").into());
        }
        let others =
            sent.map_or(String::new(), |ports| format!(", and to the store and what else was open: {ports}"));
        words.push(format!("(junk went to {visited} ports of ranks before their peers did{others})"));
    }
    Ok(Row { case: *case, slowest, said: words })
}

/// The first rank that needed longer than it may. Who finishes as if nothing had happened takes as long as that takes here.
fn latest(case: &Case, said: &[(usize, Duration, String)]) -> Option<String> {
    let late = |(_, time, text): &&(usize, Duration, String)| *time > case.allowed() && text != "finished";
    let (rank, time, text) = said.iter().find(late)?;
    Some(format!("rank {rank} took {time:?}, allowed are {:?}: {text}", case.allowed()))
}

/// Named errors.
fn judge(case: &Case, said: &[(usize, Duration, String)]) -> Result<(), String> {
    for (rank, _, text) in said {
        if text == "finished" {
            if !case.may_finish() {
                return Err(format!("rank {rank} noticed nothing"));
            }
        } else if !text.starts_with(&format!("failed rank {rank}, ")) {
            return Err(format!("an error without rank and phase: {text}"));
        }
    }
    let missing = case.words().iter().find(|word| !said.iter().any(|(_, _, text)| text.contains(**word)));
    if let Some(word) = missing {
        return Err(format!("nobody said {word:?}: {said:?}"));
    }
    let knows = |(_, _, text): &&(usize, Duration, String)| text.contains("store");
    if case.fault == Fault::StoreDead && !said.iter().all(|said| knows(&said)) {
        return Err(format!("not all said that the store is lost: {said:?}"));
    }
    let names_target =
        |(_, _, text): &(usize, Duration, String)| text.contains(&format!("rank {}", case.target));
    let dies = matches!(case.fault, Fault::Kill | Fault::Stop);
    if dies && !said.iter().any(names_target) {
        return Err(format!("nobody named rank {}: {said:?}", case.target));
    }
    Ok(())
}

/// The next rebalance works, and all hold the same placement after it.
fn again(case: &Case, ranks: &mut Ranks, mends: bool) -> Result<(), String> {
    let hard = Instant::now() + Duration::from_secs(60);
    let mut hashes: Vec<Option<String>> = vec![None; RANKS];
    while hashes.iter().any(Option::is_none) {
        let line = ranks.line(hard).ok_or_else(|| format!("hang when joining again: {hashes:?}"))?;
        let Line { rank, text: Some(text), .. } = line else { continue };
        if let Some(hash) = text.strip_prefix("again ") {
            hashes[rank] = Some(hash.to_owned());
        } else if mends && rank == case.target && text == "finished" {
            // The new start has done its first rebalance, with the others' second.
            hashes[rank] = Some(String::new());
        } else if !matches!(text.as_str(), "true" | "joined" | "open") {
            return Err(format!("after joining again, rank {rank}: {text}"));
        }
    }
    let mut told: Vec<&String> = hashes.iter().flatten().filter(|hash| !hash.is_empty()).collect();
    told.dedup();
    if told.len() == 1 { Ok(()) } else { Err(format!("different placements after joining again: {told:?}")) }
}
