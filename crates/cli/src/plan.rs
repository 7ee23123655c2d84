//! `eplb plan`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use eplb_core::{ExpertId, LayerId};
use eplb_engine::{EngineError, plan_file};
use eplb_plan::{Options, Plan, Planner, Policy, Request};
use eplb_report::PlacementPicture;
use eplb_trace::output::AtomicFile;
use serde_json::{Value, json};

use crate::args::{PlanArgs, Steps, open, policy};
use crate::curve;
use crate::moves::ByteArgs;
use crate::output::{Failure, number, optional, print, print_json, progress};

/// Arguments of `eplb plan`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Loads: .npy or .npz with [layers, experts] or [steps, layers, experts], or CSV `layer_id,expert_id,count`
    #[arg(long, value_name = "FILE")]
    loads: PathBuf,

    /// Physical slots per layer, over all ranks
    #[arg(long, value_name = "P")]
    slots: usize,

    /// Ranks (GPUs) of the expert-parallel group
    #[arg(long, visible_alias = "ranks", value_name = "G")]
    gpus: usize,

    /// How placements are found: the README says what each policy does
    #[arg(long, value_parser = policy)]
    policy: Option<Policy>,

    #[command(flatten)]
    plan: PlanArgs,

    #[command(flatten)]
    bytes: ByteArgs,

    /// The placement in force: a plan written before; only its `phy2log` is needed
    #[arg(long, value_name = "PLAN.npz")]
    current: Option<PathBuf>,

    /// The last N ranks have just joined: --current has no slots for them
    #[arg(long, default_value_t = 0, value_name = "N", requires = "current")]
    joined: usize,

    /// Print the whole trade of balance against moves from --current, up to --target and the budgets if given
    #[arg(long, requires = "current")]
    curve: bool,

    /// Plan this many times and report the median time
    #[arg(long, default_value_t = 1, value_name = "N")]
    repeat: usize,

    /// Steps A..B-1 of the loads (default: all)
    #[arg(long, value_name = "A:B", value_parser = Steps::parse)]
    steps: Option<Steps>,

    /// Where to write the plan: phy2log, log2phy, logcnt, share
    #[arg(long, value_name = "PLAN.npz")]
    out: Option<PathBuf>,

    /// Draw the load of each rank in each layer, before (with --current) and after
    #[arg(long, value_name = "OUT.svg")]
    svg: Option<PathBuf>,

    /// Write the loads into the cells of --svg
    #[arg(long, requires = "svg")]
    numbers: bool,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if args.repeat == 0 {
        return Err(Failure::input("--repeat 0 plans nothing; give 1 or more"));
    }
    let trace = open(&args.loads, args.steps)?;
    let loads = trace.loads(0..trace.steps())?;
    let topology = args.plan.topology(args.gpus, args.slots)?;
    let mut current =
        args.current.as_deref().map(|path| plan_file::read(path, loads.experts())).transpose()?;
    if let Some(placement) = current.as_mut().filter(|_| args.joined > 0) {
        *placement = placement.with_joined(&topology, args.joined).map_err(EngineError::from)?;
    }
    let fallback = if current.is_some() { Policy::Incremental } else { Policy::Balanced };
    let options = |policy| args.bytes.limit(args.plan.options(policy), args.plan.target);
    let (climb, options) = (options(Policy::Incremental), options(args.policy.unwrap_or(fallback)));
    let planner = Planner::new(args.plan.threads())?;
    let mut request = Request::new(&loads, &topology, &options);
    if let Some(current) = &current {
        request = request.with_current(current);
    }

    let bar = progress("plans");
    bar.set_length(args.repeat as u64);
    let mut times = Vec::with_capacity(args.repeat);
    for _ in 0..args.repeat {
        let start = Instant::now();
        planner.place(&request)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let plan = planner.plan(&request)?;
    if let Some(out) = &args.out {
        plan_file::write(out, &plan.placement, &plan.share)?;
    }
    if let Some(svg) = &args.svg {
        let picture = PlacementPicture {
            loads: loads.sum().view(),
            topology: &topology,
            before: current.as_ref(),
            after: &plan.placement,
            numbers: args.numbers,
        };
        let drawn = picture.svg().map_err(EngineError::from)?;
        AtomicFile::write_with(svg, |out| out.write_all(drawn.as_bytes()))?;
    }
    let curve = if args.curve {
        let options = Options { target: args.plan.target, ..climb };
        Some(planner.curve(&Request { options: &options, ..request })?)
    } else {
        None
    };
    let plan_ms = median(&mut times);
    if args.json {
        let mut report = report(args, &plan, loads.experts(), plan_ms, planner.threads());
        if let Some(curve) = &curve {
            report["curve"] = curve::report(curve);
        }
        print_json(&report)?;
    } else {
        let mut text = text(args, &plan, loads.experts(), plan_ms, planner.threads());
        if let Some(curve) = &curve {
            text.push_str(&curve::text(curve));
        }
        print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Middle of the times, or the mean of the two in the middle.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    if times.len().is_multiple_of(2) { (times[middle - 1] + times[middle]) / 2.0 } else { times[middle] }
}

fn moves_fraction(plan: &Plan) -> Option<f64> {
    plan.changes.map(|changes| changes.moves as f64 / plan.total_slots() as f64)
}

fn report(args: &Args, plan: &Plan, experts: usize, plan_ms: f64, threads: usize) -> Value {
    json!({
        "policy": plan.policy.name(),
        "layers": plan.placement.layers(),
        "experts": experts,
        "slots": args.slots,
        "gpus": args.gpus,
        "nodes": args.plan.nodes,
        "balancedness": number(plan.after.mean),
        "balancedness_min": number(plan.after.min),
        "balancedness_share": number(plan.after_share.mean),
        "balancedness_steps": number(plan.balancedness_steps),
        "balancedness_before": optional(plan.before.as_ref().map(|before| before.mean)),
        "bound": number(plan.bound.mean),
        "gap": number(plan.bound.mean - plan.after.mean),
        "moves": plan.changes.map(|changes| changes.moves),
        "moves_fraction": optional(moves_fraction(plan)),
        "local_copies": plan.changes.map(|changes| changes.local_copies),
        "duplicates": plan.duplicates,
        "shortages": plan.shortages,
        "predicted": args.plan.objective.report(plan),
        "dead": args.plan.ranks.dead,
        "lost": ids(&plan.lost),
        "left_out": ids(&plan.left_out),
        "target_reached": plan.target_reached,
        "plan_ms": number(plan_ms),
        "threads": threads,
    })
}

/// Layer and expert of each.
fn ids(experts: &[(LayerId, ExpertId)]) -> Vec<[u32; 2]> {
    experts.iter().map(|(layer, expert)| [layer.0, expert.0]).collect()
}

/// The first few experts by name.
fn listed(experts: &[(LayerId, ExpertId)]) -> String {
    const SHOWN: usize = 4;
    let mut text = format!("{}:", experts.len());
    for (layer, expert) in experts.iter().take(SHOWN) {
        text.push_str(&format!(" {expert} of {layer},"));
    }
    if experts.len() > SHOWN {
        text.push_str(" .. (all with --json)");
    }
    text.trim_end_matches(',').to_owned()
}

fn text(args: &Args, plan: &Plan, experts: usize, plan_ms: f64, threads: usize) -> String {
    let mut text = format!(
        "{}: {} layers x {experts} experts on {} slots of {} ranks, {} nodes\n",
        plan.policy,
        plan.placement.layers(),
        args.slots,
        args.gpus,
        args.plan.nodes
    );
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<22}{value}\n"));
    if let Some(before) = &plan.before {
        line("balancedness before", format!("{:.4} (least of a layer {:.4})", before.mean, before.min));
    }
    line("balancedness", format!("{:.4} (least of a layer {:.4})", plan.after.mean, plan.after.min));
    line("  with the split", format!("{:.4}", plan.after_share.mean));
    line("  mean over steps", format!("{:.4}", plan.balancedness_steps));
    line("bound", format!("{:.4} (no placement can be better)", plan.bound.mean));
    for (name, value) in args.plan.objective.lines(plan, args.plan.nodes) {
        line(name, value);
    }
    if let (Some(changes), Some(fraction)) = (plan.changes, moves_fraction(plan)) {
        line("moves", format!("{} ({:.2}% of the slots)", changes.moves, fraction * 100.0));
        line("copies inside ranks", changes.local_copies.to_string());
    }
    if plan.target_reached == Some(false) {
        line("target", "not reached within the budget".into());
    }
    if plan.duplicates + plan.shortages > 0 {
        line("duplicates, empty", format!("{}, {}", plan.duplicates, plan.shortages));
    }
    if !plan.lost.is_empty() {
        line("lost with dead ranks", listed(&plan.lost));
    }
    if !plan.left_out.is_empty() {
        line("without a slot", listed(&plan.left_out));
    }
    line("planned in", format!("{plan_ms:.2} ms on {threads} threads"));
    if let Some(out) = &args.out {
        line("written to", out.display().to_string());
    }
    text
}
