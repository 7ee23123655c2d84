//! `eplb bench`.

mod exchange;
mod faults;
mod interference;
mod placements;
mod processes;

pub(crate) use processes::pretended;

use std::process::ExitCode;

use clap::Subcommand;

use crate::output::Failure;

/// Subcommands of `eplb bench`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Move experts between ranks, from the first submission to the last commit, and check every byte
    Exchange(exchange::Exchange),
    /// Kill a rank in the middle of an exchange: when do the others hear of it, and how do they go on?
    Faults(faults::Faults),
    /// Move experts beside matrix products on the same devices: what does each cost the other?
    Interference(interference::Interference),
    /// Print the placements that `exchange` goes through, for others to carry out
    Placements(placements::Placements),
}

pub(crate) fn run(command: &Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Exchange(args) => exchange::run(args),
        Command::Faults(args) => faults::run(args),
        Command::Interference(args) => interference::run(args),
        Command::Placements(args) => placements::run(args),
    }
}
