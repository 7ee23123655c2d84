//! The thread of one rank: it serves steps, and moves experts meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use eplb_comm::host::HostMemory;
use eplb_comm::{Communicator, Fence, Memory};
use eplb_core::{ExpertId, LayerId, Placement, RankId, SlotId, Topology};
use eplb_exchange::{Exchange, ExchangePlan, Limits, Outcome, Totals};
use ndarray::Array2;

use super::hooks::ServingStream;
use super::lockstep::{Lockstep, Route};
use super::serve::{Findings, forward};
use super::{Settings, Verify};
use crate::board::Board;
use crate::driver::Driver;
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
    pub(super) rank: RankId,
    pub(super) topology: Arc<Topology>,
    pub(super) memory: Arc<HostMemory>,
    pub(super) driver: Driver<Box<dyn ServingStream>>,
    pub(super) experts: usize,
    pub(super) lockstep: Arc<Lockstep>,
    pub(super) findings: Arc<Findings>,
    pub(super) settings: Settings,
}

impl Worker {
    /// Serves commands until the coordinator is gone.
    pub(super) fn run(mut self, commands: &Receiver<Command>, replies: &Sender<(RankId, Reply)>) {
        while let Ok(command) = commands.recv() {
            let reply = match command {
                Command::Check => self.check_all(),
                Command::Exchange(task) => self.exchange(*task),
            };
            let reply = reply.unwrap_or_else(|error| {
                // The others must not wait for a rank that serves no more steps.
                self.lockstep.break_up();
                Reply::Failed(error)
            });
            if replies.send((self.rank, reply)).is_err() {
                return;
            }
        }
    }

    fn exchange(&mut self, task: Task) -> Result<Reply, EngineError> {
        let Task { new, loads, limits, margin, communicator, board } = task;
        let old = Placement::with_missing(self.experts, self.driver.phy2log().as_ref().clone())?;
        let layout = self.memory.layout().clone();
        let plan = ExchangePlan::new(&old, &new, &self.topology, &layout, Some(loads.view()), &limits)?;
        let (waves, totals) = (plan.waves().len(), *plan.totals());
        let plan = Arc::new(plan);
        let members: Vec<RankId> = self.topology.live_ranks().collect();
        let last = self.driver.last_step();
        let exchange = Exchange::new(
            plan.clone(),
            self.rank,
            &members,
            self.settings.deadlines,
            margin,
            last,
            Instant::now(),
        );
        self.driver.begin(exchange, communicator, board)?;

        let mut ended = None;
        let mut running: VecDeque<Fence> = VecDeque::new();
        let first = last.map_or(0, |id| id + 1);
        let mut step = first;
        loop {
            self.driver.step(step)?;
            let over = ended.is_some();
            let meeting =
                self.lockstep.meet(self.rank, step, Route { map: self.driver.phy2log().clone(), over })?;
            running.push_back(self.enqueue(step, &meeting));
            self.advance(&plan, &mut ended)?;
            // As a server does, the host runs at most one step ahead of its device.
            while running.len() > 1 {
                let Some(fence) = running.pop_front() else { break };
                self.wait(&fence, &plan, &mut ended)?;
            }
            step += 1;
            if meeting.iter().all(|route| route.over) {
                break;
            }
        }
        for fence in running {
            self.wait(&fence, &plan, &mut ended)?;
        }
        let Some(ended) = ended else {
            return Err(EngineError::RankLost { rank: self.rank, detail: "the exchange did not end".into() });
        };
        Ok(Reply::Exchanged(Box::new(Exchanged {
            outcome: ended.outcome,
            phy2log: self.driver.phy2log().clone(),
            waves,
            totals,
            steps: step - first,
            communicator: ended.communicator,
        })))
    }

    /// Enqueues the forward pass of a step on the rank's stream.
    fn enqueue(&mut self, step: u64, meeting: &[Route]) -> Fence {
        let routes = meeting.to_vec();
        let findings = self.findings.clone();
        let pause = self.settings.step_time;
        self.driver.stream().run(Box::new(move |memory| {
            forward(memory, step, &routes, &findings);
            if !pause.is_zero() {
                // What held when the step began must hold when it ends.
                std::thread::sleep(pause);
                forward(memory, step, &routes, &findings);
            }
            Ok(())
        }))
    }

    fn advance(
        &mut self,
        plan: &ExchangePlan,
        ended: &mut Option<crate::driver::Ended>,
    ) -> Result<(), EngineError> {
        let end = self.driver.progress()?;
        for wave in self.driver.take_committed() {
            self.check_wave(plan, wave)?;
        }
        if end.is_some() {
            *ended = end;
        }
        Ok(())
    }

    /// Waits for a step to end on the device, and goes on with the exchange meanwhile.
    fn wait(
        &mut self,
        fence: &Fence,
        plan: &ExchangePlan,
        ended: &mut Option<crate::driver::Ended>,
    ) -> Result<(), EngineError> {
        let deadline = Instant::now() + self.settings.step_timeout;
        while !fence.poll()? {
            if Instant::now() > deadline {
                let waited = self.settings.step_timeout;
                let what = "the end of a step on the device".into();
                return Err(eplb_comm::CommError::Timeout { rank: self.rank, what, waited }.into());
            }
            self.advance(plan, ended)?;
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    /// Checks the bytes of this rank's slots that a wave has just changed.
    fn check_wave(&self, plan: &ExchangePlan, wave: usize) -> Result<(), EngineError> {
        for commit in &plan.waves()[wave].commits {
            if self.topology.rank_of(commit.slot) == self.rank
                && let Some(expert) = commit.fill.expert()
            {
                self.findings.bytes(self.wrong(commit.layer, commit.slot, expert)?);
            }
        }
        Ok(())
    }

    fn wrong(&self, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<u64, EngineError> {
        Ok(match self.settings.verify {
            Verify::Off => 0,
            Verify::Sampled => self.memory.sample_wrong(layer, slot, expert, 4, u64::from(slot.0))?,
            Verify::Full => self.memory.count_wrong(layer, slot, expert)?,
        })
    }

    fn check_all(&self) -> Result<Reply, EngineError> {
        let mut bytes_wrong = 0;
        let map = self.driver.phy2log();
        for layer in 0..map.nrows() {
            for slot in self.memory.slots() {
                if let Ok(expert) = u32::try_from(map[(layer, slot)]) {
                    bytes_wrong += self.wrong(LayerId::at(layer), SlotId::at(slot), ExpertId(expert))?;
                }
            }
        }
        Ok(Reply::Checked { bytes_wrong })
    }
}
