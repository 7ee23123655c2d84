//! The thread of one rank of a bench.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use eplb_comm::{Bulletin, Communicator, Stream, Timeline};
use eplb_core::{ExpertId, LayerId, RankId, SlotId};
use eplb_exchange::{Deadlines, Exchange, ExchangePlan, Outcome, Phase};

use super::ranks::Parts;
use super::{ExchangeBench, Inspect, Setup, links};
use crate::board::Board;
use crate::driver::Driver;
use crate::error::EngineError;

/// What the bench wants of a rank.
#[derive(Debug)]
pub(super) enum Command {
    /// Write the bytes of the experts that the map in force names.
    Fill,
    /// Check them.
    Check,
    /// Carry out a plan.
    Exchange(Task),
    /// Copy plainly.
    Links(links::Task),
}

/// A plan to be carried out.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) plan: Arc<ExchangePlan>,
    pub(super) members: Vec<RankId>,
    pub(super) board: Arc<dyn Board>,
    pub(super) start: Instant,
}

/// What a rank did.
#[derive(Debug)]
pub(super) enum Reply {
    Filled,
    Checked(u64),
    Moved(Moved),
    Copied(Option<Duration>),
}

/// What a rank did in an exchange.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) end: Instant,
    pub(super) steps: u64,
    pub(super) stall: Duration,
    /// Bytes over links since the start, by the backends that carried them.
    pub(super) carried_by: Vec<(&'static str, u64)>,
    /// What happened in it when, if that is recorded.
    pub(super) timeline: Option<Arc<Timeline>>,
}

/// One rank.
#[derive(Debug)]
pub(super) struct Worker {
    // Dropped before the communicator, which tells the owners of what is open here that it is closed.
    links: links::Plains,
    rank: RankId,
    driver: Driver<Box<dyn Stream>>,
    communicator: Option<Box<dyn Communicator>>,
    inspect: Box<dyn Inspect>,
    step: Duration,
    margin: u64,
    patience: Duration,
    timeline: Option<Arc<Timeline>>,
}

impl Worker {
    pub(super) fn new(rank: RankId, setup: &Setup, parts: Parts, bench: &ExchangeBench) -> Self {
        let mut driver = Driver::new(rank, setup.topology.clone(), parts.stream, &setup.start);
        let timeline = bench.timeline.as_ref().map(|_| Timeline::new(rank, setup.since));
        if let Some(timeline) = &timeline {
            driver.observe(timeline);
        }
        Self {
            rank,
            driver,
            communicator: Some(parts.communicator),
            inspect: parts.inspect,
            links: parts.links,
            step: bench.step,
            margin: bench.margin,
            patience: bench.patience,
            timeline,
        }
    }

    /// Serves commands until the bench is over.
    pub(super) fn run(
        mut self,
        commands: &Receiver<Command>,
        replies: &Sender<(RankId, Result<Reply, EngineError>)>,
    ) {
        while let Ok(command) = commands.recv() {
            let reply = match command {
                Command::Fill => self.fill().map(|()| Reply::Filled),
                Command::Check => self.check().map(Reply::Checked),
                Command::Exchange(task) => self.exchange(task).map(Reply::Moved),
                Command::Links(task) => self.links(&task).map(Reply::Copied),
            };
            if replies.send((self.rank, reply)).is_err() {
                return;
            }
        }
    }

    /// Where it can say something to the others at once.
    pub(super) fn bulletin(&self) -> Option<Arc<dyn Bulletin>> {
        self.communicator.as_ref()?.bulletin()
    }

    /// Writes the bytes that the map in force names.
    pub(super) fn fill(&mut self) -> Result<(), EngineError> {
        self.each(|inspect, layer, slot, expert| inspect.fill(layer, slot, expert).map(|()| 0)).map(drop)
    }

    /// Bytes that are not those that the map in force names.
    pub(super) fn check(&mut self) -> Result<u64, EngineError> {
        self.each(|inspect, layer, slot, expert| inspect.count_wrong(layer, slot, expert))
    }

    /// Copies plainly, if it can.
    pub(super) fn links(&mut self, task: &links::Task) -> Result<Option<Duration>, EngineError> {
        self.links.copy(task)
    }

    /// Calls `visit` for every slot of this rank that the map in force names, and adds up what it says.
    fn each(
        &mut self,
        mut visit: impl FnMut(&mut dyn Inspect, LayerId, SlotId, ExpertId) -> Result<u64, EngineError>,
    ) -> Result<u64, EngineError> {
        let map = self.driver.phy2log().clone();
        let mut sum = 0;
        for layer in 0..map.nrows() {
            for slot in self.inspect.memory().slots() {
                if let Ok(expert) = u32::try_from(map[(layer, slot)]) {
                    sum += visit(&mut *self.inspect, LayerId::at(layer), SlotId::at(slot), ExpertId(expert))?;
                }
            }
        }
        Ok(sum)
    }

    /// Carries out a plan.
    pub(super) fn exchange(&mut self, task: Task) -> Result<Moved, EngineError> {
        let Some(communicator) = self.communicator.take() else {
            return Err(EngineError::RankLost {
                rank: self.rank,
                detail: "its communicator went with an exchange that failed".into(),
            });
        };
        let deadlines = Deadlines { transfer: self.patience / 2, ..Deadlines::default() };
        let exchange = Exchange::new(
            task.plan,
            self.rank,
            &task.members,
            deadlines,
            self.margin,
            self.driver.last_step(),
            Instant::now(),
        );
        if let Some(timeline) = &self.timeline {
            // What happened in the exchange before.
            drop(timeline.take());
        }
        self.driver.begin(exchange, communicator, task.board)?;
        let (mut steps, mut stall) = (0u64, Duration::ZERO);
        let deadline = Instant::now() + self.patience;
        loop {
            // With steps of no length the rank idles, and takes steps only to reach the one that was decided.
            let due = match self.step.is_zero() {
                true => self.driver.phase() == Some(Phase::Committing),
                false => task.start.elapsed() >= self.step * u32::try_from(steps).unwrap_or(u32::MAX),
            };
            if due {
                let begin = Instant::now();
                self.driver.step(self.driver.last_step().map_or(0, |id| id + 1))?;
                stall = stall.max(begin.elapsed());
                steps += 1;
            } else if self.step.is_zero() {
                self.driver.tick()?;
            }
            let ended = self.driver.progress()?;
            let end = Instant::now();
            if let Some(ended) = ended {
                let by = ended.communicator.carried_by().into_iter();
                let carried_by = by.map(|(backend, carried)| (backend, carried.link_bytes)).collect();
                match ended.outcome {
                    Outcome::Completed => {
                        self.communicator = Some(ended.communicator);
                        let timeline = self.timeline.clone();
                        return Ok(Moved { end, steps, stall, carried_by, timeline });
                    }
                    Outcome::Aborted { wave, cause, .. }
                    | Outcome::Broken { wave, cause, .. }
                    | Outcome::Undecided { wave, cause, .. } => {
                        return Err(EngineError::Aborted { rank: self.rank, wave, cause });
                    }
                }
            }
            if end > deadline {
                let what = "an exchange".into();
                return Err(
                    eplb_comm::CommError::Timeout { rank: self.rank, what, waited: self.patience }.into()
                );
            }
            std::thread::yield_now();
        }
    }
}
