//! A new epoch: the same ranks, agreed anew on who holds what.

use std::sync::Arc;

use eplb_comm::store::deadlines::after;
use eplb_comm::store::{Interrupt, Store};
use eplb_core::{LayerId, Placement, SlotId};
use ndarray::Array2;

use super::facts::facts;
use super::progress::Progress;
use super::shared::{BARRED, PUBLISH, Set, Shared, lock};
use crate::error::EngineError;
use crate::process::session::at;
use crate::process::standing::{Standing, reconcile, wanting};
use crate::process::{Session, Source, Stage, Transport};

impl Progress {
    /// Leaves the epoch and joins the next; what is in force then is what the ranks with the newest placement hold.
    pub(super) fn reform(&mut self) -> Result<(), EngineError> {
        self.close();
        let shared = self.shared.clone();
        let mut session = match self.session.take() {
            Some(session) => session.rejoin(None)?,
            None => join(&shared, self.store.clone())?,
        };
        agree(&shared, &mut session, &*self.transport, self.source.as_deref(), false)?;
        self.enter(session);
        self.open()?;
        // Only now is it known that all ranks go on from the same.
        lock(&shared.core).lanes.iter_mut().for_each(|lane| lane.driver.unbar());
        shared.clear(BARRED);
        Ok(())
    }

    /// Makes the communicators, and waits until all ranks have theirs.
    pub(super) fn open(&mut self) -> Result<(), EngineError> {
        let connected = self.connect();
        let Some(session) = &mut self.session else { return connected };
        let deadlines = &self.shared.deadlines.store;
        if let Err(error) = connected {
            // If even that fails, the others find out at their deadline.
            drop(session.group.give_up(&error.to_string(), after(deadlines.operation)));
            return Err(error);
        }
        let started = session.group.barrier("started", after(deadlines.collective));
        at(self.shared.rank, Stage::Rendezvous, started)
    }
}

/// Joins an epoch in which the engine waits for others for as long as its host wants to be in it.
pub(super) fn join(shared: &Arc<Shared>, store: Arc<dyn Store>) -> Result<Session, EngineError> {
    let asked = shared.clone();
    let interrupt = Interrupt::new(move || asked.desk.leaves_epoch());
    Session::join_unless(store, shared.rank, shared.world_size, &shared.deadlines, interrupt)
}

/// Compares with the other members what must be the same, and who holds what; takes over the placement that all go on from. A rank
/// that is `fresh` holds the placement to start with, and nobody relies on that if others have gone on since; any other runs no
/// step from here on until it is unbarred. A rank that fails tells the others why.
pub(super) fn agree(
    shared: &Shared,
    session: &mut Session,
    transport: &dyn Transport,
    source: Option<&dyn Source>,
    fresh: bool,
) -> Result<(), EngineError> {
    let agreed = agree_on_all(shared, session, transport, source, fresh);
    if let Err(error) = &agreed {
        // If even that fails, the others find out at their deadline.
        drop(session.group.give_up(&error.to_string(), after(shared.deadlines.store.operation)));
    }
    agreed
}

fn agree_on_all(
    shared: &Shared,
    session: &mut Session,
    transport: &dyn Transport,
    source: Option<&dyn Source>,
    fresh: bool,
) -> Result<(), EngineError> {
    session.compare(&facts(shared, transport))?;
    let mut all = Vec::new();
    for which in 0..shared.sets.len() {
        all.push(settle(shared, session, which, fresh)?);
    }
    // Nothing is changed before this, so that a rank that fails before goes on as it was.
    if !fresh {
        lock(&shared.core).lanes.iter_mut().for_each(|lane| lane.driver.bar());
        shared.raise(BARRED);
    }
    for (which, agreed) in all.into_iter().enumerate() {
        at(shared.rank, Stage::Standing, take_over(shared, which, agreed, source, fresh))?;
    }
    Ok(())
}

/// What the ranks go on from in a layer set: its version, and the placement.
fn settle(
    shared: &Shared,
    session: &mut Session,
    which: usize,
    fresh: bool,
) -> Result<(u64, Placement), EngineError> {
    let (rank, set) = (shared.rank, &shared.sets[which]);
    let standing = {
        let mut core = lock(&shared.core);
        let lane = &mut core.lanes[which];
        lane.driver.distrust();
        let map = (!fresh).then(|| lane.driver.phy2log().as_ref().clone());
        Standing { version: lane.version, last_step: shared.last_step(), map }
    };
    let deadline = after(shared.deadlines.store.collective);
    let said = session.group.all_gather(&format!("standing-{which}"), &standing.encode(), deadline);
    let said = at(rank, Stage::Standing, said)?;
    let mut standings = Vec::new();
    for (&other, bytes) in session.members().iter().zip(&said) {
        let unreadable = EngineError::Unreadable { rank: other, what: "its standing" };
        let standing = Standing::decode(bytes, set.start.phy2log().dim()).ok_or(unreadable)?;
        standings.push((other, standing));
    }
    Ok(reconcile(&standings, &set.topology, &set.start)?)
}

/// Makes a layer set of this rank what was agreed.
fn take_over(
    shared: &Shared,
    which: usize,
    (version, placement): (u64, Placement),
    source: Option<&dyn Source>,
    fresh: bool,
) -> Result<(), EngineError> {
    let set = &shared.sets[which];
    let enter = |placement: &Placement| {
        let mut core = lock(&shared.core);
        let mut lane = core.lanes.remove(which);
        lane.driver = lane.driver.renewed(set.topology.clone(), placement);
        if !fresh {
            lane.driver.bar();
        }
        core.lanes.insert(which, lane);
    };
    let mine = lock(&shared.core).lanes[which].driver.phy2log().as_ref().clone();
    let places = wanting(Some(&mine), &placement, set.memory.range());
    if !places.is_empty() {
        // If this fails half-way, the next attempt must not rely on slots that hold the one or the other.
        enter(&Placement::with_missing(set.experts, without(mine, &places))?);
        refill(set, &placement, &places, source)?;
    }
    enter(&placement);
    let mut core = lock(&shared.core);
    let lane = &mut core.lanes[which];
    lane.version = version;
    let changed = *lane.driver.phy2log() != lane.published;
    if !changed {
        lane.published = Arc::clone(lane.driver.phy2log());
    } else if fresh {
        // No step has run yet, and the host reads the maps before the first.
        shared.publish(which, lane, 0)?;
        lane.driver.stream().release()?;
    } else {
        shared.raise(PUBLISH);
    }
    Ok(())
}

/// A map in which some places hold nothing.
fn without(mut map: Array2<i32>, places: &[(usize, usize)]) -> Array2<i32> {
    places.iter().for_each(|&place| map[place] = -1);
    map
}

/// Fills places of this rank with what a placement says.
fn refill(
    set: &Set,
    placement: &Placement,
    places: &[(usize, usize)],
    source: Option<&dyn Source>,
) -> Result<(), EngineError> {
    for &(layer, slot) in places {
        let (layer, slot) = (LayerId::at(layer), SlotId::at(slot));
        let Some(expert) = placement.expert_at(layer, slot) else { continue };
        let Some(source) = source else {
            return Err(EngineError::Options(format!(
                "{layer} {expert} has to be put into {slot} from the checkpoint; give the builder a source"
            )));
        };
        set.memory.fill(source, layer, slot, expert)?;
    }
    Ok(())
}
