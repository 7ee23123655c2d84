//! Replays of small traces: what is scored, what is counted, and that nobody looks ahead.

use std::num::NonZeroUsize;

use eplb_core::{LoadMatrix, Placement, Topology};
use eplb_plan::{Options, PlanError, Planner, Policy, Request};
use eplb_sim::{PolicyRun, Replay, ReplayError, Run, Schedule};
use eplb_trace::Trace;
use ndarray::Array3;

/// Loads whose hot expert moves on every ten steps, `[T, L, E]`.
fn moving(steps: usize) -> Array3<f64> {
    Array3::from_shape_fn((steps, 2, 8), |(t, l, e)| {
        let hot = (t / 10 + l) % 8;
        if e == hot { 90.0 } else { 10.0 + ((t + e * 3) % 5) as f64 }
    })
}

fn ten_steps() -> Replay {
    Replay {
        topology: Topology::uniform(4, 12).unwrap(),
        window: NonZeroUsize::new(10).unwrap(),
        expert_bytes: 1_000_000,
        link_gbps: 1.0,
    }
}

fn replay(trace: &Trace, policies: &[Policy], interval: usize) -> Run {
    let replay = ten_steps();
    let interval = NonZeroUsize::new(interval).unwrap();
    let schedule = |&policy: &Policy| Schedule {
        options: Options { policy, target: Some(0.95), ..Options::default() },
        interval,
    };
    let options: Vec<Schedule> = policies.iter().map(schedule).collect();
    let mut calls = 0;
    let run = replay.run(trace, &options, &Planner::new(1).unwrap(), true, &mut || calls += 1).unwrap();
    assert_eq!(calls, (trace.steps() - 10) * policies.len());
    run
}

#[test]
fn steps_after_the_first_window_are_scored_and_moves_after_the_first_plan_counted() {
    let trace = Trace::new("moving", &moving(40), None).unwrap();
    let run = replay(&trace, &[Policy::Balanced, Policy::Static, Policy::Deepseek], 10);
    let [balanced, fixed, deepseek] = &run.policies[..] else { panic!() };
    for policy in [balanced, fixed, deepseek] {
        assert_eq!((policy.first_step, policy.balancedness.len(), policy.rebalances.len()), (10, 30, 3));
        assert_eq!(policy.rebalances[0].moves, 0);
        assert!(policy.p01() <= policy.mean() && (0.0..1.0).contains(&policy.waiting));
    }
    assert_eq!((fixed.moves(), fixed.link_seconds), (0, 0.0));
    assert!(balanced.moves() > 0 && deepseek.moves() > 0);
    // Bytes into the rank that gets most: at least a rank's even part of all moves, at most all of them.
    let seconds = balanced.moves() as f64 * 1e-3;
    assert!(balanced.link_seconds >= seconds / 4.0 - 1e-12 && balanced.link_seconds <= seconds + 1e-12);
    let bound = run.oracle.unwrap();
    for policy in [balanced, fixed, deepseek] {
        assert!(policy.balancedness.iter().zip(&bound).all(|(value, bound)| *value <= bound + 1e-9));
    }
}

/// Two traces that are equal up to step `past`, and how a planner fares on each.
fn with_another_future(past: usize, mut run: impl FnMut(&Trace) -> PolicyRun) -> [PolicyRun; 2] {
    let (mut one, mut two) = (moving(40), moving(40));
    for step in past..40 {
        for expert in 0..8 {
            one[(step, 0, expert)] = (expert * 7 % 5) as f64;
            two[(step, 0, expert)] = (expert * 3 % 7) as f64;
        }
    }
    [one, two].map(|counts| run(&Trace::new("t", &counts, None).unwrap()))
}

/// Whether all that was planned and scored before step `past` is the same to the last bit.
fn same_past(past: usize, [one, two]: &[PolicyRun; 2]) -> bool {
    let plans = |run: &PolicyRun| -> Vec<(usize, usize)> {
        run.rebalances.iter().filter(|r| r.step <= past).map(|r| (r.step, r.moves)).collect()
    };
    one.balancedness[..past - 10] == two.balancedness[..past - 10]
        && one.first_placement == two.first_placement
        && plans(one) == plans(two)
}

#[test]
fn the_future_changes_nothing_in_the_past() {
    let past = 25;
    for (policy, interval) in
        [(Policy::Balanced, 5), (Policy::Incremental, 5), (Policy::Forecast, 5), (Policy::Forecast, 1)]
    {
        let runs = with_another_future(past, |trace| replay(trace, &[policy], interval).policies.remove(0));
        assert!(same_past(past, &runs), "{policy}");
        assert_ne!(runs[0].balancedness[past - 10..], runs[1].balancedness[past - 10..], "{policy}");
    }
}

#[test]
fn a_trace_that_is_one_step_early_is_noticed() {
    let past = 25;
    let (mut one, mut two) = (moving(40), moving(40));
    for step in past..40 {
        for expert in 0..8 {
            one[(step, 0, expert)] = (expert * 100) as f64;
            two[(step, 1, expert)] = 1000.0 - (expert * 100) as f64;
        }
    }
    // A plan is made before step 25, the first that differs: the one in force where the trace ends with it.
    let last = |loads: &Array3<f64>, steps: std::ops::RangeInclusive<usize>| {
        let part = loads.slice(ndarray::s![*steps.start()..=*steps.end(), .., ..]).to_owned();
        let trace = Trace::new("t", &part, None).unwrap();
        replay(&trace, &[Policy::Balanced], 5).policies[0].last_placement.clone()
    };
    assert_eq!(last(&one, 0..=past), last(&two, 0..=past));
    // The planted fault: who gets every step one too early plans with what is still to come, and is noticed.
    assert_ne!(last(&one, 1..=past + 1), last(&two, 1..=past + 1));
}

#[test]
fn a_planner_that_peeks_is_noticed() {
    // The planted fault: a planner that looks at the trace itself, at the step that its plan will be scored on.
    let past = 25;
    let options = Options { policy: Policy::Forecast, move_price: 0.001, ..Options::default() };
    let planner = Planner::new(1).unwrap();
    let follow = |trace: &Trace, ahead: usize| {
        let mut step = 9;
        let mut plan = |loads: &LoadMatrix, current: Option<&Placement>| -> Result<Placement, PlanError> {
            step += 1;
            let peeked = trace.loads(step..step + ahead + 1).ok().filter(|_| ahead > 0);
            let topology = Topology::uniform(4, 12).unwrap();
            let mut request = Request::new(peeked.as_ref().unwrap_or(loads), &topology, &options);
            request.current = current;
            planner.place(&request)
        };
        ten_steps().follow(trace, "peeks", NonZeroUsize::MIN, &mut plan, &mut || ()).unwrap()
    };
    assert!(same_past(past, &with_another_future(past, |trace| follow(trace, 0))));
    assert!(!same_past(past, &with_another_future(past, |trace| follow(trace, 2))));
}

#[test]
fn small_plans_often_beat_big_ones_seldom() {
    let trace = Trace::new("moving", &moving(60), None).unwrap();
    let often = replay(&trace, &[Policy::Forecast], 1).policies.remove(0);
    let seldom = replay(&trace, &[Policy::Deepseek], 20).policies.remove(0);
    assert_eq!((often.name.as_str(), often.interval.get(), often.rebalances.len()), ("forecast", 1, 50));
    assert!(often.mean() > seldom.mean());
}

#[test]
fn windows_do_not_cross_a_change_of_stream() {
    // Two streams with different hot experts; at step 20 the second begins, and the plan at 22 sees two steps of it alone.
    let mut loads = moving(30);
    for step in 20..30 {
        for expert in 0..8 {
            loads[(step, 0, expert)] = if expert == 5 { 500.0 } else { 1.0 };
        }
    }
    let stream: Vec<i64> = (0..30).map(|t| i64::from(t >= 20)).collect();
    let trace = Trace::new("t", &loads, Some(stream)).unwrap();
    let with = replay(&trace, &[Policy::Balanced], 2);
    let without = replay(&Trace::new("t", &loads, None).unwrap(), &[Policy::Balanced], 2);
    // Without streams the plan at step 20 is made from the last ten steps; with them there is nothing to plan from.
    let steps = |run: &Run| -> Vec<usize> { run.policies[0].rebalances.iter().map(|r| r.step).collect() };
    assert!(steps(&without).contains(&20) && !steps(&with).contains(&20) && steps(&with).contains(&22));
    let at = 24 - 10;
    assert!(with.policies[0].balancedness[at] > without.policies[0].balancedness[at]);
}

#[test]
fn a_trace_that_is_too_short_is_refused() {
    let trace = Trace::new("short", &moving(10), None).unwrap();
    let schedule = Schedule { options: Options::default(), interval: NonZeroUsize::MIN };
    let error = ten_steps().run(&trace, &[schedule], &Planner::new(1).unwrap(), false, &mut || ());
    assert!(matches!(error, Err(ReplayError::TooShort { steps: 10, window: 10, .. })));
}
