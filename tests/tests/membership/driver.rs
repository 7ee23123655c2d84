//! Runs one case and judges it.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::deadlines::after;
use eplb_comm::store::{ServerOptions, Store, StoreAddress, StoreServer};
use eplb_tests::ranks::{Line, Ranks};

use crate::case::{Case, DEAF, Kind, RANKS};

/// Longest time of a case.
const HANG: Duration = Duration::from_secs(120);

/// Starts the next process of a case.
fn start(ranks: &mut Ranks, case: &Case, store: SocketAddr) -> Result<(), String> {
    let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    let rank = ranks.ids().len();
    command.args(["rank", &rank.to_string(), &format!("tcp://{store}")]).args(case.words());
    ranks.start(command)
}

/// What the processes have said so far.
struct Said {
    begun: Instant,
    /// Ranks from this one on may fail: they are not taken.
    may_fail: usize,
    lines: Vec<Vec<String>>,
}

impl Said {
    /// Hears until all of `who` have said a line that begins with `word`.
    fn until(&mut self, ranks: &Ranks, who: &[usize], word: &str) -> Result<(), String> {
        let has = |lines: &Vec<String>| lines.iter().any(|line| line.starts_with(word));
        while !who.iter().all(|&rank| has(&self.lines[rank])) {
            let Some(line) = ranks.line(self.begun + HANG) else {
                return Err(format!("hang: waiting for {word:?} of {who:?}; heard {:?}", self.lines));
            };
            let Line { rank, text: Some(text), .. } = line else { continue };
            if text.starts_with("wrong") || (text.starts_with("failed") && rank < self.may_fail) {
                return Err(format!("rank {rank}: {text}"));
            }
            self.lines[rank].push(text);
        }
        Ok(())
    }

    /// The first line of a rank that begins with `word`.
    fn line(&self, rank: usize, word: &str) -> Result<&str, String> {
        let found = self.lines[rank].iter().find(|line| line.starts_with(word));
        found
            .map(String::as_str)
            .ok_or_else(|| format!("rank {rank} did not say {word:?}: {:?}", self.lines[rank]))
    }
}

/// The number behind a word of a line.
fn number(line: &str, word: &str) -> Result<u64, String> {
    let mut words = line.split_whitespace().skip_while(|found| *found != word).skip(1);
    let found = words.next().and_then(|number| number.parse().ok());
    found.ok_or_else(|| format!("no {word:?} in {line:?}"))
}

/// Runs a case; what the members did, in words.
pub(crate) fn run(case: &Case) -> Result<String, String> {
    let options = ServerOptions { deadlines: case.deadlines().store, ..ServerOptions::default() };
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = StoreServer::bind(any, options).map_err(|error| error.to_string())?;
    let address = server.local_address();
    let store = StoreAddress::Tcp(address.to_string())
        .open(None, &case.deadlines().store, after(Duration::from_secs(10)))
        .map_err(|error| error.to_string())?;
    let mut ranks = Ranks::default();
    for _ in 0..RANKS {
        start(&mut ranks, case, address)?;
    }
    let joiners: Vec<usize> = (RANKS..RANKS + case.kind.joiners()).collect();
    if case.kind != Kind::Late {
        joiners.iter().try_for_each(|_| start(&mut ranks, case, address))?;
    }
    let may_fail =
        if matches!(case.kind, Kind::Late | Kind::OtherExperts) { RANKS } else { RANKS + joiners.len() };
    let lines = vec![Vec::new(); RANKS + joiners.len()];
    let mut said = Said { begun: Instant::now(), may_fail, lines };
    let members: Vec<usize> = (0..RANKS).collect();
    said.until(&ranks, &members, "ready")?;
    for &rank in &members {
        ranks.tell(rank, "go")?;
    }
    let gone = case.kind == Kind::Leave || case.kind.kills() || case.kind.stops();
    let mut stay: Vec<usize> = members.iter().copied().filter(|&rank| !gone || rank != case.target).collect();
    if case.kind.kills() || case.kind.stops() {
        said.until(&ranks, &[case.target], "struck")?;
    }
    let struck = Instant::now();
    if case.kind == Kind::Join {
        stay.extend(&joiners);
    }
    said.until(&ranks, &stay, "reformed")?;
    let took = struck.elapsed();
    if case.kind == Kind::Late {
        start(&mut ranks, case, address)?;
    }
    said.until(&ranks, &stay, "again")?;
    if case.kind == Kind::Leave {
        said.until(&ranks, &[case.target], "left")?;
    }
    if matches!(case.kind, Kind::Late | Kind::OtherExperts) {
        said.until(&ranks, &joiners, "failed")?;
    }
    if case.kind.stops() {
        resume(case, &ranks, &mut said, &store)?;
    }
    judge(case, &stay, &joiners, &said)?;
    let words = said.line(stay[0], "reformed")?;
    Ok(format!("{:5.2} s, {words}", took.as_secs_f64()))
}

/// The rank that was stopped resumes: it belongs to nothing any more, and leaves the record of its epoch as it is.
fn resume(case: &Case, ranks: &Ranks, said: &mut Said, store: &Arc<dyn Store>) -> Result<(), String> {
    let key = "1/decision";
    let record = || store.get(key, after(Duration::from_secs(5))).map_err(|error| error.to_string());
    let before = record()?;
    ranks.resume(case.target)?;
    said.until(ranks, &[case.target], "excluded")?;
    if before.is_none() || record()? != before {
        return Err(format!(
            "rank {} wrote to the record of the old epoch: {before:?} became {:?}",
            case.target,
            record()?
        ));
    }
    Ok(())
}

/// All in one epoch, with one placement; what had to move moved, what had to be fetched was.
fn judge(case: &Case, stay: &[usize], joiners: &[usize], said: &Said) -> Result<(), String> {
    let first = said.line(stay[0], "reformed")?;
    for &rank in stay {
        let line = said.line(rank, "reformed")?;
        for word in ["epoch", "absent", "fetched"] {
            if number(line, word)? != number(first, word)? {
                return Err(format!("rank {rank}: {line}, but rank {}: {first}", stay[0]));
            }
        }
        let rolls = case.kind.rolls() && rank == DEAF;
        if number(line, "rolled")? != u64::from(rolls) {
            return Err(format!("rank {rank} rolled forward or not: {:?}", said.lines));
        }
        if said.line(rank, "again")? != said.line(stay[0], "again")? {
            return Err(format!("different placements: {:?}", said.lines));
        }
        if said.lines[rank].iter().filter(|line| *line == "true").count() != 2 {
            return Err(format!("rank {rank} did not check its bytes twice: {:?}", said.lines[rank]));
        }
    }
    let demand =
        |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("{what}: {:?}", said.lines)) };
    let ranks = stay.len();
    demand(said.line(stay[0], "again")?.ends_with(&format!("of {ranks} ranks")), "another number of ranks")?;
    let value = |word: &str| number(first, word);
    if case.kind == Kind::Leave {
        let left = said.line(case.target, "left")?;
        demand(left.ends_with(" 0") && !left.starts_with("left 0"), "nothing moved off")?;
        demand(value("fetched")? == 0 && value("drained")? > 0, "the experts did not move off first")?;
    } else if case.kind == Kind::Join {
        demand(value("filled")? > 0 && value("absent")? == 0, "who joined got nothing")?;
    } else if case.kind.kills() || case.kind.stops() {
        demand(value("fetched")? > 0, "nothing was missing")?;
    }
    match case.kind {
        Kind::Late => {
            let line = said.line(joiners[0], "failed")?;
            demand(line.contains("rank 4 has not joined") && line.contains("reforming"), "no JoinTimeout")?;
            demand(value("absent")? == 1, "somebody waited for it")
        }
        Kind::OtherExperts => {
            let line = said.line(joiners[0], "failed")?;
            demand(line.contains("layout of its experts differs"), "it was not refused")
        }
        Kind::Stop => {
            let line = said.line(case.target, "excluded")?;
            said.line(case.target, "noticed")?;
            demand(line.contains("does not belong to epoch") && line.contains("closed"), "it was not told")
        }
        _ => Ok(()),
    }
}
