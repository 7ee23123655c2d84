//! A rank on host memory changes members with the others.

use std::sync::Arc;
use std::time::Instant;

use eplb_comm::store::deadlines::after;
use eplb_comm::store::{GroupError, Store};
use eplb_core::{LayerId, Placement, RankId, Topology};
use eplb_exchange::Cause;
use ndarray::Array2;

use super::change::{Reform, restrict};
use super::error::MembershipError;
use super::in_force::Found;
use super::restore::Fetch;
use crate::deadlines::Deadlines;
use crate::error::EngineError;
use crate::process::job::{Job, lasting_facts};
use crate::process::member::{Member, Numbering, serve};
use crate::process::moving::Exchanged;
use crate::process::session::{Session, Stage, at};
use crate::process::standing::decode_map;

/// Plans a placement for the ranks of a topology, some of which may be dead, from the one in force, in which experts may be
/// missing. Returns it with the loads that it was planned on, `[L, E]`. Called on the lowest rank; the others get what it says.
pub type Replan<'a> = dyn FnMut(&Placement, &Topology) -> Result<(Placement, Array2<f64>), EngineError> + 'a;

/// What a reform did, as this rank saw it.
#[derive(Debug, Clone, PartialEq)]
pub enum Reformed {
    /// This rank has left: its experts are elsewhere, and nobody reads its slots any more.
    Left {
        /// The exchange in which they moved off.
        drained: Exchanged,
    },
    /// This rank belongs to the new epoch.
    Stayed(Box<Stayed>),
}

/// The new epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Stayed {
    /// Number of the epoch.
    pub epoch: u64,
    /// This rank in it.
    pub rank: RankId,
    /// Ranks of [`Reform::topology`] that belong to it, in the order of their numbers in it.
    pub planned: Vec<RankId>,
    /// Ranks of [`Reform::topology`] that did not come.
    pub absent: Vec<RankId>,
    /// Whether this rank had to carry out the commit of a wave that it did not know to be committed.
    pub rolled_forward: bool,
    /// Experts that nobody held any more, and the slots that they were fetched into.
    pub fetched: Vec<Fetch>,
    /// Experts for which there is no slot: the ranks have fewer slots than the model experts.
    pub left_out: Vec<(LayerId, eplb_core::ExpertId)>,
    /// The exchange in which the experts of ranks that leave moved off, if any do.
    pub drained: Option<Exchanged>,
    /// The exchange to the placement planned for the new ranks. `None` if experts had to be left out.
    pub filled: Option<Exchanged>,
}

impl Member {
    /// Changes the members with the others: all members call it with the same change, ranks that leave included, between
    /// two exchanges or after one that failed. `replan` finds the placements that it takes.
    ///
    /// Whatever befalls others on the way, their deaths included, this rank ends with a new epoch, or with an error that says
    /// why not; then it keeps what it holds, and may reform again. Steps pause from the closing of the old epoch until the
    /// new one is settled. A member that dies meanwhile is left out, and the others begin anew without it.
    ///
    /// # Errors
    /// [`EngineError::AtStage`]. [`MembershipError::Excluded`]: this rank does not belong to the others any more.
    pub fn reform(&mut self, reform: &Reform, replan: &mut Replan<'_>) -> Result<Reformed, EngineError> {
        self.reform_in(None, reform, replan)
    }

    /// As [`Member::reform`], with a new store, given to all survivors alike, where the old one is lost.
    ///
    /// # Errors
    /// As [`Member::reform`].
    pub fn reform_in(
        &mut self,
        mut store: Option<Arc<dyn Store>>,
        reform: &Reform,
        replan: &mut Replan<'_>,
    ) -> Result<Reformed, EngineError> {
        let rank = self.session.rank();
        at(rank, Stage::Reforming, reform.check(&self.job.topology))?;
        let leaving = reform.leaving();
        let mut drained = None;
        if !leaving.is_empty() {
            let exchanged = self.move_off(&leaving, replan)?;
            if leaving.contains(&rank) {
                self.communicator = None;
                return Ok(Reformed::Left { drained: exchanged });
            }
            drained = Some(exchanged);
        }
        self.communicator = None;
        let begun = Instant::now();
        let mut next = reform.clone();
        loop {
            self.close(store.is_some())?;
            let same = facts_of(&self.job, &next.topology);
            let planned = self.session.reform(&next, same, store.take())?;
            self.job.topology = at(rank, Stage::Reforming, restrict(&next.topology, &planned))?;
            match self.settle(replan) {
                Ok(found) => {
                    let absent = next.topology.all_ranks().filter(|rank| !planned.contains(rank));
                    let absent = absent.collect();
                    let stayed = self.complete(found, planned, absent, drained)?;
                    return Ok(Reformed::Stayed(Box::new(stayed)));
                }
                // Somebody has died since: the rest goes on from this epoch.
                Err(error)
                    if is_absence(&error) && begun.elapsed() < self.session.deadlines().reform.whole =>
                {
                    next = Reform::survivors(&self.job.topology, &suspects(&error));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Joins ranks that are there already, as rank `planned` of the topology that they change to, which is `job`'s. Waits for
    /// them for at most `wait`. All slots are empty at first; what they hold in the end the placement says.
    ///
    /// # Errors
    /// [`EngineError::AtStage`] with [`MembershipError::JoinTimeout`] if no epoch formed with this rank,
    /// [`MembershipError::JoinRefused`] if it has not what the others have; else as [`Member::reform`].
    pub fn join(
        store: Arc<dyn Store>,
        planned: RankId,
        mut job: Job,
        wait: std::time::Duration,
        deadlines: &Deadlines,
        replan: &mut Replan<'_>,
    ) -> Result<(Self, Stayed), EngineError> {
        let same = facts_of(&job, &job.topology);
        let slots = job.topology.slots_of(planned);
        let staging = job.settings.limits.staging_bytes;
        let memory = job.transport.memory(planned, job.layout.clone(), slots, staging);
        let memory = at(planned, Stage::Reforming, memory)?;
        let (session, members) = Session::join_members(store, planned, same, wait, deadlines)?;
        let everybody = job.topology.clone();
        let empty = Array2::from_elem((job.start.layers(), everybody.slots()), -1);
        let placement = Placement::with_missing(job.start.experts(), empty);
        let placement = at(planned, Stage::Reforming, placement)?;
        let serving = at(planned, Stage::Reforming, serve(planned, &job, memory, &placement))?;
        job.topology = at(planned, Stage::Reforming, restrict(&everybody, &members))?;
        let numbering = Numbering { topology: Arc::new(everybody.clone()), roster: Vec::new() };
        let mut member = Self::unsettled(session, job, serving, placement, numbering);
        let absent = everybody.all_ranks().filter(|rank| !members.contains(rank)).collect();
        match member.settle(replan) {
            Ok(found) => {
                let stayed = member.complete(found, members, absent, None)?;
                Ok((member, stayed))
            }
            Err(error) if is_absence(&error) => {
                let again = Reform::survivors(&member.job.topology, &suspects(&error));
                match member.reform(&again, replan)? {
                    Reformed::Stayed(stayed) => Ok((member, *stayed)),
                    Reformed::Left { .. } => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Moves the experts of ranks that leave to those that stay.
    fn move_off(&mut self, leaving: &[RankId], replan: &mut Replan<'_>) -> Result<Exchanged, EngineError> {
        let rank = self.session.rank();
        let dead = at(rank, Stage::Reforming, self.job.topology.clone().with_dead(leaving))?;
        let (experts, slots) = (self.placement.experts(), dead.live_slots());
        if slots < experts {
            let layer = LayerId(0);
            return at(rank, Stage::Reforming, Err(MembershipError::NoRoom { layer, experts, slots }));
        }
        let (target, loads) = self.plan_together(&dead, replan)?;
        if let Some((layer, _)) = target.missing().next() {
            return at(rank, Stage::Reforming, Err(MembershipError::NoRoom { layer, experts, slots }));
        }
        let exchanged = self.rebalance(&target, &loads)?;
        // Who leaves is done with everything when it returns, and so is everybody with it.
        let deadline = after(self.session.deadlines().store.collective);
        at(rank, Stage::Reforming, self.session.group.barrier("moved off", deadline))?;
        Ok(exchanged)
    }

    /// The lowest rank plans for a topology; all return its plan and loads.
    pub(super) fn plan_together(
        &mut self,
        topology: &Topology,
        replan: &mut Replan<'_>,
    ) -> Result<(Placement, Array2<f64>), EngineError> {
        let rank = self.session.rank();
        let (experts, shape) = (self.placement.experts(), self.placement.phy2log().dim());
        let message = self.plan_of_leader(|member| {
            let (placement, loads) = replan(&member.placement, topology)?;
            let mut out = Vec::new();
            placement.phy2log().iter().for_each(|entry| out.extend(entry.to_le_bytes()));
            loads.iter().for_each(|load| out.extend(load.to_le_bytes()));
            Ok(out)
        })?;
        let read = || {
            let (map, loads) = message.split_at_checked(shape.0 * shape.1 * 4)?;
            let map = decode_map(map, shape)?;
            let (loads, rest) = loads.as_chunks::<8>();
            let loads = loads.iter().map(|load| f64::from_le_bytes(*load)).collect();
            let loads = Array2::from_shape_vec((shape.0, experts), loads).ok()?;
            rest.is_empty().then_some((map, loads))
        };
        let leader = self.session.members()[0];
        let unreadable = EngineError::Unreadable { rank: leader, what: "its plan" };
        let (map, loads) = at(rank, Stage::Planning, read().ok_or(unreadable))?;
        Ok((at(rank, Stage::Planning, Placement::with_missing(experts, map))?, loads))
    }

    /// Closes the epoch; its record may say what became of the wave of which this rank does not know.
    fn close(&mut self, store_is_lost: bool) -> Result<(), EngineError> {
        let epoch = self.session.epoch();
        match self.session.close() {
            Ok(last) => {
                if let Some(open) = self.undecided.as_mut().filter(|open| open.epoch == epoch) {
                    open.committed |= last.commits(open.base, open.wave);
                }
                Ok(())
            }
            // Nobody decides anything in a store that is lost.
            Err(_) if store_is_lost => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Moves the experts to where they were planned to be in the new epoch.
    fn complete(
        &mut self,
        found: Found,
        planned: Vec<RankId>,
        absent: Vec<RankId>,
        drained: Option<Exchanged>,
    ) -> Result<Stayed, EngineError> {
        let Found { rolled_forward, fetched, left_out, target, loads } = found;
        let filled = if left_out.is_empty() { Some(self.rebalance(&target, &loads)?) } else { None };
        let (epoch, rank) = (self.session.epoch(), self.session.rank());
        Ok(Stayed { epoch, rank, planned, absent, rolled_forward, fetched, left_out, drained, filled })
    }
}

/// Hashes of what must be the same on all ranks of a topology: everything, and the layout alone.
fn facts_of(job: &Job, topology: &Topology) -> (u64, u64) {
    let job = Job { topology: topology.clone(), ..job.clone() };
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for (what, value) in lasting_facts(&job) {
        hasher.update(format!("{what}\t{value}\n").as_bytes());
    }
    hasher.update(&super::change::topology_hash(topology).to_le_bytes());
    (hasher.digest(), job.layout.hash64())
}

/// Ranks that an error holds for dead: those that gave no sign of life, or did not come. For [`Reform::suspects`].
pub fn suspects(error: &EngineError) -> Vec<RankId> {
    match error {
        EngineError::AtStage { error, .. } => suspects(error),
        EngineError::Aborted {
            cause: Cause::PeerSilent { rank, .. } | Cause::PeerLeft { rank, .. }, ..
        } => vec![*rank],
        EngineError::Group(GroupError::Missing { ranks, .. }) => ranks.clone(),
        _ => Vec::new(),
    }
}

/// Whether an error says that somebody did not come: the others may go on without it.
fn is_absence(error: &EngineError) -> bool {
    match error {
        EngineError::AtStage { error, .. } => is_absence(error),
        EngineError::Group(error) => {
            matches!(
                error,
                GroupError::Missing { .. } | GroupError::GaveUp { .. } | GroupError::Broken { .. }
            )
        }
        EngineError::Backend { .. } => true,
        _ => false,
    }
}
