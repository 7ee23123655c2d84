//! Balance against moves: policies that trade one for the other, tried with several settings.

use std::num::NonZeroUsize;

use eplb_plan::{Options, Planner, Policy};
use eplb_report::replay::FrontierPoint;
use eplb_sim::{Replay, ReplayError, Schedule};
use eplb_trace::Trace;
use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::output::{number, table};

/// Prices that `forecast` is tried with.
pub(super) const PRICES: [f64; 5] = [0.006, 0.003, 0.0015, 0.0008, 0.0004];

/// Wanted balance and interval that `incremental` is tried with: big plans seldom, and small ones often.
const TARGETS: [(f64, usize); 5] = [(0.95, 20), (0.95, 5), (0.95, 2), (0.98, 20), (0.98, 5)];

/// One setting of a policy.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    schedule: Schedule,
    /// `price` or `target`.
    what: &'static str,
    value: f64,
}

/// `forecast` at each of the prices, every step or every `interval` steps.
pub(super) fn prices(plan: &PlanArgs, prices: &[f64], interval: NonZeroUsize) -> Vec<Setting> {
    let (base, _) = plan.options(Policy::Forecast).for_policy();
    let setting = |&value: &f64| Setting {
        schedule: Schedule { options: Options { move_price: value, ..base.clone() }, interval },
        what: "price",
        value,
    };
    prices.iter().map(setting).collect()
}

/// `incremental` with several wanted balances.
pub(super) fn targets(plan: &PlanArgs) -> Vec<Setting> {
    let (base, _) = plan.options(Policy::Incremental).for_policy();
    let setting = |&(value, interval): &(f64, usize)| Setting {
        schedule: Schedule {
            options: Options { target: Some(value), ..base.clone() },
            interval: NonZeroUsize::new(interval).unwrap_or(NonZeroUsize::MIN),
        },
        what: "target",
        value,
    };
    TARGETS.iter().map(setting).collect()
}

/// What a setting gave.
#[derive(Debug, Clone)]
pub(super) struct Reached {
    setting: Setting,
    moves_fraction: f64,
    mean: f64,
}

/// Replays the trace with every setting.
pub(super) fn run(
    settings: Vec<Setting>,
    replay: &Replay,
    trace: &Trace,
    planner: &Planner,
    progress: &mut dyn FnMut(),
) -> Result<Vec<Reached>, ReplayError> {
    let schedules: Vec<Schedule> = settings.iter().map(|setting| setting.schedule.clone()).collect();
    let run = replay.run(trace, &schedules, planner, false, progress)?;
    let reached = settings.into_iter().zip(&run.policies);
    Ok(reached
        .map(|(setting, run)| Reached { setting, moves_fraction: run.moves_fraction(), mean: run.mean() })
        .collect())
}

/// Points of the report's picture.
pub(super) fn points(reached: &[Reached]) -> Vec<FrontierPoint> {
    reached
        .iter()
        .map(|r| FrontierPoint {
            policy: r.setting.schedule.options.policy.name().to_owned(),
            name: match r.setting.schedule.options.policy {
                Policy::Incremental => {
                    format!("to {} every {}", r.setting.value, r.setting.schedule.interval)
                }
                _ => format!("{} {}", r.setting.what, r.setting.value),
            },
            moves_fraction: r.moves_fraction,
            mean: r.mean,
        })
        .collect()
}

/// A table for the terminal.
pub(super) fn text(reached: &[Reached]) -> String {
    let head = ["policy", "setting", "plans every", "slots/step", "balance"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(reached.iter().map(|r| {
        vec![
            r.setting.schedule.options.policy.name().to_owned(),
            format!("{} {}", r.setting.what, r.setting.value),
            r.setting.schedule.interval.to_string(),
            format!("{:.3}%", r.moves_fraction * 100.0),
            format!("{:.4}", r.mean),
        ]
    }));
    table(&rows)
}

/// The same as JSON.
pub(super) fn object(reached: &[Reached]) -> Value {
    let entry = |r: &Reached| {
        json!({
            "policy": r.setting.schedule.options.policy.name(),
            (r.setting.what): number(r.setting.value),
            "interval": r.setting.schedule.interval.get(),
            "moves_fraction_mean": number(r.moves_fraction),
            "balancedness_mean": number(r.mean),
        })
    };
    reached.iter().map(entry).collect()
}
