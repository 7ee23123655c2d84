//! `eplb rebalance` while members change: arguments, and what is told about it.

use std::num::NonZeroUsize;

use eplb_core::{RankId, Topology};
use eplb_engine::process::elastic::{Change, Changed, Event, Schedule};
use eplb_trace::Trace;
use serde_json::{Value, json};

use crate::output::Failure;

/// When members change, between processes that this command starts.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct MemberArgs {
    /// Rank R leaves before the window of this step; its experts move off first. May be repeated, as the next two
    #[arg(long, value_name = "R@STEP", value_parser = at_step)]
    leave: Vec<(usize, usize)>,

    /// N processes join before the window of this step, behind the others, with as many slots as rank 0 has
    #[arg(long, value_name = "N@STEP", value_parser = at_step)]
    join: Vec<(usize, usize)>,

    /// Rank R is killed while the experts of this step's window move; the others go on without it
    #[arg(long, value_name = "R@STEP", value_parser = at_step)]
    kill: Vec<(usize, usize)>,

    /// Which process of the schedule this is, for those that join
    #[arg(long, hide = true)]
    pub(crate) process: Option<usize>,
}

fn at_step(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("{text:?} is not of the form NUMBER@STEP, as 1@40");
    let (number, step) = text.split_once('@').ok_or_else(wrong)?;
    Ok((number.parse().map_err(|_| wrong())?, step.parse().map_err(|_| wrong())?))
}

impl MemberArgs {
    /// Whether members change at all.
    pub(crate) fn any(&self) -> bool {
        !(self.leave.is_empty() && self.join.is_empty() && self.kill.is_empty())
    }

    /// The schedule, if members change.
    pub(crate) fn schedule(
        &self,
        topology: &Topology,
        trace: &Trace,
        window: NonZeroUsize,
    ) -> Result<Option<Schedule>, Failure> {
        if !self.any() {
            return Ok(None);
        }
        let events = |list: &[(usize, usize)], change: fn(usize) -> Change| {
            list.iter().map(|&(number, step)| Event { step, change: change(number) }).collect::<Vec<_>>()
        };
        let mut all = events(&self.leave, |rank| Change::Leave(RankId::at(rank)));
        all.extend(events(&self.join, Change::Join));
        all.extend(events(&self.kill, |rank| Change::Kill(RankId::at(rank))));
        let windows: Vec<_> = trace.windows(window).collect();
        Ok(Some(Schedule::new(topology, trace.experts(), &windows, &all)?))
    }
}

/// A change in words.
fn words(change: Change) -> String {
    match change {
        Change::Leave(rank) => format!("{rank} left"),
        Change::Join(count) => format!("{count} joined"),
        Change::Kill(rank) => format!("{rank} was killed"),
    }
}

/// Lines about the changes.
pub(crate) fn text(changes: &[Changed]) -> String {
    let line = |c: &Changed| {
        format!(
            "step {}: {}; epoch {} with {} ranks after {:.1} s: {} experts moved off, {} fetched, {} moved to the new ranks\n",
            c.step,
            words(c.change),
            c.epoch,
            c.ranks,
            c.time.as_secs_f64(),
            c.moved_off,
            c.fetched,
            c.filled
        )
    };
    changes.iter().map(line).collect()
}

/// The changes as JSON.
pub(crate) fn objects(changes: &[Changed]) -> Vec<Value> {
    let object = |c: &Changed| {
        json!({
            "step": c.step,
            "change": words(c.change),
            "epoch": c.epoch,
            "ranks": c.ranks,
            "moved_off": c.moved_off,
            "fetched": c.fetched,
            "filled": c.filled,
            "ms": c.time.as_secs_f64() * 1e3,
        })
    };
    changes.iter().map(object).collect()
}
