//! One rank of a run: rebalances round after round, and tells at fixed rounds how it is.

use std::fmt;
use std::fs::File;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use eplb_comm::store::StoreAddress;
use eplb_comm::store::deadlines::after;
use eplb_comm::{Memory, Place};
use eplb_core::{ExpertId, LayerId, Placement, RankId, SlotId};
use eplb_engine::EngineError;
use eplb_engine::cluster::Settings;
use eplb_engine::driver::Held;
use eplb_engine::process::{GlooTransport, Job, MadeUp, Member, Session};
use eplb_tests::child::{hear, say};

use crate::driver::{RANKS, warm};
use crate::plan::{Rounds, deadlines, layout, loads, topology};
use crate::weather::Weather;

/// A planted leak of memory, bytes per rebalance: the longer the run, the smaller the leak that its trend shows.
pub(crate) fn leak(rounds: u64) -> usize {
    if rounds < 1000 { 8 << 10 } else { 1 << 10 }
}

/// What is planted in a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    /// Memory that is never freed, [`leak`] bytes for each rebalance.
    Memory,
    /// A descriptor that is never closed, for every tenth rebalance.
    Descriptors,
    /// A byte of a slot changes, once.
    Byte,
    /// A key that is never deleted from the store, for each rebalance.
    Keys,
}

const PLANTED: [(Planted, &str); 5] = [
    (Planted::Nothing, "nothing"),
    (Planted::Memory, "leaked-memory"),
    (Planted::Descriptors, "leaked-descriptors"),
    (Planted::Byte, "changed-byte"),
    (Planted::Keys, "left-keys"),
];

impl FromStr for Planted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = PLANTED.iter().find(|(_, name)| *name == text);
        found.map(|(planted, _)| *planted).ok_or_else(|| format!("nothing planted is called {text:?}"))
    }
}

impl fmt::Display for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PLANTED.iter().find(|(planted, _)| planted == self).map_or("?", |(_, name)| name))
    }
}

/// What this process holds of its allocator, Gloo's share with it, bytes.
fn in_use() -> usize {
    // SAFETY: it takes nothing, and locks what it counts.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

/// Resident memory of this process, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

fn start(rank: usize, address: &StoreAddress, seed: u64, rounds: &Rounds) -> Result<Member, EngineError> {
    let (layout, topology) = (layout(), topology());
    let mut settings = Settings::new(&layout, &topology);
    // One wave for most rebalances.
    settings.limits.drain_floor = 1.0;
    settings.deadlines = deadlines().exchange;
    settings.step_time = Duration::from_micros(500);
    settings.margin = 8;
    settings.hooks = Arc::new(Weather::new(seed));
    let deadlines = deadlines();
    let store = address.open(None, &deadlines.store, after(deadlines.store.connect))?;
    let transport = Arc::new(GlooTransport::new(None, address)?);
    let session = Session::join(store, RankId::at(rank), RANKS, &deadlines)?;
    let job = Job {
        start: rounds.start(),
        topology,
        layout: Arc::new(layout),
        settings,
        versions: String::new(),
        transport,
        source: Arc::new(MadeUp),
    };
    Member::start(session, job)
}

/// The experts of each rank in each layer. Which slot of a rank has which of them is for the exchange to choose.
fn held(placement: &Placement) -> Vec<Vec<Option<ExpertId>>> {
    let topology = topology();
    let of = |layer: usize, rank: RankId| {
        let slots = topology.slots_of(rank).map(SlotId::at);
        let mut experts: Vec<_> = slots.map(|slot| placement.expert_at(LayerId::at(layer), slot)).collect();
        experts.sort_unstable();
        experts
    };
    (0..placement.layers())
        .flat_map(|layer| topology.all_ranks().map(move |rank| (layer, rank)))
        .map(|(l, r)| of(l, r))
        .collect()
}

/// Changes a byte of the first slot that holds an expert.
fn change_a_byte(member: &Member) {
    let layer = LayerId(0);
    let held = member.memory().slots().map(SlotId::at);
    let held = held.into_iter().find(|&slot| member.placement().expert_at(layer, slot).is_some());
    let mut slot = member.memory().write(Place::slot(layer, held.unwrap())).unwrap();
    let content = slot.content().0;
    slot.rows_mut(0).next().unwrap()[0] ^= 1;
    slot.set_content(content);
}

/// `rank R at STORE, seed S, N rounds, a report every K, with PLANTED`: its arguments, in this order.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let number = |at: usize| args[at].parse::<u64>().unwrap();
    let (rank, seed, rounds, every) = (number(0) as usize, number(2), number(3), number(4));
    let planted: Planted = args[5].parse().unwrap();
    let address: StoreAddress = args[1].parse().unwrap();
    let plans = Rounds::new(seed);
    let loads = loads();
    let mut member = start(rank, &address, seed, &plans).unwrap();
    let (mut aborted, mut moves, mut waves, mut wrong) = (0u64, 0u64, 0u64, 0u64);
    let (mut held_up, mut samples) = (Held::default(), 0);
    for round in 0..rounds {
        std::thread::sleep(plans.lateness(round, rank));
        let (done, new) = loop {
            // After an abort from what is in force then, which may be neither the old placement nor the new.
            let new = plans.next(round, member.placement());
            match member.rebalance(&new, &loads) {
                Ok(done) => break (done, new),
                Err(error) => {
                    // Every rank comes here, and by a name.
                    say(&format!("aborted {round} {error}"));
                    wrong += member.check().unwrap();
                    aborted += 1;
                    held_up += member.held();
                    member = member.rejoin(None).unwrap();
                }
            }
        };
        match planted {
            Planted::Nothing => {}
            Planted::Memory => {
                std::hint::black_box(Box::leak(vec![round as u8 | 1; leak(rounds)].into_boxed_slice()));
            }
            Planted::Descriptors if round.is_multiple_of(10) => {
                std::mem::forget(File::open("/dev/null").unwrap())
            }
            Planted::Byte if round == rounds / 2 => change_a_byte(&member),
            Planted::Keys => {
                let (store, deadline) = (member.session().store(), after(deadlines().store.operation));
                store.set(&format!("left/{round}"), b"", deadline).unwrap();
            }
            Planted::Descriptors | Planted::Byte => {}
        }
        moves += done.totals.moves as u64;
        waves += done.waves as u64;
        wrong += done.bytes_wrong + member.check().unwrap();
        if held(member.placement()) != held(&new) {
            say(&format!("failed round {round} ended in another placement"));
        }
        if round % every == every - 1 {
            let map = member.placement().hash64();
            say(&format!(
                "sample {round} {} {} {} {} {map:016x} {aborted} {moves} {waves} {wrong}",
                in_use(),
                resident(),
                entries("/proc/self/fd"),
                entries("/proc/self/task"),
            ));
            samples += 1;
            if samples == warm(rounds, every) {
                // Nobody goes on before the driver has looked at the store.
                hear();
            }
        }
    }
    held_up += member.held();
    let Held { steps, time, commits, commit_time } = held_up;
    say(&format!("done {steps} {} {commits} {}", time.as_micros(), commit_time.as_micros()));
    // Leaving is a failure to the others: all stay until the driver has heard all.
    hear();
    ExitCode::SUCCESS
}
