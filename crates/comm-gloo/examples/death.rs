//! Time from the death of a process to the error on every survivor.
//!
//! `cargo run --release -p eplb-comm-gloo --example death [ranks [rounds]]`: ranks (default 4) as processes with a TCP store in this one; amid a wave, and
//! between waves, one of them is killed (SIGKILL). Each survivor writes when it had the error; the table is the time from the kill to the
//! first and to the last survivor, in milliseconds, over the rounds (default 10).

use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use eplb_comm::host::{HostFence, HostMemory};
use eplb_comm::store::{Deadlines, ServerOptions, StoreServer, TcpStore};
use eplb_comm::{Communicator, Fence, Progress};
use eplb_comm_gloo::{GlooCommunicator, Options};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};

type Failure = Box<dyn std::error::Error>;

const ROLE: &str = "EPLB_GLOO_DEATH_RANK";

/// Milliseconds of the clock that all processes of a machine share.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Ok(rank) = std::env::var(ROLE) {
        return child(rank.parse()?, args[0].parse()?, &args[1], args[2] == "wave");
    }
    let number = |at: usize, default| args.get(at).map_or(Ok(default), |arg| arg.parse::<usize>());
    let (ranks, rounds) = (number(0, 4)?, number(1, 10)?);
    println!(
        "{ranks} ranks, {rounds} rounds; ms from SIGKILL to the error on the first and on the last survivor"
    );
    println!("{:<14} {:>7} {:>7} {:>7} {:>7}", "killed", "first", "last", "", "");
    println!("{:<14} {:>7} {:>7} {:>7} {:>7}", "", "median", "median", "most", "named");
    for phase in ["wave", "idle"] {
        let mut times = Vec::new();
        let mut named = 0;
        for round in 0..rounds {
            let victim = round % ranks;
            let (found, right) = death(ranks, victim, phase)?;
            named += right;
            times.push(found);
        }
        let mut sorted = |pick: fn(&(f64, f64)) -> f64| {
            times.sort_unstable_by(|a, b| pick(a).total_cmp(&pick(b)));
            (pick(&times[rounds / 2]), pick(&times[rounds - 1]))
        };
        let (first, (last, most)) = (sorted(|t| t.0).0, sorted(|t| t.1));
        let what = if phase == "wave" { "amid a wave" } else { "between waves" };
        println!(
            "{what:<14} {first:>7.2} {last:>7.2} {most:>7.2} {:>7}",
            format!("{named}/{}", rounds * (ranks - 1))
        );
    }
    Ok(())
}

/// One round: times of the first and last survivor, and how many named the dead rank.
fn death(ranks: usize, victim: usize, phase: &str) -> Result<((f64, f64), usize), Failure> {
    let server = StoreServer::bind((Ipv4Addr::LOCALHOST, 0).into(), ServerOptions::default())?;
    let start = |rank: usize| {
        Command::new(std::env::current_exe()?)
            .args([ranks.to_string(), server.local_address().to_string(), phase.to_owned()])
            .env(ROLE, rank.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    };
    let mut children: Vec<Child> = (0..ranks).map(start).collect::<Result<_, _>>()?;
    let mut outputs = Vec::new();
    for child in &mut children {
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        lines.next().ok_or("a rank did not start")??;
        outputs.push(lines);
    }
    std::thread::sleep(Duration::from_millis(200));
    let begin = now();
    children[victim].kill()?;
    let (mut times, mut named) = (Vec::new(), 0);
    for (rank, lines) in outputs.iter_mut().enumerate().filter(|(rank, _)| *rank != victim) {
        let line = lines.next().ok_or_else(|| format!("rank {rank} said nothing"))??;
        let (time, error) = line.split_once(' ').ok_or("no time")?;
        times.push(time.parse::<f64>()? - begin);
        named += usize::from(error.contains(&format!("transfer from rank {victim} failed")));
    }
    for mut child in children {
        drop(child.stdin.take());
        child.wait()?;
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(((times[0], times[times.len() - 1]), named))
}

fn child(rank: usize, ranks: usize, store: &str, in_wave: bool) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let tensors = vec![TensorLayout::contiguous("w", 8 << 20), TensorLayout::contiguous("scale", 64)];
    let layout = Arc::new(ModelLayout::new(vec![tensors])?);
    let memory = HostMemory::new(RankId::at(rank), layout, 2 * rank..2 * rank + 2, 0)?;
    memory.fill(LayerId(0), SlotId::at(2 * rank), ExpertId::at(2 * rank))?;
    let store = Arc::new(TcpStore::connect(store, None, &Deadlines::DEFAULT, deadline)?);
    let mut group = GlooCommunicator::connect(memory, ranks, store, Options::default(), deadline)?;
    let wave: Arc<[Transfer]> = (0..ranks)
        .map(|source| {
            let dest = (source + 1) % ranks;
            Transfer {
                layer: LayerId(0),
                expert: ExpertId::at(2 * source),
                source: RankId::at(source),
                source_slot: SlotId::at(2 * source),
                dest: RankId::at(dest),
                dest_slot: SlotId::at(2 * dest + 1),
                landing: Landing::InPlace,
            }
        })
        .collect();
    println!("ready");
    let error = loop {
        // Behind a fence that never passes nothing is under way.
        let after = if in_wave { Fence::passed() } else { HostFence::new().fence() };
        let ticket = group.submit(&wave, after, deadline)?;
        let end = loop {
            match group.poll(ticket) {
                Ok(Progress::Pending) => std::thread::sleep(Duration::from_micros(200)),
                end => break end,
            }
        };
        if let Err(error) = end {
            break error;
        }
    };
    println!("{:.3} {}", now(), error.to_string().replace('\n', " "));
    // Until the parent has heard all: leaving is a failure to the others as well.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
