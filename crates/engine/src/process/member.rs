//! One rank that is a process: it serves steps, and moves experts with the others when they agree to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::host::{HostMemory, HostStream, StreamOptions};
use eplb_comm::store::deadlines::after;
use eplb_comm::store::{Nonce, Store};
use eplb_comm::{Communicator, Fence, Memory};
use eplb_core::{LayerId, ModelLayout, Placement, RankId, SlotId, Topology};
use eplb_exchange::{Exchange, ExchangePlan, Outcome, Totals};
use ndarray::Array2;

use super::session::{Fact, Session, Stage, at};
use super::standing::{Standing, reconcile};
use super::steps::StepClock;
use super::transport::{Meeting, Source, Transport};
use crate::board::Board;
use crate::cluster::Settings;
use crate::cluster::lockstep::Route;
use crate::cluster::serve::Findings;
use crate::cluster::serving::Serving;
use crate::driver::{Driver, Ended, Held};
use crate::error::EngineError;

/// Proposals are not made with a larger margin than this, in steps.
const LARGEST_MARGIN: u64 = 1 << 16;

/// What all ranks are started with alike.
#[derive(Debug, Clone)]
pub struct Job {
    /// Ranks and slots.
    pub topology: Topology,
    /// Tensors of every layer.
    pub layout: Arc<ModelLayout>,
    /// The placement to begin with, if no rank has one.
    pub start: Placement,
    /// How ranks behave. `step_time` is the length of a step; zero means 1 ms.
    pub settings: Settings,
    /// What else the host wants to be the same on all ranks: the versions of itself and of its model. The version of this
    /// program is compared in any case.
    pub versions: String,
    /// Makes communicators.
    pub transport: Arc<dyn Transport>,
    /// Fills slots that no rank holds the bytes of.
    pub source: Arc<dyn Source>,
}

/// What one exchange did, as this rank saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchanged {
    /// Number of waves.
    pub waves: usize,
    /// What the waves add up to, over all ranks.
    pub totals: Totals,
    /// Steps that this rank served meanwhile.
    pub steps: u64,
    /// From planning the waves to this rank's last commit, checks included.
    pub time: Duration,
    /// Bytes that this rank found wrong.
    pub bytes_wrong: u64,
    /// The first slot that it found wrong, in words.
    pub first_wrong: Option<String>,
}

/// A rank in an epoch, with its weights.
#[derive(Debug)]
pub struct Member {
    pub(super) session: Session,
    /// Its topology is that of the session's epoch.
    pub(super) job: Job,
    // Dropped before the memory that it works on.
    pub(super) communicator: Option<Box<dyn Communicator>>,
    pub(super) serving: Serving,
    pub(super) placement: Placement,
    pub(super) version: u64,
    pub(super) clock: StepClock,
    margin: u64,
    /// Whether the map in force is known to be what the slots hold: not after an exchange that this rank itself broke off.
    pub(super) sound: bool,
    /// A wave that others may have committed.
    pub(super) undecided: Option<Undecided>,
    /// How the slots of the map and the memory are numbered: another numbering than the session's while an epoch is formed
    /// and it is not settled yet what is in force in it.
    pub(super) numbering: Numbering,
}

/// A wave of which it is not known here whether it is committed.
#[derive(Debug)]
pub(super) struct Undecided {
    pub(super) plan: Arc<ExchangePlan>,
    pub(super) wave: usize,
    /// The epoch, and the waves decided in it before the exchange.
    pub(super) epoch: u64,
    pub(super) base: u64,
    /// Whether the record of that epoch says that it is committed.
    pub(super) committed: bool,
}

/// A numbering of slots.
#[derive(Debug, Clone)]
pub(super) struct Numbering {
    pub(super) topology: Arc<Topology>,
    /// Whose slots they are.
    pub(super) roster: Vec<(RankId, Nonce)>,
}

impl Member {
    /// Takes a rank's place in a session: compares the job with the other ranks, finds out who holds what, fills the slots
    /// that nobody holds the bytes of, and makes the communicator.
    ///
    /// # Errors
    /// [`EngineError::AtStage`] with what differs, who did not come, or what there is no memory for.
    pub fn start(session: Session, job: Job) -> Result<Self, EngineError> {
        let rank = session.rank();
        let slots = job.topology.slots_of(rank);
        let staging = job.settings.limits.staging_bytes;
        let memory = job.transport.memory(rank, job.layout.clone(), slots, staging);
        let memory = at(rank, Stage::Standing, memory)?;
        Self::take_place(session, job, memory, Standing { version: 0, last_step: None, map: None })
    }

    /// Joins the next epoch after an exchange that failed, with the placement that this rank has; ranks that are gone may have
    /// been started anew meanwhile ([`Member::start`]). `store`: a new one, where the old one is lost.
    ///
    /// # Errors
    /// As [`Member::start`].
    pub fn rejoin(self, store: Option<Arc<dyn Store>>) -> Result<Self, EngineError> {
        let Self { session, job, communicator, serving, version, sound, .. } = self;
        drop(communicator);
        let standing = Standing {
            version,
            last_step: serving.driver.last_step(),
            map: sound.then(|| serving.driver.phy2log().as_ref().clone()),
        };
        let memory = serving.memory.clone();
        // Ends what its stream still runs.
        drop(serving);
        Self::take_place(session.rejoin(store)?, job, memory, standing)
    }

    fn take_place(
        mut session: Session,
        job: Job,
        memory: Arc<HostMemory>,
        standing: Standing,
    ) -> Result<Self, EngineError> {
        let rank = session.rank();
        session.compare(&facts(&job))?;
        let shape = job.start.phy2log().dim();
        let deadline = after(session.deadlines().store.collective);
        let said = session.group.all_gather("standing", &standing.encode(), deadline);
        let said = at(rank, Stage::Standing, said)?;
        let mut standings = Vec::new();
        for (&rank, bytes) in session.members().iter().zip(&said) {
            let unreadable = EngineError::Unreadable { rank, what: "its standing" };
            standings.push((rank, Standing::decode(bytes, shape).ok_or(unreadable)?));
        }
        let (version, map, holds) = reconcile(&standings, &job.topology, &job.start.phy2log().to_owned());
        let placement = at(rank, Stage::Standing, Placement::with_missing(job.start.experts(), map))?;
        let held = standings.iter().zip(&holds).any(|((other, _), &holds)| *other == rank && holds);
        if !held {
            let same = |layer, slot| {
                let own = standing.map.as_ref().map_or(-1, |map| map[(layer, slot)]);
                own >= 0 && own == placement.phy2log()[(layer, slot)]
            };
            at(rank, Stage::Standing, fill(&memory, &placement, job.source.as_ref(), same))?;
        }
        let last = standings.iter().filter_map(|(_, standing)| standing.last_step).max();
        let serving = at(rank, Stage::Standing, serve(rank, &job, memory, &placement))?;
        let numbering = Numbering { topology: serving.topology.clone(), roster: session.roster().to_vec() };
        let margin = job.settings.margin;
        let clock = StepClock::start(0, step_time(&job));
        let mut member = Self {
            session,
            job,
            communicator: None,
            serving,
            placement,
            version,
            clock,
            margin,
            sound: true,
            undecided: None,
            numbering,
        };
        member.connect()?;
        let deadline = after(member.session.deadlines().store.collective);
        let started = member.session.group.barrier("started", deadline);
        at(rank, Stage::Standing, started)?;
        member.clock = StepClock::start(last.map_or(0, |last| last + 1), step_time(&member.job));
        Ok(member)
    }

    /// A rank that has come into an epoch with nothing in its slots, and does not know what is in force in it.
    pub(super) fn unsettled(
        session: Session,
        job: Job,
        serving: Serving,
        placement: Placement,
        numbering: Numbering,
    ) -> Self {
        let (clock, margin) = (StepClock::start(0, step_time(&job)), job.settings.margin);
        Self {
            session,
            job,
            communicator: None,
            serving,
            placement,
            version: 0,
            clock,
            margin,
            sound: false,
            undecided: None,
            numbering,
        }
    }

    pub(super) fn connect(&mut self) -> Result<(), EngineError> {
        self.communicator = None;
        let rank = self.session.rank();
        // Who does not come is known by name here; a transport may only see that not all are there.
        let deadline = after(self.session.deadlines().store.collective);
        let all_here = self.session.group.barrier("connecting", deadline);
        at(rank, Stage::Connecting, all_here)?;
        let meeting = Meeting {
            rank,
            world_size: self.job.topology.ranks(),
            store: at(rank, Stage::Connecting, self.session.corner())?,
            memory: self.serving.memory.clone(),
            deadline: after(self.session.deadlines().communicator),
        };
        let made = at(rank, Stage::Connecting, self.job.transport.connect(meeting))?;
        self.communicator = Some(self.job.settings.hooks.communicator(rank, &self.serving.memory, made));
        Ok(())
    }

    /// This rank.
    pub fn rank(&self) -> RankId {
        self.session.rank()
    }

    /// The session.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Ranks and slots of the epoch.
    pub fn topology(&self) -> &Topology {
        &self.job.topology
    }

    /// The placement in force on this rank.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// This rank's slots and staging.
    pub fn memory(&self) -> &Arc<HostMemory> {
        &self.serving.memory
    }

    /// Takes another source for experts that nobody holds, from now on.
    pub fn set_source(&mut self, source: Arc<dyn Source>) {
        self.job.source = source;
    }

    /// Waves committed on this rank since the start of the run, and changes of members.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Steps of this rank that waited for a decision since it joined.
    pub fn held(&self) -> Held {
        self.serving.driver.held()
    }

    /// Moves the experts to `new`, which was planned on `loads` (`[L, E]`), while this rank serves steps. All ranks call it, with
    /// the same arguments.
    ///
    /// A proposal that came too late for some rank is made again with a larger margin.
    ///
    /// # Errors
    /// The exchange cannot be planned, ranks planned differently, or it was aborted or left undecided: what is in force then,
    /// [`Member::placement`] says; the rank has to [`Member::rejoin`].
    pub fn rebalance(&mut self, new: &Placement, loads: &Array2<f64>) -> Result<Exchanged, EngineError> {
        let rank = self.session.rank();
        let start = Instant::now();
        let mut sum: Option<Exchanged> = None;
        loop {
            let (outcome, mut exchanged) = self.attempt(new, loads)?;
            if let Some(before) = sum {
                exchanged.waves += before.waves;
                exchanged.steps += before.steps;
                exchanged.bytes_wrong += before.bytes_wrong;
                exchanged.first_wrong = before.first_wrong.or(exchanged.first_wrong);
            }
            exchanged.time = start.elapsed();
            match outcome {
                Outcome::Completed => return Ok(exchanged),
                _ if outcome.came_too_late() && self.margin < LARGEST_MARGIN => {
                    self.margin *= 4;
                    sum = Some(exchanged);
                    self.connect()?;
                }
                Outcome::Aborted { wave, cause, silent, .. } => {
                    let mut error = EngineError::Aborted { rank, wave, cause };
                    // Another rank may have heard of all that they stopped, find it worth another try, and wait for this one.
                    if !silent.is_empty() && self.session.board.lost().is_none() {
                        error = self.give_up(error);
                    }
                    return at(rank, Stage::Moving, Err(error));
                }
                Outcome::Broken { wave, cause, .. } => {
                    return at(rank, Stage::Moving, Err(EngineError::Aborted { rank, wave, cause }));
                }
                Outcome::Undecided { wave, cause, .. } => {
                    return at(rank, Stage::Moving, Err(EngineError::Unknown { rank, wave, cause }));
                }
            }
        }
    }

    fn attempt(&mut self, new: &Placement, loads: &Array2<f64>) -> Result<(Outcome, Exchanged), EngineError> {
        let rank = self.session.rank();
        let new = self.job.settings.hooks.placement(rank, Arc::new(new.clone()));
        let limits = &self.job.settings.limits;
        let plan = ExchangePlan::new(
            &self.placement,
            &new,
            &self.job.topology,
            &self.job.layout,
            Some(loads.view()),
            limits,
        );
        let plan = match plan {
            Ok(plan) => Arc::new(plan),
            Err(error) => return at(rank, Stage::Agreeing, Err(self.give_up(error.into()))),
        };
        let mut exchanged = Exchanged {
            waves: plan.waves().len(),
            totals: *plan.totals(),
            steps: 0,
            time: Duration::ZERO,
            bytes_wrong: 0,
            first_wrong: None,
        };
        let begun = self.session.board.begin();
        at(rank, Stage::Agreeing, begun)?;
        let (number, base) = self.session.board.position();
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for part in [plan.hash64(), number, base, self.margin] {
            hasher.update(&part.to_le_bytes());
        }
        let deadline = after(self.session.deadlines().store.collective);
        let agreed = self.session.group.agree_hash("waves", hasher.digest(), deadline);
        at(rank, Stage::Agreeing, agreed)?;
        if plan.waves().is_empty() {
            return Ok((Outcome::Completed, exchanged));
        }
        let (outcome, steps) = at(rank, Stage::Moving, self.exchange(&plan))?;
        exchanged.steps = steps;
        let found = self.serving.findings.take();
        exchanged.bytes_wrong = found.bytes_wrong;
        exchanged.first_wrong = found.first.map(|error| error.to_string());
        Ok((outcome, exchanged))
    }

    /// Tells the others that this rank does not come; returns why.
    fn give_up(&mut self, error: EngineError) -> EngineError {
        let deadline = after(self.session.deadlines().store.operation);
        // If even that fails, the others find out at their deadline.
        drop(self.session.group.give_up(&error.to_string(), deadline));
        error
    }

    /// Runs the waves while steps go on; how it ended, and the steps served.
    fn exchange(&mut self, plan: &Arc<ExchangePlan>) -> Result<(Outcome, u64), EngineError> {
        let rank = self.session.rank();
        let communicator = self.communicator.take().ok_or_else(|| EngineError::Backend {
            backend: self.job.transport.name(),
            detail: "its communicator failed before; join the next epoch".into(),
        })?;
        let hooks = &self.job.settings.hooks;
        let board = hooks.board(rank, self.session.board.clone());
        let (deadlines, last) = (self.job.settings.deadlines, self.serving.driver.last_step());
        let members = self.session.members();
        let exchange =
            Exchange::new(plan.clone(), rank, members, deadlines, self.margin, last, Instant::now());
        self.sound = false;
        self.serving.driver.begin(exchange, communicator, board)?;

        let mut ended: Option<Ended> = None;
        let mut running: VecDeque<Fence> = VecDeque::new();
        let mut steps = 0;
        while ended.is_none() {
            let step = self.clock.at(Instant::now());
            if self.serving.driver.last_step().is_none_or(|last| last < step) {
                match self.serving.driver.step(step) {
                    Ok(()) => {
                        let route = Route { map: self.serving.driver.phy2log().clone(), over: false };
                        running.push_back(self.serving.enqueue(step, vec![route]));
                        steps += 1;
                    }
                    // The pass does not run; the exchange has ended by that, and says how.
                    Err(EngineError::Undecided { .. } | EngineError::Broken { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            self.serving.advance(plan, &mut ended)?;
            // As a server does, the host runs at most one step ahead of its device.
            while running.len() > 1 {
                let Some(fence) = running.pop_front() else { break };
                self.serving.wait(&fence, plan, &mut ended)?;
            }
            if ended.is_none() {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        for fence in running {
            self.serving.wait(&fence, plan, &mut ended)?;
        }
        let Some(Ended { outcome, communicator }) = ended else {
            return Err(EngineError::RankLost { rank, detail: "the exchange did not end".into() });
        };
        let committed = match &outcome {
            Outcome::Completed => plan.waves().len(),
            Outcome::Broken { wave, .. } => *wave + 1,
            Outcome::Aborted { wave, .. } | Outcome::Undecided { wave, .. } => *wave,
        };
        self.version += committed as u64;
        self.sound = true;
        if let Outcome::Undecided { wave, .. } = outcome {
            let ((_, base), epoch) = (self.session.board.position(), self.session.epoch());
            self.undecided = Some(Undecided { plan: plan.clone(), wave, epoch, base, committed: false });
        }
        let map = self.serving.driver.phy2log().as_ref().clone();
        self.placement = Placement::with_missing(self.placement.experts(), map)?;
        if outcome == Outcome::Completed {
            self.communicator = Some(communicator);
        }
        Ok((outcome, steps))
    }

    /// Checks the bytes of every slot of this rank that the placement names; how many are wrong.
    ///
    /// # Errors
    /// A slot that cannot be read.
    pub fn check(&self) -> Result<u64, EngineError> {
        at(self.session.rank(), Stage::Reporting, self.serving.check_all())
    }

    /// What every rank has to say, in the order of the ranks, once all have come.
    pub(super) fn gather(&mut self, label: &str, message: &[u8]) -> Result<Vec<Vec<u8>>, EngineError> {
        let deadline = after(self.session.deadlines().store.collective);
        let gathered = self.session.group.all_gather(label, message, deadline);
        at(self.session.rank(), Stage::Reporting, gathered)
    }

    /// The message of the lowest rank, which makes it meanwhile.
    pub(super) fn plan_of_leader(
        &mut self,
        make: impl FnOnce(&Self) -> Result<Vec<u8>, EngineError>,
    ) -> Result<Vec<u8>, EngineError> {
        let (rank, leader) = (self.session.rank(), self.session.members()[0]);
        let message = if rank == leader {
            match make(self) {
                Ok(message) => message,
                Err(error) => return at(rank, Stage::Planning, Err(self.give_up(error))),
            }
        } else {
            Vec::new()
        };
        let deadline = after(self.session.plan_deadline());
        let message = self.session.group.broadcast("plan", leader, &message, deadline);
        at(rank, Stage::Planning, message)
    }
}

pub(super) fn step_time(job: &Job) -> Duration {
    if job.settings.step_time.is_zero() { Duration::from_millis(1) } else { job.settings.step_time }
}

/// What must be the same on all ranks.
fn facts(job: &Job) -> Vec<Fact> {
    let mut facts = lasting_facts(job);
    facts.push(("placement to start with", format!("{:016x}", job.start.hash64())));
    facts
}

/// What must be the same also for ranks that join later.
pub(super) fn lasting_facts(job: &Job) -> Vec<Fact> {
    let limits = &job.settings.limits;
    let topology = &job.topology;
    let ranks: Vec<usize> = topology.all_ranks().map(|rank| topology.slot_count(rank)).collect();
    vec![
        ("version of eplb", env!("CARGO_PKG_VERSION").to_owned()),
        ("version of the host or its model", job.versions.clone()),
        ("backend", job.transport.name().to_owned()),
        ("slots of each rank", format!("{ranks:?}")),
        ("layers and experts", format!("{} and {}", job.start.layers(), job.start.experts())),
        ("bytes of an expert", format!("{}", job.layout.layer(LayerId(0)).expert_bytes())),
        ("layout of the experts", format!("{:016x}", job.layout.hash64())),
        ("staging bytes", limits.staging_bytes.to_string()),
        ("drain floor", limits.drain_floor.to_string()),
        ("most replicas", format!("{:?}", limits.max_replicas)),
    ]
}

/// The parts of a rank that serve steps with a placement.
pub(super) fn serve(
    rank: RankId,
    job: &Job,
    memory: Arc<HostMemory>,
    placement: &Placement,
) -> Result<Serving, EngineError> {
    let stream = HostStream::new(memory.clone(), StreamOptions { delay: job.settings.stream_delay })?;
    let stream = job.settings.hooks.stream(rank, stream);
    let topology = Arc::new(job.topology.clone());
    Ok(Serving {
        rank,
        topology: topology.clone(),
        memory,
        driver: Driver::new(rank, topology, stream, placement),
        findings: Arc::new(Findings::default()),
        settings: job.settings.clone(),
    })
}

/// Fills the slots of a rank with the experts that a placement names, but for those that are `good` already.
fn fill(
    memory: &Arc<HostMemory>,
    placement: &Placement,
    source: &dyn Source,
    good: impl Fn(usize, usize) -> bool,
) -> Result<(), EngineError> {
    for layer in 0..placement.layers() {
        for slot in memory.slots() {
            let (layer_id, slot_id) = (LayerId::at(layer), SlotId::at(slot));
            if let Some(expert) = placement.expert_at(layer_id, slot_id)
                && !good(layer, slot)
            {
                source.fill(memory, layer_id, slot_id, expert)?;
            }
        }
    }
    Ok(())
}
