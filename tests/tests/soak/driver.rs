//! Starts the ranks of a run, listens to them, and judges.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use eplb_comm::store::{ServerOptions, ServerStats, StoreServer};
use eplb_tests::ranks::{Line, Ranks};

use crate::plan::deadlines;
use crate::rank::{Planted, leak};
use crate::trend::slope;

/// Ranks of every run.
pub(crate) const RANKS: usize = 4;
/// Reports of a rank in a run.
const SAMPLES: u64 = 50;
/// The first samples in this share of a run are warm-up: caches and allocators fill.
const WARM: f64 = 0.3;
/// What an epoch leaves in the store when all have gone on to the next: its decision record, closed.
const KEYS_PER_EPOCH: u64 = 1;
/// Keys that come and go, at most, from one moment to another: those of a collective, and of the one before.
const KEYS_IN_USE: u64 = 2 * RANKS as u64;
/// Longest silence of all ranks.
const SILENCE: Duration = Duration::from_secs(120);

/// A run to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) rounds: u64,
    pub(crate) planted: [Planted; RANKS],
}

/// Something that must not be, and what planted fault would look so.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) rank: Option<usize>,
    pub(crate) text: String,
    pub(crate) planted: Planted,
}

impl Finding {
    /// Whether it is what a fault planted in a rank looks like. Nobody knows who left a key in the store.
    pub(crate) fn is_of(&self, rank: usize, planted: Planted) -> bool {
        let named = if planted == Planted::Keys { self.rank.is_none() } else { self.rank == Some(rank) };
        named && planted != Planted::Nothing && self.planted == planted
    }
}

/// What a rank said of itself.
#[derive(Debug, Clone, Copy)]
struct Sample {
    round: u64,
    in_use: u64,
    resident: u64,
    descriptors: u64,
    threads: u64,
    map: u64,
    aborted: u64,
    moves: u64,
    waves: u64,
    wrong: u64,
}

/// Reads a number off a sample.
type Reads = fn(&Sample) -> u64;

/// What a rank may have no more of late in a run than it had early.
const NUMBERS: [(&str, Reads); 2] = [("descriptors", |s| s.descriptors), ("threads", |s| s.threads)];

/// How a run went.
#[derive(Debug)]
pub(crate) struct Outcome {
    run: Run,
    took: Duration,
    /// The first samples that are warm-up.
    warm: usize,
    samples: Vec<Vec<Sample>>,
    /// How memory in use and resident memory grow on each rank, KiB per rebalance.
    growth: Vec<[f64; 2]>,
    /// Steps that waited for a decision, and for how long; steps with a commit, and how long they took: microseconds.
    held: [u64; 4],
    aborts: BTreeMap<String, u64>,
    store: (ServerStats, ServerStats),
    pub(crate) findings: Vec<Finding>,
}

/// Fewest rebalances whose resident memory is judged. It grows by whole pages, and by hundreds of KiB when code runs for the first time: what the
/// allocator holds tells of a leak at once, but not of memory that was mapped past it.
const RESIDENT_FROM: u64 = 1000;

/// Most growth of memory that is taken for none, KiB per rebalance: half of what the planted leak adds.
fn bound(rounds: u64) -> f64 {
    leak(rounds) as f64 / 1024.0 / 2.0
}

/// Makes a run; what it found is in the outcome.
///
/// # Errors
/// A rank ended, or nobody said anything for long.
pub(crate) fn run(run: &Run) -> Result<Outcome, String> {
    let options = ServerOptions { deadlines: deadlines().store, ..ServerOptions::default() };
    let server = StoreServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options);
    let server = server.map_err(|error| error.to_string())?;
    let every = (run.rounds / SAMPLES).max(1);
    let begin = Instant::now();
    let mut ranks = start(run, &server, every)?;
    let mut outcome = Outcome {
        run: *run,
        warm: warm(run.rounds, every),
        took: Duration::ZERO,
        samples: vec![Vec::new(); RANKS],
        growth: Vec::new(),
        held: [0; 4],
        aborts: BTreeMap::new(),
        store: Default::default(),
        findings: Vec::new(),
    };
    let (mut done, mut paused) = (0, 0);
    while done < RANKS {
        let line = ranks.line(Instant::now() + SILENCE);
        let Line { rank, text, .. } =
            line.ok_or_else(|| format!("hang: no rank said anything for {SILENCE:?}"))?;
        let Some(line) = text else { return Err(format!("rank {rank} ended")) };
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "sample" => {
                outcome.samples[rank].push(sample(rest).ok_or_else(|| format!("rank {rank}: {line}"))?);
                paused += usize::from(outcome.samples[rank].len() == warm(run.rounds, every));
                if paused == RANKS {
                    // All wait to be told, and no key is on its way.
                    outcome.store.0 = server.stats();
                    paused = 0;
                    (0..RANKS).try_for_each(|rank| ranks.tell(rank, "go on"))?;
                }
            }
            "aborted" => *outcome.aborts.entry(cause(rest)).or_default() += 1,
            "done" => {
                done += 1;
                let numbers = rest.split(' ').filter_map(|number| number.parse::<u64>().ok());
                outcome.held.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
            }
            _ => outcome.findings.push(Finding { rank: Some(rank), text: line, planted: Planted::Nothing }),
        }
    }
    outcome.took = begin.elapsed();
    outcome.store.1 = server.stats();
    drop(ranks);
    outcome.judge();
    Ok(outcome)
}

fn start(run: &Run, server: &StoreServer, every: u64) -> Result<Ranks, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut ranks = Ranks::default();
    for rank in 0..RANKS {
        let mut command = Command::new(&this);
        command.args(["rank", &rank.to_string(), &format!("tcp://{}", server.local_address())]);
        command.args([run.seed, run.rounds, every].map(|number| number.to_string()));
        command.arg(run.planted[rank].to_string());
        ranks.start(command)?;
    }
    Ok(ranks)
}

fn sample(text: &str) -> Option<Sample> {
    let mut words = text.split(' ');
    let mut number = || words.next()?.parse::<u64>().ok();
    let (round, in_use, resident) = (number()?, number()?, number()?);
    let (descriptors, threads) = (number()?, number()?);
    let map = u64::from_str_radix(words.next()?, 16).ok()?;
    let mut number = || words.next()?.parse::<u64>().ok();
    let (aborted, moves, waves, wrong) = (number()?, number()?, number()?, number()?);
    Some(Sample { round, in_use, resident, descriptors, threads, map, aborted, moves, waves, wrong })
}

/// Why an exchange was aborted, without its numbers.
fn cause(text: &str) -> String {
    let known = ["weather", "too late", "reached", "sign of life"];
    known.iter().find(|word| text.contains(**word)).map_or_else(|| text.to_owned(), |word| (*word).to_owned())
}

/// Samples that are warm-up, when one is taken every so many rounds.
pub(crate) fn warm(rounds: u64, every: u64) -> usize {
    ((rounds / every) as f64 * WARM) as usize
}

impl Outcome {
    fn find(&mut self, rank: Option<usize>, planted: Planted, text: String) {
        self.findings.push(Finding { rank, text, planted });
    }

    fn judge(&mut self) {
        for rank in 0..RANKS {
            let samples = std::mem::take(&mut self.samples[rank]);
            let steady = &samples[self.warm..];
            let trend = |of: fn(&Sample) -> f64| {
                slope(&steady.iter().map(|s| (s.round as f64, of(s))).collect::<Vec<_>>())
            };
            let growth = [trend(|s| s.in_use as f64 / 1024.0), trend(|s| s.resident as f64)];
            self.growth.push(growth);
            let most = bound(self.run.rounds);
            for (growth, what, from) in [(growth[0], "in use", 0), (growth[1], "resident", RESIDENT_FROM)] {
                if growth > most && self.run.rounds >= from {
                    let text = format!("memory {what} grows by {growth:.2} KiB per rebalance");
                    self.find(Some(rank), Planted::Memory, text);
                }
            }
            // What an epoch that has just begun still holds of the one before is in one sample, a leak in all that follow.
            let third = steady.len() / 3;
            let (early, late) = (&steady[..third], &steady[steady.len() - third..]);
            for (what, of) in NUMBERS {
                let (first, last) = (early.iter().map(of).max(), late.iter().map(of).min());
                if last > first {
                    let text = format!("{} {what} became {}", first.unwrap_or(0), last.unwrap_or(0));
                    self.find(Some(rank), Planted::Descriptors, text);
                }
            }
            let last = &steady[steady.len() - 1];
            if last.wrong > 0 {
                self.find(Some(rank), Planted::Byte, format!("{} bytes were wrong", last.wrong));
            }
            self.samples[rank] = samples;
        }
        let (first, last) = self.store;
        let aborted = |at: usize| self.samples[0][at].aborted;
        let samples = self.samples[0].len();
        let epochs = aborted(samples - 1) - aborted(self.warm - 1);
        if last.keys > first.keys + KEYS_PER_EPOCH * epochs + KEYS_IN_USE {
            let text = format!(
                "the store held {} keys after warm-up and holds {}, after {epochs} more epochs",
                first.keys, last.keys
            );
            self.find(None, Planted::Keys, text);
        }
        for at in 0..self.samples[0].len() {
            if self.samples.iter().any(|own| own[at].map != self.samples[0][at].map) {
                let text = format!("round {}: ranks hold different placements", self.samples[0][at].round);
                self.find(None, Planted::Nothing, text);
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last: Vec<&Sample> = self.samples.iter().filter_map(|samples| samples.last()).collect();
        let (rounds, took) = (self.run.rounds, self.took.as_secs_f64());
        writeln!(
            f,
            "{rounds} rebalances over {RANKS} processes in {took:.1} s ({:.2} ms each, seed {}): {} experts moved in {} waves, {} aborted \
             and made again",
            took * 1e3 / rounds as f64,
            self.run.seed,
            last[0].moves,
            last[0].waves,
            last[0].aborted,
        )?;
        for (cause, count) in &self.aborts {
            writeln!(f, "  {count:>6} x {cause}")?;
        }
        let [held, held_time, commits, commit_time] = self.held;
        let each = commit_time as f64 / commits.max(1) as f64;
        writeln!(
            f,
            "  steps with a commit: {commits}, {each:.1} us each; {held} of them waited for the decision, {held_time} us in all"
        )?;
        for (rank, samples) in self.samples.iter().enumerate() {
            let (warm, last) = (&samples[self.warm], last[rank]);
            writeln!(
                f,
                "  rank {rank}: {} -> {} KiB in use ({:+.4} KiB per rebalance, at most {:.2}), {} -> {} KiB resident ({:+.4}), {} -> {} \
                 descriptors, {} -> {} threads, {} bytes wrong",
                warm.in_use / 1024,
                last.in_use / 1024,
                self.growth[rank][0],
                bound(rounds),
                warm.resident,
                last.resident,
                self.growth[rank][1],
                warm.descriptors,
                last.descriptors,
                warm.threads,
                last.threads,
                last.wrong
            )?;
        }
        let (first, last) = self.store;
        writeln!(
            f,
            "  store: {} -> {} keys, {} -> {} bytes, {} clients",
            first.keys, last.keys, first.bytes, last.bytes, last.clients
        )
    }
}
