//! A rank whose peer has left the epoch, or has given up the exchange before this rank heard of it: it waits for nothing, and commits nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::{ModelLayout, Placement, RankId, TensorLayout, Topology};
use eplb_exchange::{
    Action, Cause, Deadlines, Exchange, ExchangePlan, Limits, Note, Outcome, Record, Touched, Verdict,
};
use ndarray::array;

const OTHER: RankId = RankId(1);

/// A rank of two whose plan is a replica that becomes another; none of its deadlines passes.
fn start() -> (Exchange, Instant) {
    let topology = Topology::uniform(2, 4).unwrap();
    let layout = ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 64)]]).unwrap();
    let [old, new] = [array![[0, 1, 2, 0]], array![[0, 1, 2, 1]]].map(|map| Placement::new(3, map).unwrap());
    let limits = Limits::new(&layout, &topology);
    let plan = Arc::new(ExchangePlan::new(&old, &new, &topology, &layout, None, &limits).unwrap());
    let now = Instant::now();
    let hour = Duration::from_secs(3600);
    let deadlines = Deadlines { transfer: hour, answer: hour, peer: hour, commit_hold: hour, settle: hour };
    (Exchange::new(plan, RankId(0), &[RankId(0), OTHER], deadlines, 2, None, now), now)
}

/// Answers what it asks for as a store of its own would, and has what it stops be stopped.
fn obey(exchange: &mut Exchange, now: Instant) -> Vec<Action> {
    let mut all = Vec::new();
    loop {
        let actions = exchange.take_actions();
        if actions.is_empty() {
            return all;
        }
        for action in &actions {
            match action {
                Action::Decide { to, .. } => exchange.decided(*to, now),
                Action::Halt { .. } => exchange.halted(now),
                _ => {}
            }
        }
        all.extend(actions);
    }
}

#[test]
fn who_has_left_before_it_began_is_not_waited_for() {
    let (mut exchange, now) = start();
    obey(&mut exchange, now);
    exchange.check_time(now);
    assert_eq!(exchange.outcome(), None, "it waits for the other's hash");
    exchange.peer_left(OTHER);
    exchange.check_time(now);
    obey(&mut exchange, now);
    exchange.check_time(now);
    let outcome = exchange.outcome().unwrap();
    let Outcome::Aborted { wave: 0, cause: Cause::PeerLeft { rank: OTHER, .. }, silent, .. } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(*silent, [OTHER]);
}

#[test]
fn who_has_left_does_not_say_any_more_that_it_has_stopped() {
    let (mut exchange, now) = start();
    exchange.cancel("a test", now);
    obey(&mut exchange, now);
    exchange.check_time(now);
    assert_eq!(exchange.outcome(), None, "the other's copies may still run");
    exchange.peer_left(OTHER);
    exchange.check_time(now);
    assert!(matches!(exchange.outcome(), Some(Outcome::Aborted { .. })), "{:?}", exchange.outcome());
}

#[test]
fn who_has_said_everything_may_leave() {
    let (mut exchange, now) = start();
    exchange.cancel("a test", now);
    obey(&mut exchange, now);
    exchange.hear(OTHER, &Note::Stopped { wave: 0, touched: Touched::default() }, now);
    exchange.peer_left(OTHER);
    exchange.check_time(now);
    let outcome = exchange.outcome().unwrap();
    let Outcome::Aborted { cause: Cause::Cancelled(_), silent, .. } = outcome else { panic!("{outcome:?}") };
    assert!(silent.is_empty(), "{silent:?}");
}

#[test]
fn a_plan_that_moves_nothing_is_given_up_at_once() {
    let topology = Topology::uniform(2, 4).unwrap();
    let layout = ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 64)]]).unwrap();
    let same = Placement::new(3, array![[0, 1, 2, 0]]).unwrap();
    let limits = Limits::new(&layout, &topology);
    let plan = Arc::new(ExchangePlan::new(&same, &same, &topology, &layout, None, &limits).unwrap());
    let (now, members) = (Instant::now(), [RankId(0), OTHER]);
    let mut exchange = Exchange::new(plan, RankId(0), &members, Deadlines::default(), 2, None, now);
    exchange.cancel("a test", now);
    // Who has this rank's hash and its own is through already, and says nothing more.
    assert!(
        matches!(exchange.outcome(), Some(Outcome::Aborted { wave: 0, silent, .. }) if silent.is_empty())
    );
    let actions = exchange.take_actions();
    assert!(!actions.iter().any(|action| matches!(action, Action::Decide { .. })), "{actions:?}");
}

#[test]
fn later_decisions_do_not_commit_what_this_rank_has_not_prepared() {
    let (mut exchange, now) = start();
    exchange.take_actions();
    // Two ranks have given the wave up, one after the other.
    exchange.learn(Record { decided: 2, verdict: Verdict::Abort, closed: false }, now);
    let actions = obey(&mut exchange, now);
    assert!(!actions.iter().any(|action| matches!(action, Action::Commit { .. })), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::Halt { .. })), "{actions:?}");
    assert_eq!(exchange.plan().phy2log_after(0), array![[0, 1, 2, 0]]);
}
