//! `eplb rebalance`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use eplb_core::RankId;
use eplb_engine::cluster::Verify;
use eplb_engine::process::elastic::{Changed, Walked};
use eplb_engine::rebalance::{Position, Rebalance, Report, Window};
use eplb_plan::Policy;
use serde_json::{Value, json};

use crate::args::{PlanArgs, Steps, open, policy};
use crate::members::{self, MemberArgs};
use crate::output::{Failure, bytes, number, print, print_json, progress, table};
use crate::process::{ProcessArgs, Way};

/// Arguments of `eplb rebalance`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Trace: .npy or .npz with [steps, layers, experts], or CSV
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,

    /// Ranks, each with its own weights: threads, or processes with --backend gloo or peer, or auto with --processes
    #[arg(long, visible_alias = "gpus", value_name = "W")]
    ranks: Option<usize>,

    /// Physical slots per layer, over all ranks
    #[arg(long, value_name = "P")]
    slots: usize,

    /// Steps per window; a short last window is used
    #[arg(long, default_value = "20", value_name = "T")]
    window: NonZeroUsize,

    /// How placements are found: the README says what each policy does
    #[arg(long, value_parser = policy)]
    policy: Option<Policy>,

    #[command(flatten)]
    plan: PlanArgs,

    /// Bytes of one expert of one layer
    #[arg(long, default_value_t = 65536, value_name = "B")]
    expert_bytes: usize,

    /// Staging memory per rank (default: the smaller of 256 MiB and a layer's slots, at least one expert)
    #[arg(long, value_name = "S")]
    staging_bytes: Option<usize>,

    /// How the bytes of the slots are checked
    #[arg(long, value_enum, default_value_t = VerifyArg::Full)]
    verify: VerifyArg,

    /// Steps A..B-1 of the trace (default: all)
    #[arg(long, value_name = "A:B", value_parser = Steps::parse)]
    steps: Option<Steps>,

    #[command(flatten)]
    process: ProcessArgs,

    #[command(flatten)]
    members: MemberArgs,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VerifyArg {
    /// Every byte of every slot, after every wave and window
    Full,
    /// A few places of every slot
    Sampled,
    /// Not at all
    Off,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let trace = open(&args.trace, args.steps)?;
    if !args.plan.ranks.dead.is_empty() {
        return Err(Failure::input(
            "--dead: every rank of this run is a thread that lives; use `eplb plan` or `eplb replay` for dead ranks",
        ));
    }
    let (way, ranks) = args.process.way(args.ranks)?;
    let options = args.plan.options(args.policy.unwrap_or(Policy::Incremental));
    let rebalance = Rebalance {
        topology: args.plan.topology(ranks, args.slots)?,
        window: args.window,
        plan: options.clone(),
        threads: args.plan.threads(),
        expert_bytes: args.expert_bytes,
        staging_bytes: args.staging_bytes,
        verify: match args.verify {
            VerifyArg::Full => Verify::Full,
            VerifyArg::Sampled => Verify::Sampled,
            VerifyArg::Off => Verify::Off,
        },
    };
    let started = matches!(way, Way::Launch) || args.members.process.is_some();
    if args.members.any() && !started {
        return Err(Failure::input(
            "--leave, --join and --kill are for ranks that this command starts as processes: give --backend gloo (or peer, or auto with --processes) and --ranks W",
        ));
    }
    let schedule = args.members.schedule(&rebalance.topology, &trace, args.window)?;
    if matches!(way, Way::Launch) {
        // What is wrong with the arguments is told once, and not by every rank.
        rebalance.check(&trace)?;
        return args.process.launch((ranks, args.plan.nodes), schedule.as_ref());
    }
    let bar = progress("windows");
    let mut show = |position: Position| {
        bar.set_length(position.windows as u64);
        bar.set_position(position.done as u64);
    };
    let (backend, rank, walked) = match &way {
        Way::Rank(join) => {
            let process = args.members.process.unwrap_or(join.rank.index());
            let elastic = schedule.as_ref().map(|schedule| (process, schedule));
            let outcome = args.process.run_rank(join, &rebalance, &trace, elastic, &mut show);
            outcome.map(|(backend, walked)| (backend, RankId::at(process), walked))
        }
        _ => {
            let report = rebalance.run(&trace, &mut show).map_err(Failure::from);
            let whole = |report| Walked { report, changes: Vec::new(), rank: Some(RankId(0)), ranks };
            report.map(|report| ("local", RankId(0), whole(report)))
        }
    }
    .inspect_err(|_| bar.finish_and_clear())?;
    bar.finish_and_clear();
    let Walked { report, changes, rank: last, ranks } = walked;
    let lowest = last == Some(RankId(0));
    let run = Run { args, policy: options.policy, ranks, backend, rank, lowest, changes };
    if args.json {
        print_json(&run.object(&report))?;
    } else {
        print(&run.text(&report))?;
    }
    if report.bytes_wrong == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let first = report.first_wrong.as_deref().unwrap_or("a slot's bytes are not those of its expert");
    Err(Failure::Run(format!("{} bytes are wrong; first: {first}", report.bytes_wrong)))
}

/// What is told about a run.
struct Run<'a> {
    args: &'a Args,
    policy: Policy,
    ranks: usize,
    backend: &'static str,
    rank: RankId,
    /// Whether it is the lowest at the end, which tells of the whole run.
    lowest: bool,
    changes: Vec<Changed>,
}

impl Run<'_> {
    fn object(&self, report: &Report) -> Value {
        let Self { args, policy, ranks, backend, rank, lowest, .. } = *self;
        if !lowest {
            // The report of the run is the lowest rank's.
            return json!({ "rank": rank.0, "windows": report.windows.len(), "bytes_wrong": report.bytes_wrong });
        }
        let windows: Vec<Value> = report
            .windows
            .iter()
            .map(|w| {
                json!({
                    "step": w.step,
                    "balancedness_before": number(w.balancedness_before),
                    "balancedness": number(w.balancedness),
                    "bound": number(w.bound),
                    "moves": w.moves,
                    "bytes": w.bytes,
                    "waves": w.waves,
                    "plan_ms": number(w.plan_ms),
                    "move_ms": number(w.move_ms),
                })
            })
            .collect();
        let mut object = json!({
            "policy": policy.name(),
            "backend": backend,
            "ranks": ranks,
            "slots": args.slots,
            "window": args.window,
            "windows": windows,
            "bytes_wrong": report.bytes_wrong,
        });
        if args.members.any() {
            object["changes"] = members::objects(&self.changes).into();
        }
        object
    }

    fn text(&self, report: &Report) -> String {
        let Self { args, policy, ranks, backend, rank, lowest, .. } = *self;
        if !lowest {
            return format!("{rank}: {} windows, {} bytes wrong\n", report.windows.len(), report.bytes_wrong);
        }
        let head = [
            "step",
            "before",
            "after",
            "bound",
            "moves",
            "bytes",
            "waves",
            "worst",
            "plan ms",
            "move ms",
            "steps served",
        ];
        let mut rows = vec![head.map(String::from).to_vec()];
        for w in &report.windows {
            rows.push(vec![
                w.step.to_string(),
                format!("{:.4}", w.balancedness_before),
                format!("{:.4}", w.balancedness),
                format!("{:.4}", w.bound),
                w.moves.to_string(),
                bytes(w.bytes),
                w.waves.to_string(),
                w.worst.map_or_else(|| "-".into(), |worst| format!("{worst:.4}")),
                format!("{:.2}", w.plan_ms),
                format!("{:.1}", w.move_ms),
                w.steps_served.to_string(),
            ]);
        }
        let count = report.windows.len().max(1) as f64;
        let mean = |value: fn(&Window) -> f64| report.windows.iter().map(value).sum::<f64>() / count;
        let moves: usize = report.windows.iter().map(|w| w.moves).sum();
        let moved: u64 = report.windows.iter().map(|w| w.bytes).sum();
        let checked = match args.verify {
            VerifyArg::Full => format!("every byte checked, {} wrong", report.bytes_wrong),
            VerifyArg::Sampled => format!("bytes checked in samples, {} wrong", report.bytes_wrong),
            VerifyArg::Off => format!("slots checked by name only, {} bytes wrong", report.bytes_wrong),
        };
        format!(
            "{}{}worst: least balancedness of any layer on the way\n\n{policy} on {} ranks ({backend}), {} slots{}: balancedness {:.4} -> {:.4} (mean of {} windows, each on its own loads), {moves} \
         moves, {} moved, {checked}\n",
            table(&rows),
            members::text(&self.changes),
            ranks,
            args.slots,
            if args.members.any() { " at first" } else { "" },
            mean(|w| w.balancedness_before),
            mean(|w| w.balancedness),
            report.windows.len(),
            bytes(moved),
        )
    }
}
