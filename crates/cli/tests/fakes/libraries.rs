//! Runs the command on the fakes.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::build::libraries;
use crate::log::Log;

/// How a run of the command ended.
pub(crate) struct Run {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) log: Log,
}

impl Run {
    /// The JSON object that it printed.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{}{}", self.stdout, self.stderr))
    }
}

/// Runs `eplb` on the fakes.
pub(crate) fn eplb(arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("calls-{}-{number}", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_eplb"))
        .args(arguments)
        .env("LD_LIBRARY_PATH", libraries())
        .env("EPLB_FAKE_LOG", &log)
        .env_remove("EPLB_NCCL_SO")
        .env_remove("VLLM_NCCL_SO_PATH")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    drop(std::fs::remove_file(&log));
    Run {
        ok: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        log: Log::parse(&text),
    }
}

/// Whether an error names a rank, alone or among those that did not come.
pub(crate) fn names_rank(error: &str, rank: u32) -> bool {
    let alone = error.contains(&format!("rank {rank}"));
    let list = |rest: &str| {
        let numbers = rest.split(|c: char| !c.is_ascii_digit() && c != ',' && c != ' ').next().unwrap_or("");
        numbers.split(", ").any(|number| number.trim() == rank.to_string())
    };
    alone || error.split("ranks ").skip(1).any(list)
}

/// Runs a small exchange bench over NCCL.
pub(crate) fn exchange(more: &[&str], variables: &[(&str, &str)]) -> Run {
    exchange_over("nccl", more, variables)
}

/// Runs a small exchange bench over a backend.
pub(crate) fn exchange_over(backend: &str, more: &[&str], variables: &[(&str, &str)]) -> Run {
    let small = "--layers 2 --experts 16 --redundant 4 --tensors 1000,64,7 --json";
    let mut arguments = vec!["bench", "exchange", "--backend", backend];
    arguments.extend(small.split(' ').chain(more.iter().copied()));
    if !more.contains(&"--patience") {
        // A busy machine is no failure.
        arguments.extend(["--patience", "120"]);
    }
    eplb(&arguments, variables)
}
