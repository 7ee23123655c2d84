//! `eplb doctor`.

use std::fmt::Write;
use std::process::ExitCode;

use eplb_comm_nccl::{Backend, Options};
use eplb_engine::bench::Carrier;
use eplb_engine::doctor::{Checked, Facts, Suite, facts};
use eplb_engine::machine::{Found, Machine};
use serde_json::{Value, json};

use crate::machine;
use crate::output::{Failure, print, print_json};

/// Arguments of `eplb doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also run the checks that every communicator must pass, over NCCL on this many ranks with a device each
    #[arg(long, value_name = "RANKS")]
    suite: Option<usize>,

    /// Run the checks over the copy engines of peers, not over NCCL
    #[arg(long, requires = "suite")]
    peer: bool,

    /// Run the checks over Gloo through pinned host memory, not over NCCL
    #[arg(long, requires = "suite", conflicts_with = "peer")]
    gloo: bool,

    /// Random waves of the checks
    #[arg(long, default_value_t = 12, value_name = "N")]
    waves: usize,

    /// Most thread blocks that a group of NCCL may take
    #[arg(long, value_name = "N")]
    max_ctas: Option<u32>,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let facts = facts();
    let found = Found::look(&Machine::here()).with(&facts);
    if !args.json {
        print(&format!("{}\n{}", text(&facts), machine::text(&found, &facts)))?;
    }
    let mut checks = Vec::new();
    if let Some(ranks) = args.suite {
        let config = nccl_rs::Config { max_ctas: args.max_ctas, ..nccl_rs::Config::default() };
        let options = Options { config, ..Options::default() };
        let carrier = match (args.peer, args.gloo) {
            (true, _) => Carrier::Peer,
            (_, true) => Carrier::DeviceGloo,
            _ => Carrier::Nccl(Backend::Nccl),
        };
        let suite = Suite { carrier, ranks, options, waves: args.waves };
        checks = suite.run(|checked| {
            if !args.json {
                // A reader that has gone does not end the checks.
                drop(print(&line(checked)));
            }
        })?;
    }
    if args.json {
        print_json(&object(&facts, &found, &checks))?;
    }
    let failed = checks.iter().filter(|checked| checked.result.is_err()).count();
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        _ => Err(Failure::Run(format!("{failed} of {} checks failed", checks.len()))),
    }
}

fn line(checked: &Checked) -> String {
    let verdict = checked.result.as_ref().err().map_or("ok".to_owned(), |why| format!("FAILED: {why}"));
    format!("check {:<16} {:>7.2} s  {verdict}\n", checked.name, checked.time.as_secs_f64())
}

fn text(facts: &Facts) -> String {
    let mut out = String::new();
    match &facts.cuda {
        Err(why) => {
            let _ = writeln!(out, "cuda    {why}");
        }
        Ok(probe) => {
            let (major, minor) = (probe.driver_version / 1000, probe.driver_version % 1000 / 10);
            let _ = writeln!(out, "cuda    {major}.{minor}, {} devices", probe.devices.len());
            for device in &probe.devices {
                let reach: Vec<String> = probe.peer_access[device.ordinal]
                    .iter()
                    .enumerate()
                    .filter(|&(other, &can)| can && other != device.ordinal)
                    .map(|(other, _)| other.to_string())
                    .collect();
                let _ = writeln!(
                    out,
                    "  {}: {} ({}), capability {}.{}, {:.1} GiB, {} copy engines, reaches {}",
                    device.ordinal,
                    device.name,
                    device.pci,
                    device.capability.0,
                    device.capability.1,
                    device.total_bytes as f64 / (1u64 << 30) as f64,
                    device.copy_engines,
                    if reach.is_empty() { "no other".into() } else { reach.join(", ") }
                );
            }
        }
    }
    let nccl = facts.nccl.as_ref().map_or_else(Clone::clone, |(path, version)| format!("{version}, {path}"));
    let _ = writeln!(out, "nccl    {nccl}");
    for (name, value) in &facts.variables {
        let _ = writeln!(out, "  {name}={value}");
    }
    out
}

fn object(facts: &Facts, found: &Found, checks: &[Checked]) -> Value {
    let cuda = match &facts.cuda {
        Err(why) => json!({ "absent": why }),
        Ok(probe) => json!({
            "driver_version": probe.driver_version,
            "devices": probe.devices.iter().map(|device| json!({
                "name": device.name,
                "pci": device.pci,
                "capability": [device.capability.0, device.capability.1],
                "total_bytes": device.total_bytes,
                "copy_engines": device.copy_engines,
                "multiprocessors": device.multiprocessors,
            })).collect::<Vec<_>>(),
            "peer_access": probe.peer_access,
        }),
    };
    let nccl = match &facts.nccl {
        Err(why) => json!({ "absent": why }),
        Ok((path, version)) => json!({ "path": path, "version": version }),
    };
    let checks: Vec<Value> = checks
        .iter()
        .map(|checked| {
            let why = checked.result.as_ref().err();
            json!({ "name": checked.name, "ok": why.is_none(), "why": why, "seconds": checked.time.as_secs_f64() })
        })
        .collect();
    json!({ "cuda": cuda, "nccl": nccl, "machine": machine::object(found, facts), "checks": checks })
}
