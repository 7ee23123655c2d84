//! `eplb replay`.

mod aims;
mod frontier;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use eplb_core::Placement;
use eplb_engine::EngineError;
use eplb_plan::{Planner, Policy};
use eplb_report::ReplayReport;
use eplb_report::replay::{Crossing, Policy as Shown};
use eplb_sim::{PolicyRun, Replay, ReplayError, Run, Schedule};
use eplb_trace::Trace;
use eplb_trace::output::AtomicFile;
use serde_json::{Value, json};

use crate::args::{PlanArgs, Steps, open};
use crate::output::{Failure, bytes, number, print, print_json, progress, table};

use aims::Without;
use frontier::Reached;

/// Steps between plans of policies that make big ones.
const SELDOM: usize = 20;

/// Arguments of `eplb replay`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Trace: .npy or .npz with [steps, layers, experts]
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,

    /// Physical slots per layer, over all ranks
    #[arg(long, value_name = "P")]
    slots: usize,

    /// Ranks (GPUs) of the expert-parallel group
    #[arg(long, visible_alias = "ranks", value_name = "G")]
    gpus: usize,

    /// Policies to compare, separated by commas; NAME@I plans every I steps
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "A[,B..]",
        default_value = "forecast,incremental,static"
    )]
    policy: Vec<String>,

    #[command(flatten)]
    plan: PlanArgs,

    /// Steps that a plan looks back on; the first plan is made from the first so many
    #[arg(long, default_value = "20", value_name = "W")]
    window: NonZeroUsize,

    /// Steps from one plan to the next (default: 1 for `forecast`, whose plans are small, 20 for the others)
    #[arg(long, value_name = "I")]
    interval: Option<NonZeroUsize>,

    /// Bytes of one expert of one layer
    #[arg(long, default_value_t = 44_040_192, value_name = "B")]
    expert_bytes: u64,

    /// Speed of a rank's link each way, in 10^9 bytes per second
    #[arg(long, default_value_t = 50.0, value_name = "X")]
    link_gbps: f64,

    /// Steps A..B-1 of the trace (default: all)
    #[arg(long, value_name = "A:B", value_parser = Steps::parse)]
    steps: Option<Steps>,

    /// Add the bound: how well any placement could do in each step
    #[arg(long)]
    oracle: bool,

    /// Print balance against moves: `forecast` at several prices of a move (or those given), beside `incremental`
    #[arg(long, value_delimiter = ',', num_args = 0.., value_name = "PRICE[,..]")]
    frontier: Option<Vec<f64>>,

    /// Write a report: one HTML file with everything in it
    #[arg(long, value_name = "OUT.html")]
    report: Option<PathBuf>,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl From<ReplayError> for Failure {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::Trace(error) => error.into(),
            ReplayError::Plan(error) => error.into(),
            other => Self::Input(other.to_string()),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if !(args.link_gbps.is_finite() && args.link_gbps > 0.0) {
        return Err(Failure::input(format!("--link-gbps is {}; give a number above 0", args.link_gbps)));
    }
    let trace = open(&args.trace, args.steps)?;
    let (policies, without) = policies(args)?;
    let replay = Replay {
        topology: args.plan.topology(args.gpus, args.slots)?,
        window: args.window,
        expert_bytes: args.expert_bytes,
        link_gbps: args.link_gbps,
    };
    let planner = Planner::new(args.plan.threads())?;
    let scored = replay.scored(&trace)?.len();
    let settings = settings(args, &policies);
    let bar = progress("steps");
    bar.set_length((scored * (policies.len() + settings.len())) as u64);
    let run = replay.run(&trace, &policies, &planner, args.oracle, &mut || bar.inc(1));
    let frontier = match &run {
        Ok(_) => frontier::run(settings, &replay, &trace, &planner, &mut || bar.inc(1))?,
        Err(_) => Vec::new(),
    };
    bar.finish_and_clear();
    let run = run?;
    if let Some(out) = &args.report {
        let html = report(args, &replay, &trace, &run, &frontier)?;
        AtomicFile::write_with(out, |file| file.write_all(html.as_bytes()))?;
    }
    if args.json {
        print_json(&object(args, &run, &without, &frontier))?;
    } else {
        print(&text(args, &run, &without, &frontier))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Steps between plans of a policy.
fn interval(args: &Args, policy: Policy) -> NonZeroUsize {
    let usual = if policy == Policy::Forecast { 1 } else { SELDOM };
    args.interval.or(NonZeroUsize::new(usual)).unwrap_or(NonZeroUsize::MIN)
}

/// What to replay, and what each of it is planned without.
fn policies(args: &Args) -> Result<(Vec<Schedule>, Vec<Without>), Failure> {
    if args.policy.is_empty() {
        return Err(Failure::input("--policy takes names separated by commas"));
    }
    let schedules = args
        .policy
        .iter()
        .map(|entry| {
            let (name, every) = entry.split_once('@').map_or((&entry[..], None), |(n, i)| (n, Some(i)));
            let policy = name.trim().parse::<Policy>()?;
            let interval = match every {
                None => interval(args, policy),
                Some(every) => every.trim().parse().map_err(|_| {
                    Failure::input(format!("--policy {entry}: {every:?} is not a number of steps above 0"))
                })?,
            };
            Ok(Schedule { options: args.plan.options(policy), interval })
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    aims::apart(schedules)
}

/// What to try for the frontier: asked for, both policies; for the report alone, those that are in it.
fn settings(args: &Args, policies: &[Schedule]) -> Vec<frontier::Setting> {
    let shows = |policy| {
        let compared = policies.iter().any(|p| p.options.policy == policy);
        args.frontier.is_some() || (args.report.is_some() && compared)
    };
    let mut settings = Vec::new();
    if shows(Policy::Forecast) {
        let prices = args.frontier.as_deref().filter(|prices| !prices.is_empty());
        let interval = interval(args, Policy::Forecast);
        settings.extend(frontier::prices(&args.plan, prices.unwrap_or(&frontier::PRICES), interval));
    }
    if shows(Policy::Incremental) {
        settings.extend(frontier::targets(&args.plan));
    }
    settings
}

fn moved_bytes(args: &Args, run: &PolicyRun) -> u64 {
    (run.moves() as u64).saturating_mul(args.expert_bytes)
}

fn object(args: &Args, run: &Run, without: &[Without], frontier: &[Reached]) -> Value {
    let policies: Vec<Value> = run
        .policies
        .iter()
        .zip(without)
        .map(|(p, without)| {
            json!({
                "policy": p.name,
                "interval": p.interval.get(),
                "planned_without": without.names(),
                "steps": p.balancedness.len(),
                "rebalances": p.rebalances.len(),
                "balancedness_mean": number(p.mean()),
                "balancedness_share_mean": number(p.mean_share()),
                "balancedness_p01": number(p.p01()),
                "waiting": number(p.waiting),
                "moves_total": p.moves(),
                "moves_fraction_mean": number(p.moves_fraction()),
                "bytes_total": moved_bytes(args, p),
                "link_seconds": number(p.link_seconds),
                "plan_ms_median": number(p.plan_ms_median()),
                "crossing_mean": number(p.mean_crossing()),
                "price_paid_mean": number(args.plan.objective.price_of(p.mean_crossing())),
            })
        })
        .collect();
    let oracle = run.oracle.as_ref().map(|bounds| {
        let mean = bounds.iter().sum::<f64>() / bounds.len().max(1) as f64;
        json!({ "balancedness_mean": number(mean) })
    });
    json!({
        "trace": args.trace.display().to_string(),
        "slots": args.slots,
        "gpus": args.gpus,
        "policies": policies,
        "oracle": oracle,
        "frontier": args.frontier.as_ref().map(|_| frontier::object(frontier)),
    })
}

fn text(args: &Args, run: &Run, without: &[Without], frontier: &[Reached]) -> String {
    let head = [
        "policy",
        "balance",
        "by share",
        "worst 1%",
        "waiting",
        "plans",
        "moves",
        "slots/step",
        "bytes",
        "link s",
        "plan ms",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    let nodes = args.plan.nodes > 1;
    if nodes {
        rows[0].extend(["across nodes", "price"].map(String::from));
    }
    for p in &run.policies {
        rows.push(vec![
            p.name.clone(),
            format!("{:.4}", p.mean()),
            format!("{:.4}", p.mean_share()),
            format!("{:.4}", p.p01()),
            format!("{:.1}%", p.waiting * 100.0),
            p.rebalances.len().to_string(),
            p.moves().to_string(),
            format!("{:.3}%", p.moves_fraction() * 100.0),
            bytes(moved_bytes(args, p)),
            format!("{:.3}", p.link_seconds),
            format!("{:.2}", p.plan_ms_median()),
        ]);
        if let Some(row) = rows.last_mut().filter(|_| nodes) {
            let crossing = p.mean_crossing();
            row.push(format!("{:.2}%", crossing * 100.0));
            row.push(format!("{:.4}", args.plan.objective.price_of(crossing)));
        }
    }
    let mut text = table(&rows);
    text.push_str(&aims::text(without));
    if let Some(bounds) = &run.oracle {
        let mean = bounds.iter().sum::<f64>() / bounds.len().max(1) as f64;
        text.push_str(&format!("bound, step by step: {mean:.4}\n"));
    }
    if args.frontier.is_some() {
        text.push_str("\nbalance against moves\n");
        text.push_str(&frontier::text(frontier));
    }
    if let Some(report) = &args.report {
        text.push_str(&format!("report: {}\n", report.display()));
    }
    text
}

fn report(
    args: &Args,
    replay: &Replay,
    trace: &Trace,
    run: &Run,
    frontier: &[Reached],
) -> Result<String, Failure> {
    let core = |error: eplb_core::CoreError| Failure::from(EngineError::from(error));
    let steps = trace.steps();
    let last = steps.saturating_sub(args.window.get())..steps;
    let loads = trace.loads(last)?;
    let start = Placement::round_robin(trace.layers(), trace.experts(), args.slots).map_err(core)?;
    let policies = run
        .policies
        .iter()
        .map(|p| Shown {
            name: &p.name,
            interval: p.interval.get(),
            balancedness: &p.balancedness,
            mean: p.mean(),
            p01: p.p01(),
            waiting: p.waiting,
            moves: p.moves(),
            moves_fraction: p.moves_fraction(),
            bytes: moved_bytes(args, p),
            link_seconds: p.link_seconds,
            plan_ms: p.plan_ms_median(),
            plan_ms_range: p.plan_ms_range(),
            rebalances: p.rebalances.iter().map(|r| r.step).collect(),
            crossing: (args.plan.nodes > 1)
                .then(|| Crossing { part: p.mean_crossing(), price: args.plan.objective.price_of(1.0) }),
            last: &p.last_placement,
        })
        .collect();
    let name = args.trace.file_name().unwrap_or(args.trace.as_os_str()).to_string_lossy().into_owned();
    ReplayReport {
        trace: &name,
        shape: (steps, trace.layers(), trace.experts()),
        topology: &replay.topology,
        window: args.window.get(),
        expert_bytes: args.expert_bytes,
        link_gbps: args.link_gbps,
        first_step: replay.scored(trace)?.start,
        policies,
        oracle: run.oracle.as_deref(),
        frontier: frontier::points(frontier),
        start: &start,
        last_loads: loads.sum().view(),
    }
    .html()
    .map_err(core)
}
