//! A new epoch: the same ranks, agreed anew on who holds what.

use std::sync::Arc;

use eplb_comm::Memory;
use eplb_comm::store::deadlines::after;
use eplb_core::{LayerId, Placement, SlotId};
use ndarray::Array2;

use super::builder::facts;
use super::progress::Progress;
use super::shared::{BARRED, PUBLISH, Set, lock};
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
        let (rank, deadlines) = (shared.rank, &shared.deadlines);
        let mut session = match self.session.take() {
            Some(session) => session.rejoin(None)?,
            None => Session::join(self.store.clone(), rank, shared.world_size, deadlines)?,
        };
        session.compare(&facts(&shared, self.transport.name()))?;
        for (which, set) in shared.sets.iter().enumerate() {
            let mine = {
                let core = lock(&shared.core);
                let lane = &core.lanes[which];
                let map = lane.driver.phy2log().as_ref().clone();
                Standing { version: lane.version, last_step: shared.last_step(), map: Some(map) }
            };
            let label = format!("standing-{which}");
            let said = session.group.all_gather(&label, &mine.encode(), after(deadlines.store.collective));
            let said = at(rank, Stage::Standing, said)?;
            let mut standings = Vec::new();
            for (&other, bytes) in session.members().iter().zip(&said) {
                let unreadable = EngineError::Unreadable { rank: other, what: "its standing" };
                let standing = Standing::decode(bytes, set.start.phy2log().dim()).ok_or(unreadable)?;
                standings.push((other, standing));
            }
            let (version, map, holds) = reconcile(&standings, &set.topology, &set.start.phy2log().to_owned());
            let held = standings.iter().zip(&holds).any(|((other, _), &holds)| *other == rank && holds);
            let placement = Placement::with_missing(set.experts, map)?;
            if !held {
                let filled = refill(set, &placement, mine.map.as_ref(), self.source.as_deref());
                at(rank, Stage::Standing, filled)?;
            }
            let mut core = lock(&shared.core);
            let mut lane = core.lanes.remove(which);
            lane.driver = Driver::new(rank, set.topology.clone(), lane.driver.into_stream(), &placement);
            lane.version = version;
            let changed = *lane.driver.phy2log() != lane.published;
            if !changed {
                lane.published = Arc::clone(lane.driver.phy2log());
            }
            core.lanes.insert(which, lane);
            shared.clear(BARRED);
            if changed {
                shared.raise(PUBLISH);
            }
        }
        self.enter(session);
        self.connect()?;
        let Some(session) = &mut self.session else { return Ok(()) };
        let started = session.group.barrier("started", after(shared.deadlines.store.collective));
        at(rank, Stage::Rendezvous, started)
    }
}

/// Fills the slots of this rank that do not hold what a placement says.
fn refill(
    set: &Set,
    placement: &Placement,
    mine: Option<&Array2<i32>>,
    source: Option<&dyn Source>,
) -> Result<(), EngineError> {
    for layer in 0..placement.layers() {
        for slot in set.memory.slots() {
            let wanted = placement.phy2log()[(layer, slot)];
            if wanted < 0 || mine.is_some_and(|mine| mine[(layer, slot)] == wanted) {
                continue;
            }
            let (layer, slot) = (LayerId::at(layer), SlotId::at(slot));
            let Some(expert) = placement.expert_at(layer, slot) else { continue };
            let Some(source) = source else {
                return Err(EngineError::Options(format!(
                    "{layer} {expert} has to be put into {slot} from the checkpoint; give the builder a source"
                )));
            };
            source.fill(&set.memory, layer, slot, expert)?;
        }
    }
    Ok(())
}
