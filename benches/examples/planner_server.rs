//! Our side of the comparison with other planners (`benches/peers`): plans when told to, in one long-lived process, so
//! that both sides can be timed in turn without the start of a process in the times.
//!
//! One request per line on stdin, words separated by spaces; one JSON object per line on stdout:
//!
//! | request | answer |
//! |---|---|
//! | `generate PRESET SEED OUT.npz` | writes a trace of two steps, the loads drifting between them |
//! | `case BEFORE AFTER SLOTS RANKS NODES GROUPS` | `layers experts`: takes two files of loads, any that the command line reads |
//! | `first POLICY OUT.npz` | plans for BEFORE with nothing in place and writes `phy2log [L, P]` |
//! | `second POLICY CURRENT.npz OUT.npz` | plans for AFTER with CURRENT in place, as above; `ms` is the processor time of the plan alone |
//! | `score OLD.npz NEW.npz` | `balancedness balancedness_old moves duplicates bound slots` of NEW on AFTER |
//!
//! Plans are made on one thread, and its processor time is what counts: other work on the machine does not. A request that cannot be answered ends the process with a message.

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;

use eplb_core::{LoadMatrix, Placement, Topology, bound, metrics};
use eplb_engine::plan_file;
use eplb_plan::{Options, Planner, Policy, Request};
use eplb_trace::Trace;
use eplb_trace::generate::Spec;
use eplb_trace::npz::NpzWriter;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// Balancedness that `incremental` aims at.
const TARGET: f64 = 0.95;

/// Loads before and after a drift, and where experts go.
struct Case {
    before: LoadMatrix,
    after: LoadMatrix,
    topology: Topology,
    groups: usize,
}

impl Case {
    fn open(words: &[&str]) -> Result<Self, Box<dyn Error>> {
        let &[before, after, slots, ranks, nodes, groups] = words else {
            return Err("case takes BEFORE AFTER SLOTS RANKS NODES GROUPS".into());
        };
        let loads = |path: &str| -> Result<LoadMatrix, Box<dyn Error>> {
            let trace = Trace::open(path)?;
            Ok(trace.loads(0..trace.steps())?)
        };
        let topology = Topology::uniform(ranks.parse()?, slots.parse()?)?.with_nodes(nodes.parse()?)?;
        Ok(Self { before: loads(before)?, after: loads(after)?, topology, groups: groups.parse()? })
    }

    fn options(&self, policy: Policy) -> Options {
        let target = (policy == Policy::Incremental).then_some(TARGET);
        Options { policy, target, groups: self.groups, ..Options::default() }
    }

    /// `incremental` has nothing to start from yet, so it starts with a fresh plan.
    fn first(&self, planner: &Planner, policy: Policy, out: &str) -> Result<Value, Box<dyn Error>> {
        let policy = if policy == Policy::Incremental { Policy::Balanced } else { policy };
        let options = self.options(policy);
        write(out, &planner.place(&Request::new(&self.before, &self.topology, &options))?)?;
        Ok(json!({}))
    }

    fn second(
        &self,
        planner: &Planner,
        policy: Policy,
        current: &str,
        out: &str,
    ) -> Result<Value, Box<dyn Error>> {
        let current = self.read(current)?;
        let options = self.options(policy);
        let request = Request::new(&self.after, &self.topology, &options).with_current(&current);
        let start = processor_ms();
        let placement = planner.place(&request)?;
        let ms = processor_ms() - start;
        write(out, &placement)?;
        Ok(json!({ "ms": ms }))
    }

    fn score(&self, old: &str, new: &str) -> Result<Value, Box<dyn Error>> {
        let (old, new) = (self.read(old)?, self.read(new)?);
        let loads = self.after.sum().view();
        let balance = |placement| metrics::balancedness(loads, placement, None, &self.topology);
        Ok(json!({
            "balancedness": balance(&new)?.mean,
            "balancedness_old": balance(&old)?.mean,
            "moves": metrics::changes(&old, &new, &self.topology)?.moves,
            "duplicates": metrics::duplicates(&new, &self.topology)?,
            "bound": bound::bound(loads, &self.topology).mean,
            "slots": new.layers() * new.slots(),
        }))
    }

    fn read(&self, path: &str) -> Result<Placement, Box<dyn Error>> {
        Ok(plan_file::read(Path::new(path), self.after.experts())?)
    }
}

/// Processor time of this thread so far, in milliseconds.
fn processor_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn generate(preset: &str, seed: &str, out: &str) -> Result<Value, Box<dyn Error>> {
    let spec = Spec::preset(preset).ok_or_else(|| format!("no preset {preset:?}"))?;
    Spec { seed: seed.parse()?, ..spec }.generate()?.write(out)?;
    Ok(json!({}))
}

fn write(path: &str, placement: &Placement) -> Result<(), Box<dyn Error>> {
    let mut file = NpzWriter::create(path)?;
    file.array("phy2log", &placement.phy2log().mapv(i64::from))?;
    Ok(file.finish()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let planner = Planner::new(1)?;
    let mut case = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match (&words[..], &case) {
            (["case", rest @ ..], _) => {
                let opened = Case::open(rest)?;
                let answer = json!({ "layers": opened.after.layers(), "experts": opened.after.experts() });
                case = Some(opened);
                answer
            }
            (&["generate", preset, seed, out], _) => generate(preset, seed, out)?,
            (&["first", policy, out], Some(case)) => case.first(&planner, policy.parse()?, out)?,
            (&["second", policy, current, out], Some(case)) => {
                case.second(&planner, policy.parse()?, current, out)?
            }
            (&["score", old, new], Some(case)) => case.score(old, new)?,
            _ => return Err(format!("{line:?} is no request, or comes before a case").into()),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
