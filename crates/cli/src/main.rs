//! The `eplb` command.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod curve;
mod doctor;
mod machine;
mod members;
mod moves;
mod objective;
mod output;
mod plan;
mod process;
mod ranks;
mod rebalance;
mod replay;
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Expert-parallel load balancing for Mixture-of-Experts inference: plan where experts live, move them, check every byte.
#[derive(Debug, Parser)]
#[command(name = "eplb", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure what moving experts costs, on this machine's memory or devices
    #[command(subcommand)]
    Bench(bench::Command),
    /// Say what accelerators, libraries and limits are there and what to install or set, and check that moving experts works
    Doctor(doctor::Args),
    /// Plan a placement for measured loads and write it to a file
    Plan(plan::Args),
    /// Walk a trace: plan each window and move the experts between ranks (threads or processes) while they serve steps
    Rebalance(rebalance::Args),
    /// Replay a trace under several policies: what each would have done, step by step, without looking ahead
    Replay(replay::Args),
    /// Look at traces, make them up, or convert them
    #[command(subcommand)]
    Trace(trace::Command),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench(command) => bench::run(&command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Rebalance(args) => rebalance::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Trace(command) => trace::run(&command),
    };
    result.unwrap_or_else(|error| error.report())
}
