//! The agreement on the next epoch, simulated: seeded schedules of looks, stops, deaths and late operations against one
//! map that stands for the store. No IO, no clock.

use std::time::Duration;

use eplb_comm::store::{EpochRecord, Nonce};
use eplb_core::RankId;
use eplb_engine::process::membership::{
    Act, Agreement, MembershipError, Presence, Seat, Seen, Timing, Waiting,
};

const OLD: u64 = 7;

fn timing() -> Timing {
    Timing {
        renew: Duration::from_millis(200),
        peer_timeout: Duration::from_secs(5),
        gather: Duration::from_secs(10),
        join: Duration::from_secs(15),
        whole: Duration::from_secs(120),
    }
}

fn nonce(of: usize) -> Nonce {
    Nonce::from_bytes([of as u8 + 1; 16])
}

fn presence(of: usize) -> Presence {
    Presence { nonce: nonce(of), count: 0, accepted: 0, change: 1, facts: 2, layout: 3 }
}

/// A stream of choices from a seed.
struct Choices(u64);

impl Choices {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

enum Machine {
    Member(Agreement),
    Joiner(Waiting),
}

#[derive(Debug, Clone, PartialEq)]
enum End {
    Formed(EpochRecord),
    Failed(MembershipError),
}

struct Process {
    machine: Machine,
    seat: usize,
    /// Looks before it calls.
    starts: u64,
    /// Acts that the store has not carried out yet.
    late: Vec<Act>,
    /// Stopped until then; for ever where it is dead.
    asleep: u64,
    /// When it last looked, and the longest time between two looks, milliseconds.
    ran: u64,
    slept: u64,
    end: Option<End>,
}

/// What is wrong with the rules on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// The record is written whatever it says: no compare-and-set.
    BlindWrites,
    /// Acceptances are believed before they are given.
    AcceptedUnasked,
}

struct World {
    record: Option<EpochRecord>,
    presences: Vec<Option<Presence>>,
    refusals: Vec<Option<(Nonce, String)>>,
    processes: Vec<Process>,
    formed: Vec<EpochRecord>,
    /// The epoch that each process has accepted, and a process that was listed in an epoch when it had not.
    accepted: Vec<u64>,
    unasked: Option<usize>,
    planted: Planted,
}

impl World {
    /// `members` seats of members and `joiners` behind them, each with its process.
    fn new(members: usize, joiners: usize, suspects: &[RankId], planted: Planted) -> Self {
        let total = members + joiners;
        let seats: Vec<Seat> = (0..total)
            .map(|at| {
                let member = (at < members).then(|| (RankId::at(at), nonce(at)));
                Seat { planned: RankId::at(at), member }
            })
            .collect();
        let process = |seat: usize| {
            let machine = if seat < members {
                let own = presence(seat);
                Machine::Member(Agreement::new(OLD, &seats, seat, suspects, own, timing()))
            } else {
                let (renew, deadline) = (timing().renew, Duration::from_secs(60));
                Machine::Joiner(Waiting::new(RankId::at(seat), presence(seat), renew, deadline))
            };
            Process { machine, seat, starts: 0, late: Vec::new(), asleep: 0, ran: 0, slept: 0, end: None }
        };
        Self {
            record: Some(EpochRecord { epoch: OLD, formed: true, members: Vec::new() }),
            presences: vec![None; total],
            refusals: vec![None; total],
            processes: (0..total).map(process).collect(),
            formed: Vec::new(),
            accepted: vec![0; total],
            unasked: None,
            planted,
        }
    }

    fn carry_out(&mut self, seat: usize, act: Act) {
        match act {
            Act::Say(presence) => {
                self.presences[seat] = Some(presence);
                self.accepted[seat] = presence.accepted;
            }
            Act::Propose { from, to } => {
                if self.record == from || self.planted == Planted::BlindWrites {
                    if to.formed {
                        let listed = |at: &usize| *at != seat && to.lists(RankId::at(*at), nonce(*at));
                        let mut listed = (0..self.accepted.len()).filter(listed);
                        self.unasked = listed.find(|&at| self.accepted[at] != to.epoch);
                        self.formed.push(to.clone());
                    }
                    self.record = Some(to);
                }
            }
            Act::Refuse { planned, nonce, reason } => self.refusals[planned.index()] = Some((nonce, reason)),
            Act::Formed(_) => {}
        }
    }

    /// One process does what is late, looks, and acts; some of it late.
    fn run(&mut self, at: usize, now: u64, choices: &mut Choices, weather: bool) {
        let seat = self.processes[at].seat;
        for act in std::mem::take(&mut self.processes[at].late) {
            self.carry_out(seat, act);
        }
        let mut seen = Seen { record: self.record.clone(), presences: self.presences.clone() };
        if self.planted == Planted::AcceptedUnasked
            && let Some(record) = &seen.record
        {
            seen.presences.iter_mut().flatten().for_each(|shown| shown.accepted = record.epoch);
        }
        let refusal = self.refusals[seat].clone();
        let process = &mut self.processes[at];
        let now = Duration::from_millis(now);
        let acts = match &mut process.machine {
            Machine::Member(agreement) => agreement.look(&seen, now),
            Machine::Joiner(waiting) => {
                let refused = refusal.filter(|(to, _)| *to == waiting.own().nonce).map(|(_, why)| why);
                let shown = seen.presences[seat];
                waiting.look(seen.record.as_ref(), shown.as_ref(), refused.as_deref(), now)
            }
        };
        match acts {
            Err(error) => {
                process.end = Some(End::Failed(error));
                self.presences[seat] = None;
            }
            Ok(acts) => {
                let late = weather && choices.one_in(4);
                for act in acts {
                    if let Act::Formed(record) = act {
                        self.processes[at].end = Some(End::Formed(record));
                        self.presences[seat] = None;
                    } else if late {
                        self.processes[at].late.push(act);
                    } else {
                        self.carry_out(seat, act);
                    }
                }
            }
        }
    }

    /// Runs until every process that is not dead has ended.
    fn run_all(&mut self, choices: &mut Choices, weather: bool) {
        for now in (0..200_000u64).step_by(50) {
            for at in 0..self.processes.len() {
                let process = &mut self.processes[at];
                if process.end.is_some() || now < process.asleep || now < process.starts {
                    continue;
                }
                // Most of all with something under way.
                let often = if process.late.is_empty() { 400 } else { 12 };
                if weather && choices.one_in(often) {
                    let long = if choices.one_in(3) { 12_000 } else { 900 };
                    process.asleep = now + choices.below(long);
                    continue;
                }
                if choices.one_in(3) {
                    let gap = now - process.ran.max(process.starts);
                    (process.ran, process.slept) = (now, process.slept.max(gap));
                    self.run(at, now, choices, weather);
                }
            }
            if self.processes.iter().all(|process| process.end.is_some() || process.asleep == u64::MAX) {
                return;
            }
        }
        panic!("somebody hangs");
    }
}

/// What must hold at the end of any run.
fn check(world: &World) -> Result<(), String> {
    if world.formed.len() > 1 {
        return Err(format!("two epochs formed: {:?}", world.formed));
    }
    if let Some(unasked) = world.unasked {
        return Err(format!("{unasked} has not accepted what formed with it"));
    }
    let formed = world.formed.first();
    for process in &world.processes {
        let own = nonce(process.seat);
        match &process.end {
            Some(End::Formed(record)) => {
                if formed != Some(record) || !record.members.iter().any(|(_, listed)| *listed == own) {
                    return Err(format!("{}: an epoch of its own: {record:?}", process.seat));
                }
            }
            Some(End::Failed(_)) | None => {}
        }
        let listed = formed.is_some_and(|record| record.members.iter().any(|(_, listed)| *listed == own));
        let dead = process.asleep == u64::MAX;
        let in_it = matches!(process.end, Some(End::Formed(_)));
        if listed && !in_it && !dead {
            return Err(format!("{} is listed, but ended with {:?}", process.seat, process.end));
        }
        // Who was never away for long belongs. What it says may come one look late.
        if !listed && !dead && process.slept < 1500 && process.starts < 9000 {
            let (seat, slept, end) = (process.seat, process.slept, &process.end);
            return Err(format!("{seat} was left out, never away for more than {slept} ms: {end:?}"));
        }
        // The record lists no one who died before it said anything.
        if listed && dead && world.presences[process.seat].is_none() {
            return Err(format!("{} is listed, but was never there", process.seat));
        }
    }
    match formed {
        Some(record) if record.epoch > OLD => Ok(()),
        other => Err(format!("no epoch: {other:?}")),
    }
}

/// A run from a seed: some are dead from the beginning, some die on the way, all are late now and then.
fn seeded(seed: u64, planted: Planted) -> Result<World, String> {
    let mut choices = Choices(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (members, joiners) = (1 + choices.below(5) as usize, choices.below(3) as usize);
    let dead: Vec<RankId> =
        (0..members.saturating_sub(1)).filter(|_| choices.one_in(4)).map(RankId::at).collect();
    let suspects: Vec<RankId> = dead.iter().copied().filter(|_| !choices.one_in(3)).collect();
    let mut world = World::new(members, joiners, &suspects, planted);
    for rank in &dead {
        world.processes[rank.index()].asleep = u64::MAX;
    }
    for process in &mut world.processes {
        process.starts = choices.below(3000);
        // One that dies on the way: after its start, before it can have ended.
        if process.asleep == 0 && process.seat + 1 < members && choices.one_in(6) {
            process.starts = u64::MAX;
            process.asleep = u64::MAX;
        }
    }
    // Some of those say something before they die.
    for at in 0..world.processes.len() {
        if world.processes[at].starts == u64::MAX && choices.one_in(2) {
            for now in 0..choices.below(4) {
                world.run(at, now * 50, &mut choices, false);
            }
        }
    }
    world.run_all(&mut choices, true);
    check(&world).map(|()| world).map_err(|why| format!("seed {seed}: {why}"))
}

fn seeds() -> u64 {
    std::env::var("EPLB_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(400)
}

#[test]
fn all_who_are_there_come_to_one_epoch() {
    let (mut left_out, mut all) = (0, 0);
    for seed in 0..seeds() {
        let world = seeded(seed, Planted::Nothing).unwrap_or_else(|why| panic!("{why}"));
        let listed = world.formed[0].members.len();
        if listed == world.processes.len() { all += 1 } else { left_out += 1 }
    }
    assert!(left_out > 50 && all > 50, "{left_out} without somebody, {all} with all");
}

#[test]
fn a_record_that_is_not_compared_is_caught() {
    assert!((0..400).any(|seed| seeded(seed, Planted::BlindWrites).is_err()));
}

#[test]
fn acceptances_that_nobody_gave_are_caught() {
    assert!((0..400).any(|seed| seeded(seed, Planted::AcceptedUnasked).is_err()));
}

#[test]
fn a_leader_that_dies_after_its_proposal_is_followed_by_the_next() {
    let mut world = World::new(3, 0, &[], Planted::Nothing);
    let mut choices = Choices(5);
    // All are there; the lowest proposes, and is gone.
    for now in 0..3 {
        for at in [2, 1, 0] {
            world.run(at, now * 50, &mut choices, false);
        }
        if world.record.as_ref().is_some_and(|record| record.epoch > OLD) {
            break;
        }
    }
    let proposed = world.record.clone().unwrap();
    assert!(!proposed.formed && proposed.members.len() == 3, "{proposed:?}");
    world.processes[0].asleep = u64::MAX;
    world.run_all(&mut choices, false);
    let formed = world.formed[0].clone();
    assert_eq!(formed.members, [(RankId(1), nonce(1)), (RankId(2), nonce(2))]);
    assert!(formed.epoch > proposed.epoch);
    // When it resumes, it finds that it does not belong.
    world.processes[0].asleep = 0;
    world.run(0, 100_000, &mut choices, false);
    let error = MembershipError::Excluded { rank: RankId(0), old: OLD, epoch: formed.epoch };
    assert_eq!(world.processes[0].end, Some(End::Failed(error)));
    assert_eq!(world.formed.len(), 1);
}

#[test]
fn who_wants_another_change_is_named_by_all() {
    let mut world = World::new(2, 0, &[], Planted::Nothing);
    let seats: Vec<Seat> = (0..2)
        .map(|at| Seat { planned: RankId::at(at), member: Some((RankId::at(at), nonce(at))) })
        .collect();
    let own = Presence { change: 9, ..presence(1) };
    world.processes[1].machine = Machine::Member(Agreement::new(OLD, &seats, 1, &[], own, timing()));
    for now in 0..3 {
        for at in 0..2 {
            if world.processes[at].end.is_none() {
                world.run(at, now * 50, &mut Choices(1), false);
            }
        }
        // What is shown stays for a while.
        world.presences[1] = Some(Presence { count: 1, ..own });
    }
    let differs = |at: usize| match &world.processes[at].end {
        Some(End::Failed(MembershipError::Differs { rank, other })) => (*rank, *other),
        other => panic!("{other:?}"),
    };
    assert_eq!([differs(0), differs(1)], [(RankId(0), RankId(1)), (RankId(1), RankId(0))]);
    assert!(world.formed.is_empty());
}

#[test]
fn of_two_processes_that_join_as_one_rank_the_later_may() {
    let shown = presence(3);
    let mut earlier = Waiting::new(RankId(0), presence(2), timing().renew, timing().join);
    assert!(
        earlier.look(None, Some(&shown), None, Duration::ZERO).is_ok(),
        "what stood there before is overwritten"
    );
    let error = earlier.look(None, Some(&shown), None, Duration::from_millis(50)).unwrap_err();
    assert_eq!(error, MembershipError::Superseded { rank: RankId(0) });
}
