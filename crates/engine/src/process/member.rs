//! One rank that is a process: it serves steps, and moves experts with the others when they agree to.

use std::sync::Arc;

use eplb_comm::host::{HostMemory, HostStream, StreamOptions};
use eplb_comm::store::deadlines::after;
use eplb_comm::store::{Nonce, Store};
use eplb_comm::{Bulletin, Communicator, Memory};
use eplb_core::{LayerId, Placement, RankId, SlotId, Topology};
use eplb_exchange::ExchangePlan;

use super::job::{Job, facts, step_time};
use super::session::{Session, Stage, at};
use super::standing::{Standing, reconcile, wanting};
use super::steps::StepClock;
use super::transport::{Meeting, Source};
use crate::cluster::serve::Findings;
use crate::cluster::serving::Serving;
use crate::driver::{Driver, Held};
use crate::error::EngineError;
use crate::margin::Margin;

/// A rank in an epoch, with its weights.
#[derive(Debug)]
pub struct Member {
    pub(super) session: Session,
    /// Its topology is that of the session's epoch.
    pub(super) job: Job,
    // Dropped before the memory that it works on.
    pub(super) communicator: Option<Box<dyn Communicator>>,
    /// Where the ranks of the communicator say something to each other at once.
    pub(super) bulletin: Option<Arc<dyn Bulletin>>,
    pub(super) serving: Serving,
    pub(super) placement: Placement,
    pub(super) version: u64,
    pub(super) clock: StepClock,
    pub(super) margin: Margin,
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
        let agreed = reconcile(&standings, &job.topology, &job.start);
        let (version, placement) = at(rank, Stage::Standing, agreed)?;
        let places = wanting(standing.map.as_ref(), &placement, memory.slots());
        at(rank, Stage::Standing, fill(&memory, &placement, job.source.as_ref(), &places))?;
        let last = standings.iter().filter_map(|(_, standing)| standing.last_step).max();
        let serving = at(rank, Stage::Standing, serve(rank, &job, memory, &placement))?;
        let numbering = Numbering { topology: serving.topology.clone(), roster: session.roster().to_vec() };
        let margin = Margin::new(job.settings.margin);
        let clock = StepClock::start(0, step_time(&job));
        let mut member = Self {
            session,
            job,
            communicator: None,
            bulletin: None,
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
        let (clock, margin) = (StepClock::start(0, step_time(&job)), Margin::new(job.settings.margin));
        Self {
            session,
            job,
            communicator: None,
            bulletin: None,
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
        // Nobody has the communicator of before any more.
        self.session.clear_corners();
        let meeting = Meeting {
            rank,
            world_size: self.job.topology.ranks(),
            store: at(rank, Stage::Connecting, self.session.corner())?,
            memory: self.serving.memory.clone(),
            deadline: after(self.session.deadlines().communicator),
        };
        let made = at(rank, Stage::Connecting, self.job.transport.connect(meeting))?;
        let made = self.job.settings.hooks.communicator(rank, &self.serving.memory, made);
        self.bulletin = made.bulletin();
        self.communicator = Some(made);
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

    /// Rises by one with each wave committed on this rank since the start of the run, and by more with each change of members.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Steps from the last that any rank has begun to the one that the next commit is proposed for.
    pub fn margin(&self) -> u64 {
        self.margin.steps()
    }

    /// What commits have cost the steps of this rank in its epoch.
    pub fn held(&self) -> Held {
        self.serving.driver.held()
    }

    /// Tells the others that this rank does not come; returns why.
    pub(super) fn give_up(&mut self, error: EngineError) -> EngineError {
        let deadline = after(self.session.deadlines().store.operation);
        // If even that fails, the others find out at their deadline.
        drop(self.session.group.give_up(&error.to_string(), deadline));
        error
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

/// Fills places, as layers and slots, with the experts that a placement names.
fn fill(
    memory: &Arc<HostMemory>,
    placement: &Placement,
    source: &dyn Source,
    places: &[(usize, usize)],
) -> Result<(), EngineError> {
    for &(layer, slot) in places {
        let (layer, slot) = (LayerId::at(layer), SlotId::at(slot));
        if let Some(expert) = placement.expert_at(layer, slot) {
            source.fill(memory, layer, slot, expert)?;
        }
    }
    Ok(())
}
