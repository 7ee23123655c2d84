//! Walks a trace while members change at steps that are known beforehand: ranks leave, join, and are killed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::host::HostMemory;
use eplb_comm::store::Store;
use eplb_comm::{Communicator, Intercept, Intercepted};
use eplb_core::{Placement, RankId, Topology, Transfer};
use eplb_plan::{Planner, Request};
use eplb_trace::Trace;

use super::job::Job;
use super::member::Member;
use super::membership::{Reform, Reformed, Stayed, suspects};
use super::session::{Session, Stage, at};
use super::walk::take_reports;
use crate::cluster::Hooks;
use crate::deadlines::Deadlines;
use crate::error::EngineError;
use crate::rebalance::{Position, Rebalance, Report};

/// How long a process waits for the step at which it joins. Whoever started it ends it when the others have ended.
const WAIT: Duration = Duration::from_secs(24 * 3600);

/// A change of members; ranks are numbered as they are then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A rank leaves before the window is planned; its experts move off first.
    Leave(RankId),
    /// So many processes join before the window is planned, with as many slots each as rank 0 has.
    Join(usize),
    /// A rank's process is killed while the experts of the window move.
    Kill(RankId),
}

/// When members change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// A step of the trace; the change is that of its window.
    pub step: usize,
    /// The change.
    pub change: Change,
}

/// A change of one window, with what all members know of it.
#[derive(Debug, Clone, PartialEq)]
struct Turn {
    change: Change,
    reform: Reform,
    /// Processes by rank before it, and after it.
    before: Vec<usize>,
    after: Vec<usize>,
}

/// All changes of a walk. Processes are numbered: first the ranks that begin, then those that join, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    first: usize,
    processes: usize,
    /// By window.
    turns: Vec<Vec<Turn>>,
    last: Vec<usize>,
}

impl Schedule {
    /// The schedule of a walk over the windows of a trace of `experts` experts. In one window ranks leave first, then others
    /// join, then one may be killed.
    ///
    /// # Errors
    /// [`EngineError::Options`]: a rank that does not exist then, a step outside the trace, two deaths in one window, or fewer
    /// slots than experts.
    pub fn new(
        topology: &Topology,
        experts: usize,
        windows: &[Range<usize>],
        events: &[Event],
    ) -> Result<Self, EngineError> {
        let refuse = |text: String| Err(EngineError::Options(text));
        let steps = windows.last().map_or(0, |window| window.end);
        if let Some(event) = events.iter().find(|event| event.step >= steps) {
            return refuse(format!(
                "step {} of a change of members: the walk has steps 0..{steps}",
                event.step
            ));
        }
        let mut topology = topology.clone();
        let first = topology.ranks();
        let (mut members, mut processes): (Vec<usize>, usize) = ((0..first).collect(), first);
        let mut turns = Vec::new();
        for window in windows {
            let mut changes: Vec<Change> = events
                .iter()
                .filter(|event| window.contains(&event.step))
                .map(|event| event.change)
                .collect();
            changes.sort_unstable();
            if changes.iter().filter(|change| matches!(change, Change::Kill(_))).count() > 1 {
                return refuse(format!("two ranks are killed in steps {window:?}: one per window"));
            }
            let mut turns_here = Vec::new();
            for change in changes {
                let before = members.clone();
                let (reform, next) = match change {
                    Change::Leave(rank) | Change::Kill(rank) => {
                        let without = Reform::leave(&topology, &[rank])?;
                        members.remove(rank.index());
                        let next = without.topology.clone();
                        let killed = matches!(change, Change::Kill(_));
                        let reform = if killed { Reform::survivors(&topology, &[rank]) } else { without };
                        (reform, next)
                    }
                    Change::Join(count) => {
                        let reform = Reform::join(&topology, &vec![topology.slot_count(RankId(0)); count])?;
                        members.extend(processes..processes + count);
                        processes += count;
                        (reform.clone(), reform.topology)
                    }
                };
                topology = next;
                if topology.slots() < experts {
                    return refuse(format!(
                        "after step {} there are {} slots for {experts} experts: give more --slots, or let ranks join first",
                        window.start,
                        topology.slots()
                    ));
                }
                turns_here.push(Turn { change, reform, before, after: members.clone() });
            }
            turns.push(turns_here);
        }
        Ok(Self { first, processes, turns, last: members })
    }

    /// Processes in all.
    pub fn processes(&self) -> usize {
        self.processes
    }

    /// Processes that belong to the group at the end, by rank.
    pub fn last(&self) -> &[usize] {
        &self.last
    }

    /// Processes that are killed.
    pub fn killed(&self) -> Vec<usize> {
        let turns = self.turns.iter().flatten();
        let killed = turns.filter_map(|turn| match turn.change {
            Change::Kill(rank) => Some(turn.before[rank.index()]),
            _ => None,
        });
        killed.collect()
    }
}

/// A change of members that has happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// First step of its window.
    pub step: usize,
    /// What it was.
    pub change: Change,
    /// The epoch after it.
    pub epoch: u64,
    /// Ranks after it.
    pub ranks: usize,
    /// Experts that moved off ranks that left.
    pub moved_off: usize,
    /// Experts that nobody held any more, fetched from the source.
    pub fetched: usize,
    /// Moves to the placement planned for the new ranks.
    pub filled: usize,
    /// How long it took.
    pub time: Duration,
}

/// A walk, as one process saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Walked {
    /// Its windows and findings.
    pub report: Report,
    /// Changes of members that it took part in.
    pub changes: Vec<Changed>,
    /// Its rank at the end; `None` if it has left.
    pub rank: Option<RankId>,
    /// Ranks at the end.
    pub ranks: usize,
}

impl Rebalance {
    /// Runs the trace as process `process` of a schedule, in the store that all of them share. `job` is that of the ranks that
    /// begin.
    ///
    /// # Errors
    /// [`EngineError::AtStage`]. Wrong bytes are no error here: they are counted in the [`Report`].
    pub fn run_elastic(
        &self,
        trace: &Trace,
        (process, schedule): (usize, &Schedule),
        store: &Arc<dyn Store>,
        mut job: Job,
        deadlines: &Deadlines,
        progress: &mut dyn FnMut(Position),
    ) -> Result<Walked, EngineError> {
        let me = RankId::at(process);
        let planner = at(me, Stage::Planning, Planner::new(self.threads.max(1)))?;
        let casualty = Arc::new(AtomicBool::new(false));
        if schedule.killed().contains(&process) {
            job.settings.hooks = Arc::new(Casualty(casualty.clone()));
        }
        let mut member = None;
        if process < schedule.first {
            let session = Session::join(store.clone(), me, schedule.first, deadlines)?;
            member = Some(Member::start(session, job.clone())?);
        }
        let report = Report { windows: Vec::new(), bytes_wrong: 0, first_wrong: None };
        let mut walked = Walked { report, changes: Vec::new(), rank: None, ranks: schedule.first };
        let ranges: Vec<_> = trace.windows(self.window).collect();
        for (done, (range, turns)) in ranges.iter().zip(&schedule.turns).enumerate() {
            progress(Position { done, windows: ranges.len() });
            let loads = at(me, Stage::Planning, trace.loads(range.clone()))?;
            let mut replan = |current: &Placement, topology: &Topology| {
                let request = Request::new(&loads, topology, &self.plan).with_current(current);
                Ok((planner.plan(&request)?.placement, loads.sum().clone()))
            };
            let kill = turns.iter().find(|turn| matches!(turn.change, Change::Kill(_)));
            for turn in turns.iter().filter(|turn| !matches!(turn.change, Change::Kill(_))) {
                let begun = Instant::now();
                let stayed = match &mut member {
                    Some(member) => match member.reform(&turn.reform, &mut replan)? {
                        Reformed::Left { drained } => {
                            walked.report.bytes_wrong += drained.bytes_wrong;
                            return Ok(walked);
                        }
                        Reformed::Stayed(stayed) => *stayed,
                    },
                    None => {
                        let Some(planned) = turn.after.iter().position(|&other| other == process) else {
                            continue;
                        };
                        let job = Job { topology: turn.reform.topology.clone(), ..job.clone() };
                        let planned = RankId::at(planned);
                        let joined = Member::join(store.clone(), planned, job, WAIT, deadlines, &mut replan)?;
                        member = Some(joined.0);
                        joined.1
                    }
                };
                if let Some(member) = &mut member {
                    walked.take(member, (range.start, turn.change), &stayed, begun)?;
                }
            }
            let Some(member) = &mut member else { continue };
            let casualty = kill
                .filter(
                    |turn| matches!(turn.change, Change::Kill(rank) if turn.before[rank.index()] == process),
                )
                .map(|_| &casualty);
            if let Some(casualty) = casualty {
                casualty.store(true, Ordering::SeqCst);
            }
            let window =
                self.on(member).rank_window(range.start, &loads, &planner, member, &mut walked.report);
            let Some(turn) = kill else {
                walked.report.windows.push(window?);
                continue;
            };
            if casualty.is_some() {
                // As a crash: nothing is said, nothing is cleaned up.
                std::process::abort();
            }
            // The others find out, by their deadlines or because nothing had to move; then they go on without it.
            let begun = Instant::now();
            let reform = match &window {
                Ok(_) => turn.reform.clone(),
                Err(error) => Reform::survivors(member.topology(), &suspects(error)),
            };
            if let Reformed::Stayed(stayed) = member.reform(&reform, &mut replan)? {
                walked.take(member, (range.start, turn.change), &stayed, begun)?;
            }
            let window = match window {
                Ok(window) => window,
                Err(_) => {
                    self.on(member).rank_window(range.start, &loads, &planner, member, &mut walked.report)?
                }
            };
            walked.report.windows.push(window);
        }
        progress(Position { done: ranges.len(), windows: ranges.len() });
        if let Some(member) = &member {
            (walked.rank, walked.ranks) = (Some(member.rank()), member.topology().ranks());
        }
        Ok(walked)
    }

    /// The same run on the ranks that there are now.
    fn on(&self, member: &Member) -> Self {
        Self { topology: member.topology().clone(), ..self.clone() }
    }
}

impl Walked {
    /// Takes in a change of members: every byte is checked after it, on all ranks.
    fn take(
        &mut self,
        member: &mut Member,
        (step, change): (usize, Change),
        stayed: &Stayed,
        begun: Instant,
    ) -> Result<(), EngineError> {
        if let Some((layer, expert)) = stayed.left_out.first() {
            let error = EngineError::Options(format!(
                "{} experts have no slot on the ranks that are left, first {layer} {expert}; give more --slots",
                stayed.left_out.len()
            ));
            return at(member.rank(), Stage::Reforming, Err(error));
        }
        let moves = |exchanged: &Option<super::Exchanged>| exchanged.as_ref().map_or(0, |e| e.totals.moves);
        if let Some(drained) = &stayed.drained {
            self.report.bytes_wrong += drained.bytes_wrong;
        }
        if let Some(filled) = &stayed.filled {
            take_reports(member, filled, &mut self.report)?;
        }
        self.changes.push(Changed {
            step,
            change,
            epoch: stayed.epoch,
            ranks: member.topology().ranks(),
            moved_off: moves(&stayed.drained),
            fetched: stayed.fetched.len(),
            filled: moves(&stayed.filled),
            time: begun.elapsed(),
        });
        Ok(())
    }
}

/// Kills its process when experts begin to move, once it is armed.
#[derive(Debug)]
struct Casualty(Arc<AtomicBool>);

impl Hooks for Casualty {
    fn communicator(
        &self,
        _rank: RankId,
        _memory: &Arc<HostMemory>,
        inner: Box<dyn Communicator>,
    ) -> Box<dyn Communicator> {
        Box::new(Intercepted::new(inner, Doomed { armed: self.0.clone() }))
    }
}

#[derive(Debug)]
struct Doomed {
    armed: Arc<AtomicBool>,
}

impl Intercept for Doomed {
    fn submitted(&mut self, _transfers: &[Transfer]) {
        if self.armed.load(Ordering::SeqCst) {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows() -> Vec<Range<usize>> {
        vec![0..20, 20..40, 40..50]
    }

    #[test]
    fn processes_are_followed_through_all_changes() {
        let topology = Topology::uniform(4, 16).unwrap();
        let events = [
            Event { step: 45, change: Change::Kill(RankId(0)) },
            Event { step: 20, change: Change::Join(2) },
            Event { step: 39, change: Change::Leave(RankId(1)) },
        ];
        let schedule = Schedule::new(&topology, 12, &windows(), &events).unwrap();
        assert_eq!((schedule.processes(), schedule.killed()), (6, vec![0]));
        let turns: Vec<_> = schedule.turns[1].iter().map(|turn| turn.after.clone()).collect();
        assert_eq!(turns, [vec![0, 2, 3], vec![0, 2, 3, 4, 5]]);
        assert_eq!(schedule.last(), [2, 3, 4, 5]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let topology = Topology::uniform(4, 16).unwrap();
        let refused = |events: &[Event], word: &str| {
            let error = Schedule::new(&topology, 12, &windows(), events).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        let kill = |step, rank| Event { step, change: Change::Kill(RankId(rank)) };
        refused(&[kill(50, 0)], "steps 0..50");
        refused(&[kill(1, 0), kill(2, 1)], "one per window");
        refused(&[kill(1, 4)], "ranks are 0..4");
        refused(&[kill(1, 0), kill(21, 1)], "8 slots for 12 experts");
    }
}
