//! The thread of one rank: it serves steps, and moves experts meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use eplb_comm::{Communicator, Fence, Memory};
use eplb_core::{Placement, RankId};
use eplb_exchange::{Exchange, ExchangePlan, Limits, Outcome, Totals};
use ndarray::Array2;

use super::lockstep::{Lockstep, Route};
use super::serving::Serving;
use crate::board::Board;
use crate::error::EngineError;

/// What the coordinator wants of a rank.
#[derive(Debug)]
pub(super) enum Command {
    /// Plan the waves from the placement in force to `new`, agree, move, and serve steps meanwhile.
    Exchange(Box<Task>),
    /// Check the bytes of every slot that the map in force names.
    Check,
}

/// An exchange to be run.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) new: Arc<Placement>,
    pub(super) loads: Arc<Array2<f64>>,
    pub(super) limits: Limits,
    pub(super) margin: u64,
    pub(super) communicator: Box<dyn Communicator>,
    pub(super) board: Arc<dyn Board>,
}

/// What a rank did.
#[derive(Debug)]
pub(super) enum Reply {
    Exchanged(Box<Exchanged>),
    Checked { bytes_wrong: u64 },
    Failed(EngineError),
}

/// An exchange as one rank saw it.
#[derive(Debug)]
pub(super) struct Exchanged {
    pub(super) outcome: Outcome,
    pub(super) phy2log: Arc<Array2<i32>>,
    pub(super) waves: usize,
    pub(super) totals: Totals,
    pub(super) steps: u64,
    pub(super) communicator: Box<dyn Communicator>,
}

/// One rank.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) serving: Serving,
    pub(super) experts: usize,
    pub(super) lockstep: Arc<Lockstep>,
}

impl Worker {
    /// Serves commands until the coordinator is gone.
    pub(super) fn run(mut self, commands: &Receiver<Command>, replies: &Sender<(RankId, Reply)>) {
        while let Ok(command) = commands.recv() {
            let reply = match command {
                Command::Check => self.serving.check_all().map(|bytes_wrong| Reply::Checked { bytes_wrong }),
                Command::Exchange(task) => self.exchange(*task),
            };
            let reply = reply.unwrap_or_else(|error| {
                // The others must not wait for a rank that serves no more steps.
                self.lockstep.break_up();
                Reply::Failed(error)
            });
            if replies.send((self.serving.rank, reply)).is_err() {
                return;
            }
        }
    }

    fn exchange(&mut self, task: Task) -> Result<Reply, EngineError> {
        let Task { new, loads, limits, margin, communicator, board } = task;
        let old = Placement::with_missing(self.experts, self.serving.driver.phy2log().as_ref().clone())?;
        let layout = self.serving.memory.layout().clone();
        let plan =
            ExchangePlan::new(&old, &new, &self.serving.topology, &layout, Some(loads.view()), &limits)?;
        let plan = Arc::new(plan);
        let members: Vec<RankId> = self.serving.topology.live_ranks().collect();
        let last = self.serving.driver.last_step();
        let exchange = Exchange::new(
            plan.clone(),
            self.serving.rank,
            &members,
            self.serving.settings.deadlines,
            margin,
            last,
            Instant::now(),
        );
        self.serving.driver.begin(exchange, communicator, board)?;

        let mut ended = None;
        let mut running: VecDeque<Fence> = VecDeque::new();
        let first = last.map_or(0, |id| id + 1);
        let mut step = first;
        loop {
            self.serving.driver.step(step)?;
            let over = ended.is_some();
            let meeting = self.lockstep.meet(
                self.serving.rank,
                step,
                Route { map: self.serving.driver.phy2log().clone(), over },
            )?;
            running.push_back(self.serving.enqueue(step, meeting.clone()));
            self.serving.advance(&plan, &mut ended)?;
            // As a server does, the host runs at most one step ahead of its device.
            while running.len() > 1 {
                let Some(fence) = running.pop_front() else { break };
                self.serving.wait(&fence, &plan, &mut ended)?;
            }
            step += 1;
            if meeting.iter().all(|route| route.over) {
                break;
            }
        }
        for fence in running {
            self.serving.wait(&fence, &plan, &mut ended)?;
        }
        let Some(ended) = ended else {
            return Err(EngineError::RankLost {
                rank: self.serving.rank,
                detail: "the exchange did not end".into(),
            });
        };
        let waves = ended.outcome.committed(&plan);
        let totals = plan.totals_of(waves);
        Ok(Reply::Exchanged(Box::new(Exchanged {
            outcome: ended.outcome,
            phy2log: self.serving.driver.phy2log().clone(),
            waves,
            totals,
            steps: step - first,
            communicator: ended.communicator,
        })))
    }
}
