//! A new epoch: the same ranks, agreed anew on who holds what.

use std::sync::Arc;

use eplb_comm::store::deadlines::after;
use eplb_core::{LayerId, Placement, SlotId};
use ndarray::Array2;

use super::builder::facts;
use super::progress::Progress;
use super::shared::{BARRED, PUBLISH, Set, Shared, lock};
use crate::driver::Driver;
use crate::error::EngineError;
use crate::process::session::at;
use crate::process::standing::{Standing, reconcile};
use crate::process::{Session, Source, Stage};

impl Progress {
    /// Leaves the epoch and joins the next; what is in force then is what the ranks with the newest placement hold.
    pub(super) fn reform(&mut self) -> Result<(), EngineError> {
        self.close();
        let shared = self.shared.clone();
        let mut session = match self.session.take() {
            Some(session) => session.rejoin(None)?,
            None => Session::join(self.store.clone(), shared.rank, shared.world_size, &shared.deadlines)?,
        };
        agree(&shared, &mut session, self.transport.name(), self.source.as_deref(), false)?;
        self.enter(session);
        self.open()
    }

    /// Makes the communicators, and waits until all ranks have theirs.
    pub(super) fn open(&mut self) -> Result<(), EngineError> {
        self.connect()?;
        let Some(session) = &mut self.session else { return Ok(()) };
        let deadline = after(self.shared.deadlines.store.collective);
        at(self.shared.rank, Stage::Rendezvous, session.group.barrier("started", deadline))
    }
}

/// Compares with the other members what must be the same, and who holds what; takes over the placement that all go on from. A rank
/// that is `fresh` holds the placement to start with, and nobody relies on that if others have gone on since.
pub(super) fn agree(
    shared: &Shared,
    session: &mut Session,
    backend: &str,
    source: Option<&dyn Source>,
    fresh: bool,
) -> Result<(), EngineError> {
    let (rank, deadlines) = (shared.rank, &shared.deadlines);
    session.compare(&facts(shared, backend))?;
    for (which, set) in shared.sets.iter().enumerate() {
        let (version, map) = {
            let core = lock(&shared.core);
            let lane = &core.lanes[which];
            (lane.version, lane.driver.phy2log().as_ref().clone())
        };
        let (last_step, said_map) = (shared.last_step(), (!fresh).then(|| map.clone()));
        let standing = Standing { version, last_step, map: said_map };
        let label = format!("standing-{which}");
        let said = session.group.all_gather(&label, &standing.encode(), after(deadlines.store.collective));
        let said = at(rank, Stage::Standing, said)?;
        let mut standings = Vec::new();
        for (&other, bytes) in session.members().iter().zip(&said) {
            let unreadable = EngineError::Unreadable { rank: other, what: "its standing" };
            let standing = Standing::decode(bytes, set.start.phy2log().dim()).ok_or(unreadable)?;
            standings.push((other, standing));
        }
        let (version, agreed, holds) = reconcile(&standings, &set.topology, &set.start.phy2log().to_owned());
        let held = standings.iter().zip(&holds).any(|((other, _), &holds)| *other == rank && holds);
        let placement = Placement::with_missing(set.experts, agreed)?;
        if !held {
            at(rank, Stage::Standing, refill(set, &placement, &map, source))?;
        }
        let mut core = lock(&shared.core);
        let mut lane = core.lanes.remove(which);
        lane.driver = Driver::new(rank, set.topology.clone(), lane.driver.into_stream(), &placement);
        lane.version = version;
        let changed = *lane.driver.phy2log() != lane.published;
        if !changed {
            lane.published = Arc::clone(lane.driver.phy2log());
        } else if fresh {
            // No step has run yet, and the host reads the maps before the first.
            shared.publish(which, &mut lane, 0)?;
            lane.driver.stream().release()?;
        } else {
            shared.raise(PUBLISH);
        }
        core.lanes.insert(which, lane);
        shared.clear(BARRED);
    }
    Ok(())
}

/// Fills the slots of this rank that do not hold what a placement says.
fn refill(
    set: &Set,
    placement: &Placement,
    mine: &Array2<i32>,
    source: Option<&dyn Source>,
) -> Result<(), EngineError> {
    for layer in 0..placement.layers() {
        for slot in set.memory.range() {
            let wanted = placement.phy2log()[(layer, slot)];
            if wanted < 0 || mine[(layer, slot)] == wanted {
                continue;
            }
            let (layer, slot) = (LayerId::at(layer), SlotId::at(slot));
            let Some(expert) = placement.expert_at(layer, slot) else { continue };
            let Some(source) = source else {
                return Err(EngineError::Options(format!(
                    "{layer} {expert} has to be put into {slot} from the checkpoint; give the builder a source"
                )));
            };
            set.memory.fill(source, layer, slot, expert)?;
        }
    }
    Ok(())
}
