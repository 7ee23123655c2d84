//! What holds for every order of events.

use eplb_exchange::Phase;
use proptest::prelude::*;

use super::{Event, Machine, Order, State};

/// Every change that the diagram draws, by names; `*` = any state.
const LEGAL: &[(&str, &str)] = &[
    ("idle", "collecting"),
    ("idle", "planning"),
    ("collecting", "planning"),
    ("planning", "idle"),
    ("idle", "agreeing"),
    ("collecting", "agreeing"),
    ("planning", "agreeing"),
    ("paused", "agreeing"),
    ("idle", "paused"),
    ("collecting", "paused"),
    ("planning", "paused"),
    ("paused", "idle"),
    ("idle", "quiesced"),
    ("collecting", "quiesced"),
    ("planning", "quiesced"),
    ("paused", "quiesced"),
    ("reforming", "quiesced"),
    ("quiesced", "reforming"),
    ("idle", "reforming"),
    ("collecting", "reforming"),
    ("planning", "reforming"),
    ("paused", "reforming"),
    ("failed", "reforming"),
    ("reforming", "idle"),
    ("reforming", "paused"),
    ("*", "failed"),
    ("*", "stopped"),
];
const EXCHANGING: [&str; 4] = ["agreeing", "draining", "moving", "armed"];
const AFTER_EXCHANGE: [&str; 4] = ["idle", "paused", "quiesced", "reforming"];

fn is_legal(from: &str, to: &str) -> bool {
    from == to
        || LEGAL.iter().any(|&(a, b)| (a == "*" || a == from) && b == to)
        || (EXCHANGING.contains(&from) && (EXCHANGING.contains(&to) || AFTER_EXCHANGE.contains(&to)))
}

fn event() -> impl Strategy<Value = Event> {
    let phase = prop_oneof![
        Just(Phase::Agreeing),
        Just(Phase::Draining),
        Just(Phase::Clearing),
        Just(Phase::Moving),
        Just(Phase::Prepared),
        Just(Phase::Armed),
        Just(Phase::Committing),
        Just(Phase::Settling),
        Just(Phase::Failing),
        Just(Phase::Stopping),
    ];
    prop_oneof![
        1 => Just(Event::Counted),
        1 => Just(Event::PlanBegins),
        1 => Just(Event::PlanEnds),
        3 => Just(Event::Begin),
        3 => (phase, 0usize..3, proptest::option::of(0u64..9))
            .prop_map(|(phase, wave, agreed)| Event::Phase { phase, wave, agreed }),
        2 => Just(Event::Ended),
        1 => Just(Event::Pause),
        1 => Just(Event::Resume),
        1 => Just(Event::Quiesce),
        1 => Just(Event::Reopen),
        1 => Just(Event::Reform),
        1 => Just(Event::Formed),
        1 => Just(Event::Fail("a test".into())),
        1 => Just(Event::Collapse("a test".into())),
        1 => Just(Event::Stop),
    ]
}

/// Runs a machine through events; `Err` names the first thing that must not be.
fn run(mut machine: Machine, events: &[Event]) -> Result<(), String> {
    let mut quiesce_wanted = false;
    for event in events {
        let before = machine.state().clone();
        let result = machine.on(event.clone());
        let after = machine.state().clone();
        if !is_legal(before.name(), after.name()) {
            return Err(format!("{before} became {after} by {event:?}"));
        }
        if result.is_err() && before != after {
            return Err(format!("{event:?} was refused in {before} and changed it to {after}"));
        }
        if before == State::Stopped && after != State::Stopped {
            return Err(format!("{event:?} woke a stopped engine"));
        }
        if *event == Event::Pause && before.is_exchanging() && after != before {
            return Err(format!("a pause broke off {before}"));
        }
        if matches!(result, Ok(Some(Order::Cancel(_)))) && !after.is_exchanging() {
            return Err(format!("{event:?} cancelled nothing in {before}"));
        }
        quiesce_wanted = match event {
            Event::Quiesce if before.is_exchanging() => true,
            Event::Ended if before.is_exchanging() && quiesce_wanted => {
                // Reforming and stopping outrank it.
                if !matches!(after, State::Quiesced | State::Reforming | State::Stopped) {
                    return Err(format!("a quiesce during an exchange was forgotten: {after}"));
                }
                false
            }
            _ => quiesce_wanted && after.is_exchanging(),
        };
    }
    // Shutting down ends, from wherever this led.
    let stop = machine.on(Event::Stop);
    if machine.state().is_exchanging() {
        drop(machine.on(Event::Ended));
    } else if *machine.state() == State::Planning {
        drop(machine.on(Event::PlanEnds));
    } else if *machine.state() == State::Reforming {
        drop(machine.on(Event::Formed));
    }
    match machine.state() {
        State::Stopped => Ok(()),
        other => Err(format!("a stop ({stop:?}) left the engine {other}")),
    }
}

proptest! {
    #[test]
    fn only_what_the_diagram_draws_happens(events in proptest::collection::vec(event(), 0..60)) {
        prop_assert_eq!(run(Machine::new(), &events), Ok(()));
    }
}

#[test]
fn a_machine_that_forgets_wishes_is_caught() {
    let forgetful = Machine::forgetful();
    let error = run(forgetful.clone(), &[Event::Begin, Event::Quiesce, Event::Ended]).unwrap_err();
    assert!(error.contains("quiesce"), "{error}");
    let error = run(forgetful, &[Event::Begin]).unwrap_err();
    assert!(error.contains("a stop"), "{error}");
}

#[test]
fn a_round_goes_through_its_states() {
    let mut machine = Machine::new();
    let mut names = vec![machine.state().name()];
    let at = |phase, agreed| Event::Phase { phase, wave: 2, agreed };
    let events = [
        Event::Counted,
        Event::PlanBegins,
        Event::Begin,
        at(Phase::Draining, None),
        at(Phase::Moving, None),
        at(Phase::Armed, Some(9)),
        at(Phase::Settling, Some(9)),
        Event::Ended,
    ];
    for event in events {
        assert_eq!(machine.on(event), Ok(None));
        names.push(machine.state().name());
    }
    let expected =
        ["idle", "collecting", "planning", "agreeing", "draining", "moving", "armed", "moving", "idle"];
    assert_eq!(names, expected);
}

#[test]
fn what_fails_while_the_host_waits_to_leave_it_is_left() {
    for before in [Event::PlanBegins, Event::Begin, Event::Reform] {
        let mut machine = Machine::new();
        machine.on(before.clone()).unwrap();
        machine.on(Event::Reform).unwrap();
        assert_eq!(
            machine.on(Event::Fail("the epoch is closed".into())),
            Ok(Some(Order::Reform)),
            "{before:?}"
        );
        assert_eq!(machine.state(), &State::Reforming);
        // Nobody is there to form one.
        machine.on(Event::Reform).unwrap();
        assert_eq!(machine.on(Event::Collapse("it panicked".into())), Ok(None));
        assert_eq!(machine.state().name(), "failed");
    }
}

#[test]
fn every_state_has_its_name_in_the_list() {
    let states = [
        State::Idle,
        State::Collecting,
        State::Planning,
        State::Agreeing,
        State::Draining,
        State::Moving { wave: 0 },
        State::Armed { step: 0 },
        State::Paused,
        State::Quiesced,
        State::Reforming,
        State::Failed { cause: String::new() },
        State::Stopped,
    ];
    assert_eq!(states.map(|state| state.name()), State::NAMES);
}
