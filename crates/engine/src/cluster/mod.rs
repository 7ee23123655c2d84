//! All ranks of a group as threads of one process, each with its own weights on host memory.
//!
//! Every rank owns buffers for its slots, a stream that runs its forward passes, and a [`Driver`]. Ranks take
//! steps together while experts move. A step checks that each slot that any rank's map names holds that expert for as long
//! as the step runs; expected bytes are computed from names ([`eplb_comm::pattern`]), never read from a source.

mod hooks;
pub(crate) mod lockstep;
pub(crate) mod serve;
pub(crate) mod serving;
pub mod weights;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use eplb_comm::host::{HostMemory, HostStream, StreamOptions};
use eplb_comm::local::LocalGroup;
use eplb_comm::{CommError, Communicator, Memory};
use eplb_core::{LayerId, ModelLayout, Placement, RankId, SlotId, Topology};
use eplb_exchange::plan::SERVING_WAVE_COST;
use eplb_exchange::{Cause, Deadlines, Limits, Outcome, Totals};
use ndarray::Array2;

use crate::board::LocalBoard;
use crate::driver::Driver;
use crate::error::EngineError;
use crate::margin::Margin;
pub use hooks::{Hooks, NoHooks, ServingStream, Work};
use lockstep::Lockstep;
use serve::Findings;
use serving::Serving;
use worker::{Command, Exchanged, Reply, Task, Worker};

/// How the bytes of slots are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Every byte of every slot.
    #[default]
    Full,
    /// A few places of every slot.
    Sampled,
    /// Not at all; steps still check that slots hold the experts that maps name.
    Off,
}

/// How the ranks of a cluster behave.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What exchanges may use.
    pub limits: Limits,
    /// How bytes are checked.
    pub verify: Verify,
    /// Threads that copy bytes between ranks.
    pub copy_threads: usize,
    /// Deadlines of exchanges.
    pub deadlines: Deadlines,
    /// Least time of a forward pass on the device.
    pub step_time: Duration,
    /// Longest time that a rank waits for the others in a step, or for its device.
    pub step_timeout: Duration,
    /// Pause before each operation of a rank's stream, so that completions come late.
    pub stream_delay: Duration,
    /// Steps between the last step begun and the step proposed for a commit.
    pub margin: u64,
    /// What is put between the parts of a rank: faults, in tests.
    pub hooks: Arc<dyn Hooks>,
}

impl Settings {
    /// Defaults for a layout and topology.
    pub fn new(layout: &ModelLayout, topology: &Topology) -> Self {
        Self {
            limits: Limits { wave_cost: SERVING_WAVE_COST, ..Limits::new(layout, topology) },
            verify: Verify::Full,
            copy_threads: std::thread::available_parallelism().map_or(1, usize::from),
            deadlines: Deadlines::default(),
            step_time: Duration::ZERO,
            step_timeout: Duration::from_secs(60),
            stream_delay: Duration::ZERO,
            margin: 4,
            hooks: Arc::new(NoHooks),
        }
    }
}

/// What one exchange did.
#[derive(Debug, Clone, PartialEq)]
pub struct Moved {
    /// Waves that were committed.
    pub waves: usize,
    /// What they add up to.
    pub totals: Totals,
    /// Steps that every rank served meanwhile.
    pub steps: u64,
    /// From the first rank's plan of waves to the last rank's last commit, checks included.
    pub time: Duration,
    /// Bytes found wrong by steps and checks, on all ranks.
    pub bytes_wrong: u64,
    /// The first slot that a step found in use or holding something else.
    pub first_wrong: Option<CommError>,
}

/// Ranks, their weights and the placement in force.
#[derive(Debug)]
pub struct Cluster {
    topology: Arc<Topology>,
    settings: Settings,
    margin: Margin,
    memories: Vec<Arc<HostMemory>>,
    communicators: Vec<Box<dyn Communicator>>,
    placement: Placement,
    findings: Arc<Findings>,
    lockstep: Arc<Lockstep>,
    commands: Vec<Sender<Command>>,
    replies: Receiver<(RankId, Reply)>,
    threads: Vec<JoinHandle<()>>,
}

impl Cluster {
    /// Starts the ranks with a placement in force and its experts' bytes in their slots.
    ///
    /// # Errors
    /// A placement of another shape, or no memory or threads.
    pub fn start(
        topology: &Topology,
        layout: ModelLayout,
        placement: Placement,
        settings: Settings,
    ) -> Result<Self, EngineError> {
        placement.fits(topology)?;
        let (topology, layout) = (Arc::new(topology.clone()), Arc::new(layout));
        let mut memories = Vec::new();
        for rank in topology.all_ranks() {
            let slots = topology.slots_of(rank);
            let memory = HostMemory::new(rank, layout.clone(), slots, settings.limits.staging_bytes)?;
            fill(&memory, &placement)?;
            memories.push(memory);
        }
        let lockstep = Arc::new(Lockstep::new(topology.ranks(), settings.step_timeout));
        let findings = Arc::new(Findings::default());
        let (reply, replies) = unbounded();
        let (mut commands, mut threads) = (Vec::new(), Vec::new());
        for (rank, memory) in topology.all_ranks().zip(&memories) {
            let stream = HostStream::new(memory.clone(), StreamOptions { delay: settings.stream_delay })?;
            let stream = settings.hooks.stream(rank, stream);
            let serving = Serving {
                rank,
                topology: topology.clone(),
                memory: memory.clone(),
                driver: Driver::new(rank, topology.clone(), stream, &placement),
                findings: findings.clone(),
                settings: settings.clone(),
            };
            let worker = Worker { serving, experts: placement.experts(), lockstep: lockstep.clone() };
            let (command, inbox) = unbounded();
            let reply = reply.clone();
            let thread = std::thread::Builder::new()
                .name(format!("rank-{}", rank.0))
                .spawn(move || worker.run(&inbox, &reply))
                .map_err(|error| EngineError::RankLost { rank, detail: format!("no thread: {error}") })?;
            commands.push(command);
            threads.push(thread);
        }
        let mut cluster = Self {
            topology,
            margin: Margin::new(settings.margin),
            settings,
            memories,
            communicators: Vec::new(),
            placement,
            findings,
            lockstep,
            commands,
            replies,
            threads,
        };
        cluster.make_communicators()?;
        Ok(cluster)
    }

    fn make_communicators(&mut self) -> Result<(), EngineError> {
        let group = LocalGroup::new(self.memories.clone(), self.settings.copy_threads)?;
        self.communicators = group
            .into_iter()
            .zip(&self.memories)
            .map(|(communicator, memory)| {
                self.settings.hooks.communicator(memory.rank(), memory, Box::new(communicator))
            })
            .collect();
        Ok(())
    }

    /// The placement in force.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The memory of a rank.
    pub fn memory(&self, rank: RankId) -> &Arc<HostMemory> {
        &self.memories[rank.index()]
    }

    /// Moves the experts to `new`, whose loads (`[L, E]`) were planned on, while every rank serves steps.
    ///
    /// A proposal that came too late for some rank is made again with a larger margin, which shrinks again with each exchange
    /// that completes.
    ///
    /// # Errors
    /// The exchange cannot be planned, was aborted (what was committed before stays in force, see
    /// [`Cluster::placement`]), or a rank failed.
    pub fn rebalance(&mut self, new: &Placement, loads: &Array2<f64>) -> Result<Moved, EngineError> {
        let (new, loads) = (Arc::new(new.clone()), Arc::new(loads.clone()));
        let start = Instant::now();
        let mut sum: Option<Moved> = None;
        loop {
            let (outcome, mut moved) = self.attempt(&new, &loads)?;
            if let Some(before) = &sum {
                moved.waves += before.waves;
                moved.totals += before.totals;
                moved.steps += before.steps;
                moved.bytes_wrong += before.bytes_wrong;
                moved.first_wrong = before.first_wrong.clone().or(moved.first_wrong);
            }
            moved.time = start.elapsed();
            match outcome {
                Outcome::Completed => {
                    self.margin.shrink();
                    return Ok(moved);
                }
                _ if outcome.came_too_late() && self.margin.grow() => {
                    self.make_communicators()?;
                    sum = Some(moved);
                }
                Outcome::Aborted { wave, cause, .. }
                | Outcome::Broken { wave, cause, .. }
                | Outcome::Undecided { wave, cause, .. } => {
                    self.make_communicators()?;
                    return Err(EngineError::Aborted { rank: RankId(0), wave, cause });
                }
            }
        }
    }

    fn attempt(
        &mut self,
        new: &Arc<Placement>,
        loads: &Arc<Array2<f64>>,
    ) -> Result<(Outcome, Moved), EngineError> {
        let members: Vec<RankId> = self.topology.live_ranks().collect();
        let board = LocalBoard::new(&members);
        let communicators = std::mem::take(&mut self.communicators);
        let ranks = self.topology.all_ranks().zip(&self.commands).zip(communicators);
        for ((rank, command), communicator) in ranks {
            let task = Task {
                new: self.settings.hooks.placement(rank, new.clone()),
                loads: loads.clone(),
                limits: self.settings.limits.clone(),
                margin: self.margin.steps(),
                communicator,
                board: self.settings.hooks.board(rank, board.clone()),
            };
            // A rank that is gone is found out below, when its reply does not come.
            drop(command.send(Command::Exchange(Box::new(task))));
        }
        let mut done: Vec<Option<Exchanged>> = self.memories.iter().map(|_| None).collect();
        for (rank, reply) in self.collect()? {
            if let Reply::Exchanged(exchanged) = reply {
                done[rank.index()] = Some(*exchanged);
            }
        }
        let done: Vec<Exchanged> = done.into_iter().flatten().collect();
        let Some(first) = done.first() else {
            return Err(EngineError::RankLost { rank: RankId(0), detail: "no rank replied".into() });
        };
        if let Some(other) = done.iter().position(|d| d.phy2log != first.phy2log) {
            return Err(EngineError::Diverged { a: RankId(0), b: RankId::at(other) });
        }
        let found = self.findings.take();
        let moved = Moved {
            waves: first.waves,
            totals: first.totals,
            steps: first.steps,
            time: Duration::ZERO,
            bytes_wrong: found.bytes_wrong,
            first_wrong: found.first,
        };
        // The rank whose cause says most: one of its own rather than "a peer failed".
        let outcome = done
            .iter()
            .map(|d| &d.outcome)
            .find(|o| matches!(o, Outcome::Aborted { cause, .. } if is_root(cause)))
            .unwrap_or(&first.outcome)
            .clone();
        self.placement = Placement::with_missing(self.placement.experts(), first.phy2log.as_ref().clone())?;
        self.communicators = done.into_iter().map(|d| d.communicator).collect();
        Ok((outcome, moved))
    }

    /// Checks the bytes of every slot on every rank; returns how many are wrong.
    ///
    /// # Errors
    /// A slot that cannot be read, or a rank that failed.
    pub fn check(&mut self) -> Result<u64, EngineError> {
        for command in &self.commands {
            drop(command.send(Command::Check));
        }
        let mut sum = 0;
        for (_, reply) in self.collect()? {
            if let Reply::Checked { bytes_wrong } = reply {
                sum += bytes_wrong;
            }
        }
        Ok(sum)
    }

    /// One reply of every rank. Of several errors the one that is not "another rank did not come" is returned.
    fn collect(&mut self) -> Result<Vec<(RankId, Reply)>, EngineError> {
        let mut replies = Vec::new();
        let mut failure: Option<EngineError> = None;
        // Every wait inside a rank has a deadline; the longest is a step's or a transfer's.
        let limit =
            2 * (self.settings.step_timeout + self.settings.deadlines.transfer) + Duration::from_secs(600);
        while replies.len() < self.commands.len() {
            match self.replies.recv_timeout(limit) {
                Ok((rank, Reply::Failed(error))) => {
                    let better = matches!(failure, None | Some(EngineError::StepTimeout { .. }));
                    if better {
                        failure = Some(error);
                    }
                    replies.push((rank, Reply::Checked { bytes_wrong: 0 }));
                }
                Ok(reply) => replies.push(reply),
                Err(_) => {
                    let silent =
                        self.topology.all_ranks().find(|r| replies.iter().all(|(rank, _)| rank != r));
                    let rank = silent.unwrap_or_default();
                    return Err(EngineError::RankLost { rank, detail: format!("no reply within {limit:?}") });
                }
            }
        }
        replies.sort_by_key(|(rank, _)| *rank);
        match failure {
            // A slot that held something else while a step named it says more than what followed from it.
            Some(error) => Err(self.findings.take().first.map_or(error, EngineError::from)),
            None => Ok(replies),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.lockstep.break_up();
        self.commands.clear();
        for thread in self.threads.drain(..) {
            // A rank that panicked has been reported as lost already.
            drop(thread.join());
        }
    }
}

/// Whether a cause names what happened here, and not only that another rank said so.
fn is_root(cause: &Cause) -> bool {
    !matches!(cause, Cause::PeerFailed { .. } | Cause::ByRecord { .. })
}

/// Writes the bytes of the experts that a rank holds into its slots.
fn fill(memory: &Arc<HostMemory>, placement: &Placement) -> Result<(), EngineError> {
    for layer in (0..placement.layers()).map(LayerId::at) {
        for slot in memory.slots().map(SlotId::at) {
            if let Some(expert) = placement.expert_at(layer, slot) {
                memory.fill(layer, slot, expert)?;
            }
        }
    }
    Ok(())
}
