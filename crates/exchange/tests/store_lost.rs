//! Two ranks run a plan by hand, and lose the store after every possible number of events: nobody waits, nobody guesses.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::{ModelLayout, Placement, RankId, TensorLayout, Topology};
use eplb_exchange::{
    Action, Cause, Deadlines, Exchange, ExchangePlan, Limits, Note, Outcome, Phase, Record, Verdict,
};
use ndarray::{Array2, array};

/// Two ranks, their shared record, and notes on their way.
struct Pair {
    ranks: Vec<Exchange>,
    record: Record,
    mail: [VecDeque<Note>; 2],
    lost: bool,
    maps: [Array2<i32>; 2],
    /// Waves that each rank has committed.
    committed: [usize; 2],
    step: u64,
    now: Instant,
    events: usize,
    lose_after: usize,
    /// Steps that were refused.
    refused: [Option<u64>; 2],
}

impl Pair {
    fn new(plan: ExchangePlan, lose_after: usize) -> Self {
        let (plan, now) = (Arc::new(plan), Instant::now());
        let members = [RankId(0), RankId(1)];
        let maps = [plan.phy2log_after(0), plan.phy2log_after(0)];
        let start = |me| Exchange::new(plan.clone(), me, &members, Deadlines::default(), 2, None, now);
        Self {
            ranks: members.map(start).into(),
            record: Record::OPEN,
            mail: Default::default(),
            lost: false,
            maps,
            committed: [0; 2],
            step: 0,
            now,
            events: 0,
            lose_after,
            refused: [None; 2],
        }
    }

    /// Counts an event of the store; false when the store is gone.
    fn reaches_store(&mut self) -> bool {
        self.events += 1;
        self.lost |= self.events > self.lose_after;
        !self.lost
    }

    fn act(&mut self, rank: usize) {
        loop {
            let actions = self.ranks[rank].take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                let plan = self.ranks[rank].plan().clone();
                match action {
                    Action::Publish(note) => {
                        if self.reaches_store() {
                            self.mail[1 - rank].push_back(note);
                        }
                    }
                    Action::Decide { from, to, hold: _ } => {
                        if self.reaches_store() {
                            if self.record == from {
                                self.record = to;
                            }
                            // The answer is lost at times, although the record has moved.
                            if self.reaches_store() {
                                self.ranks[rank].decided(self.record, self.now);
                            }
                        }
                    }
                    Action::Drain { wave, part } => plan.apply_drains(&mut self.maps[rank], wave, part),
                    Action::Submit { wave, part } => {
                        self.ranks[rank].transfers_done(wave, part, self.now);
                    }
                    Action::Commit { wave } => {
                        eplb_exchange::plan::apply_commits(&mut self.maps[rank], &plan.waves()[wave]);
                        self.committed[rank] = wave + 1;
                        self.ranks[rank].commit_done(self.now);
                    }
                    Action::Halt { .. } => self.ranks[rank].halted(self.now),
                    Action::Restore { phy2log } => self.maps[rank] = phy2log,
                }
            }
        }
    }

    fn run(&mut self) {
        for _ in 0..200 {
            self.now += Duration::from_millis(1);
            for rank in 0..2 {
                self.turn(rank);
            }
            self.step += 1;
        }
    }

    /// A rank runs a step, then looks around.
    fn turn(&mut self, rank: usize) {
        self.ranks[rank].begin_step(self.step, self.now);
        self.act(rank);
        if !self.ranks[rank].end_boundary() {
            self.refused[rank].get_or_insert(self.step);
        }
        self.ranks[rank].finish_step(self.step, self.now);
        self.act(rank);
        if !self.lost {
            for note in std::mem::take(&mut self.mail[rank]) {
                self.ranks[rank].hear(RankId::at(1 - rank), &note, self.now);
                self.act(rank);
            }
            self.ranks[rank].learn(self.record, self.now);
        } else {
            self.ranks[rank].store_lost("gone".into(), self.now);
        }
        self.act(rank);
    }
}

fn plan(old: Array2<i32>, new: Array2<i32>, experts: usize) -> ExchangePlan {
    let topology = Topology::uniform(2, old.ncols()).unwrap();
    let layout = ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 64)]; old.nrows()]).unwrap();
    let placement = |map| Placement::new(experts, map).unwrap();
    let limits = Limits { staging_bytes: 64, ..Limits::new(&layout, &topology) };
    ExchangePlan::new(&placement(old), &placement(new), &topology, &layout, None, &limits).unwrap()
}

/// Two swaps of experts that nobody else holds: waves with an agreed step.
fn staged() -> ExchangePlan {
    plan(array![[0, 1, 2, 3], [0, 1, 2, 3]], array![[2, 1, 0, 3], [3, 1, 2, 0]], 4)
}

/// A replica that becomes another: a drain and a fill, no agreed step.
fn in_place() -> ExchangePlan {
    plan(array![[0, 1, 2, 0]], array![[0, 1, 2, 1]], 3)
}

#[test]
fn the_two_plans_are_what_they_are_meant_to_be() {
    assert!(staged().waves().len() >= 2 && staged().waves().iter().all(|wave| wave.needs_agreed_step()));
    assert!(in_place().waves().iter().all(|wave| !wave.needs_agreed_step() && !wave.drains.is_empty()));
}

#[test]
fn nobody_waits_and_nobody_guesses_whenever_the_store_is_lost() {
    for make in [staged, in_place] {
        let waves = make().waves().len();
        let (mut undecided, mut aborted, mut completed) = (0, 0, 0);
        for lose_after in 0..80 {
            let mut pair = Pair::new(make(), lose_after);
            pair.run();
            for rank in 0..2 {
                let other = pair.committed[1 - rank];
                let outcome = pair.ranks[rank].outcome();
                match outcome.unwrap_or_else(|| panic!("{lose_after}: {:?}", pair.ranks[rank].phase())) {
                    Outcome::Completed => {
                        completed += 1;
                        assert_eq!((pair.committed[rank], pair.refused[rank]), (waves, None));
                    }
                    Outcome::Aborted { wave, cause, phy2log, .. } => {
                        aborted += 1;
                        assert!(
                            matches!(cause, Cause::StoreLost { .. } | Cause::PeerFailed { .. }),
                            "{cause}"
                        );
                        assert_eq!((pair.committed[rank], &pair.maps[rank]), (*wave, phy2log));
                        // Who says that a wave was not committed is right about everyone.
                        assert!(other <= *wave, "{lose_after}: rank {rank} aborted wave {wave}");
                        assert_eq!(pair.refused[rank], None);
                    }
                    Outcome::Broken { .. } => panic!("no commit fails here"),
                    Outcome::Undecided { wave, step, phy2log, .. } => {
                        undecided += 1;
                        assert_eq!((pair.committed[rank], &pair.maps[rank]), (*wave, phy2log));
                        assert!(other == *wave || other == wave + 1);
                        // The agreed step is refused, and none before it.
                        assert_eq!(pair.refused[rank], *step);
                        assert_eq!(
                            step.is_some(),
                            pair.ranks[rank].plan().waves()[*wave].needs_agreed_step()
                        );
                    }
                }
            }
        }
        assert!(undecided > 0 && aborted > 0 && completed > 0, "{undecided}, {aborted}, {completed}");
    }
}

#[test]
fn a_rank_that_gives_up_does_not_wait_for_the_store_for_ever() {
    let mut pair = Pair::new(staged(), 0);
    let rank = &mut pair.ranks[0];
    rank.cancel("no more", pair.now);
    assert_eq!(rank.phase(), Phase::Failing);
    let asks =
        |action: &Action| matches!(action, Action::Decide { to: Record { verdict: Verdict::Abort, .. }, .. });
    assert!(rank.take_actions().iter().any(asks));
    // The store neither answers nor says that it is lost.
    for second in 0..=12 {
        rank.observe([RankId(1)], pair.now + Duration::from_secs(second));
        rank.check_time(pair.now + Duration::from_secs(second));
        if rank.phase() == Phase::Stopping {
            rank.halted(pair.now + Duration::from_secs(second));
        }
    }
    assert!(matches!(rank.outcome(), Some(Outcome::Aborted { wave: 0, cause: Cause::Cancelled(_), .. })));
}

#[test]
fn who_aborts_by_record_and_then_loses_the_store_names_the_store() {
    let mut pair = Pair::new(staged(), 80);
    let rank = &mut pair.ranks[0];
    // Why the other rank has aborted the wave it will say behind the record, where nobody reads it any more.
    rank.learn(Record { decided: 1, verdict: Verdict::Abort, closed: false }, pair.now);
    assert_eq!(rank.phase(), Phase::Stopping);
    rank.store_lost("its time has come".into(), pair.now);
    rank.halted(pair.now);
    for second in 0..=12 {
        rank.check_time(pair.now + Duration::from_secs(second));
    }
    let Some(Outcome::Aborted { wave: 0, cause: Cause::StoreLost { detail, .. }, .. }) = rank.outcome()
    else {
        panic!("{:?}", rank.outcome())
    };
    assert_eq!(detail, "its time has come");
}

#[test]
fn a_rank_that_was_stopped_blames_nobody_for_the_time_that_it_lost() {
    let mut pair = Pair::new(staged(), 80);
    let rank = &mut pair.ranks[0];
    rank.observe([RankId(1)], pair.now);
    // A minute of its own sleep is no minute of silence of the other, ..
    let later = pair.now + Duration::from_secs(60);
    rank.observe([], later);
    rank.check_time(later);
    assert_eq!(rank.phase(), Phase::Agreeing);
    // .. but six seconds in which it looks and sees nothing are.
    for tick in 0..60 {
        let now = later + Duration::from_millis(100 * tick);
        rank.observe([], now);
        rank.check_time(now);
    }
    assert_eq!(rank.phase(), Phase::Failing);
    let told = |action: &Action| matches!(action, Action::Publish(Note::Failed { cause }) if cause.contains("rank 1") && cause.contains("sign of life"));
    assert!(rank.take_actions().iter().any(told));
}

#[test]
fn a_closed_epoch_stops_a_rank_that_comes_back() {
    let mut pair = Pair::new(in_place(), 80);
    pair.record.closed = true;
    pair.run();
    for (rank, exchange) in pair.ranks.iter().enumerate() {
        let Some(Outcome::Aborted { wave: 0, cause, phy2log, .. }) = exchange.outcome() else {
            panic!("{:?}", exchange.outcome())
        };
        assert!(matches!(cause, Cause::EpochClosed { .. } | Cause::PeerFailed { .. }), "{cause}");
        assert_eq!((&pair.maps[rank], pair.committed[rank]), (phy2log, 0));
    }
}

/// Others may have committed what a rank has acknowledged; that it has given up since does not let it pass the step.
#[test]
fn a_rank_that_gave_up_after_its_acknowledgement_waits_for_the_decision_at_the_step() {
    let mut pair = Pair::new(staged(), usize::MAX);
    while pair.ranks[1].phase() != Phase::Armed {
        pair.now += Duration::from_millis(1);
        pair.turn(0);
        pair.turn(1);
        pair.step += 1;
    }
    let agreed = pair.step + 10;
    let rank = &mut pair.ranks[1];
    rank.cancel("no more", pair.now);
    rank.take_actions();
    assert_eq!(rank.phase(), Phase::Failing);
    rank.begin_step(agreed, pair.now);
    let holds = |action: &Action| matches!(action, Action::Decide { hold: true, .. });
    assert!(rank.take_actions().iter().any(holds));
    // The store does not answer in time.
    assert!(!rank.end_boundary());
    assert!(matches!(rank.outcome(), Some(Outcome::Undecided { wave: 0, step: Some(_), .. })));
}
