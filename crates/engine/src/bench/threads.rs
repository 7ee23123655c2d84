//! Ranks of a bench that are threads of this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use eplb_core::{ModelLayout, RankId, Topology};
use eplb_exchange::ExchangePlan;

use super::links::Links;
use super::ranks::Parts;
use super::worker::{Command, Moved, Reply, Task, Worker};
use super::{Done, ExchangeBench, Setup, Team, links};
use crate::board::LocalBoard;
use crate::error::EngineError;

/// The ranks' threads.
#[derive(Debug)]
pub(super) struct Threads {
    backend: &'static str,
    pub(super) layout: Arc<ModelLayout>,
    commands: Vec<Sender<Command>>,
    replies: Receiver<(RankId, Result<Reply, EngineError>)>,
    threads: Vec<std::thread::JoinHandle<()>>,
    pub(super) patience: Duration,
}

impl Threads {
    pub(super) fn start(
        parts: Vec<Parts>,
        setup: &Setup,
        bench: &ExchangeBench,
    ) -> Result<Self, EngineError> {
        let backend = parts.first().map_or("none", |parts| parts.communicator.backend());
        let (reply, replies) = unbounded();
        let (mut commands, mut threads) = (Vec::new(), Vec::new());
        for (rank, parts) in parts.into_iter().enumerate() {
            let rank = RankId::at(rank);
            let (command, inbox) = unbounded();
            let worker = Worker::new(rank, setup, parts, bench);
            let reply = reply.clone();
            let thread = std::thread::Builder::new()
                .name(format!("rank-{}", rank.0))
                .spawn(move || worker.run(&inbox, &reply))
                .map_err(|error| EngineError::RankLost { rank, detail: format!("no thread: {error}") })?;
            commands.push(command);
            threads.push(thread);
        }
        Ok(Self {
            backend,
            layout: setup.layout.clone(),
            commands,
            replies,
            threads,
            patience: bench.patience,
        })
    }

    /// Sends each rank a command and waits for all replies, in the order of ranks.
    pub(super) fn ask(&mut self, command: impl Fn(usize) -> Command) -> Result<Vec<Reply>, EngineError> {
        for (rank, commands) in self.commands.iter().enumerate() {
            // A rank that is gone is found out below.
            drop(commands.send(command(rank)));
        }
        let deadline = Instant::now() + self.patience;
        let mut replies: Vec<Option<Reply>> = self.commands.iter().map(|_| None).collect();
        let mut failure = None;
        for _ in 0..self.commands.len() {
            match self.replies.recv_deadline(deadline) {
                Ok((rank, Ok(reply))) => replies[rank.index()] = Some(reply),
                Ok((_, Err(error))) => failure = failure.or(Some(error)),
                Err(_) => {
                    let silent = replies.iter().position(Option::is_none).unwrap_or(0);
                    let detail = format!("no reply within {:?}", self.patience);
                    return Err(failure.unwrap_or(EngineError::RankLost { rank: RankId::at(silent), detail }));
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(replies.into_iter().flatten().collect()),
        }
    }
}

impl Threads {
    /// Copies plainly on all ranks; how long the slowest took, `None` where they cannot.
    pub(super) fn copy(&mut self, task: &links::Task) -> Result<Option<Duration>, EngineError> {
        let replies = self.ask(|_| Command::Links(task.clone()))?;
        let times = replies.iter().map(|reply| match reply {
            Reply::Copied(time) => *time,
            _ => None,
        });
        Ok(times.collect::<Option<Vec<_>>>().and_then(|times| times.into_iter().max()))
    }
}

impl Team for Threads {
    fn backend(&self) -> &'static str {
        self.backend
    }

    fn fill(&mut self) -> Result<(), EngineError> {
        self.ask(|_| Command::Fill).map(drop)
    }

    fn check(&mut self) -> Result<u64, EngineError> {
        let replies = self.ask(|_| Command::Check)?;
        Ok(replies.iter().map(|reply| if let Reply::Checked(wrong) = reply { *wrong } else { 0 }).sum())
    }

    fn exchange(&mut self, plan: &Arc<ExchangePlan>, topology: &Topology) -> Result<Done, EngineError> {
        let members: Vec<RankId> = topology.all_ranks().collect();
        let board = LocalBoard::new(&members);
        let start = Instant::now();
        let replies = self.ask(|_| {
            Command::Exchange(Task {
                plan: plan.clone(),
                members: members.clone(),
                board: board.clone(),
                start,
            })
        })?;
        let mut done = Done { here: replies.len(), ..Done::default() };
        for reply in replies {
            if let Reply::Moved(Moved { end, steps, stall, carried_by, timeline }) = reply {
                done.time = done.time.max(end.saturating_duration_since(start));
                done.steps = done.steps.max(steps);
                done.stall = done.stall.max(stall);
                done.add(carried_by);
                done.timelines.extend(timeline);
            }
        }
        Ok(done)
    }

    fn links(
        &mut self,
        plan: &ExchangePlan,
        topology: &Topology,
        means: links::Means,
    ) -> Result<Option<Links>, EngineError> {
        let (layout, patience) = (self.layout.clone(), self.patience);
        links::measure(plan, topology, &layout, (means, patience), |task| self.copy(&task))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.commands.clear();
        for thread in self.threads.drain(..) {
            // A rank that panicked has been reported as lost.
            drop(thread.join());
        }
    }
}
