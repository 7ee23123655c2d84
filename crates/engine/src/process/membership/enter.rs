//! The way of one process into the next epoch: its session before, its session after.

use std::sync::Arc;
use std::time::Duration;

use eplb_comm::store::{Nonce, Store};
use eplb_core::RankId;

use super::change::Reform;
use super::error::MembershipError;
use super::{Agreement, Call, Presence, Seat, Timing, Waiting, agree, join};
use crate::deadlines::Deadlines;
use crate::error::EngineError;
use crate::process::session::{Session, Stage, at};

impl Session {
    /// Agrees with the other members on who belongs to the next epoch, and enters it. The epoch before must be closed.
    /// `facts` is a hash of what must be the same on all, `layout` that of the experts. Returns the ranks of
    /// [`Reform::topology`] that belong to the new epoch, in the order of their numbers in it.
    ///
    /// # Errors
    /// [`EngineError::AtStage`] with a [`MembershipError`]: no epoch formed, or one without this rank. The session is as
    /// it was, and its epoch closed.
    pub fn reform(
        &mut self,
        reform: &Reform,
        (facts, layout): (u64, u64),
        store: Option<Arc<dyn Store>>,
    ) -> Result<Vec<RankId>, EngineError> {
        let (rank, nonce, deadlines) = (self.rank(), self.nonce(), *self.deadlines());
        let mut seats: Vec<Seat> = Vec::new();
        for (&(old, nonce), new) in self.roster().iter().zip(&reform.mapping) {
            seats.extend(new.map(|planned| Seat { planned, member: Some((old, nonce)) }));
        }
        seats.extend(reform.joining().into_iter().map(|planned| Seat { planned, member: None }));
        let Some(me) = seats.iter().position(|seat| seat.member == Some((rank, nonce))) else {
            let text = format!("{rank} leaves: it has no place in the next epoch");
            return at(rank, Stage::Reforming, Err(MembershipError::Change(text)));
        };
        let own = presence(nonce, reform.hash64(), facts, layout);
        let timing = timing(&deadlines);
        let mut agreement = Agreement::new(self.epoch(), &seats, me, &reform.suspects, own, timing);
        // Another handle may lead to another store, which may have an epoch of the same number: nothing is deleted there.
        let same = store.is_none();
        let store = store.unwrap_or_else(|| self.store().clone());
        let record = agree(store.as_ref(), &mut agreement, call(&deadlines));
        let record = at(rank, Stage::Reforming, record)?;
        let (planned, roster) = numbered(&record.members);
        let place = at(rank, Stage::Reforming, place_of(&roster, nonce))?;
        let next = Self::enter(store, record.epoch, (place, nonce), roster, &deadlines)?;
        if same {
            self.succeed(next)
        } else {
            *self = next
        }
        Ok(planned)
    }

    /// Waits until members form an epoch with this process as rank `planned` of their [`Reform::topology`]. Returns the session in
    /// it, and the ranks of that topology that belong to it.
    ///
    /// # Errors
    /// [`EngineError::AtStage`] with [`MembershipError::JoinTimeout`] or [`MembershipError::JoinRefused`].
    pub fn join_members(
        store: Arc<dyn Store>,
        planned: RankId,
        (facts, layout): (u64, u64),
        wait: Duration,
        deadlines: &Deadlines,
    ) -> Result<(Self, Vec<RankId>), EngineError> {
        let nonce = at(planned, Stage::Reforming, Nonce::draw())?;
        let own = presence(nonce, 0, facts, layout);
        let mut waiting = Waiting::new(planned, own, deadlines.store.renew, wait);
        let record = at(planned, Stage::Reforming, join(store.as_ref(), &mut waiting, call(deadlines)))?;
        let (members, roster) = numbered(&record.members);
        let place = at(planned, Stage::Reforming, place_of(&roster, nonce))?;
        Ok((Self::enter(store, record.epoch, (place, nonce), roster, deadlines)?, members))
    }
}

fn presence(nonce: Nonce, change: u64, facts: u64, layout: u64) -> Presence {
    Presence { nonce, count: 0, accepted: 0, change, facts, layout }
}

fn call(deadlines: &Deadlines) -> Call {
    Call { operation: deadlines.store.operation, renew: deadlines.store.renew }
}

fn timing(deadlines: &Deadlines) -> Timing {
    Timing {
        renew: deadlines.store.renew,
        peer_timeout: deadlines.store.peer_timeout,
        gather: deadlines.reform.gather,
        join: deadlines.reform.join,
        whole: deadlines.reform.whole,
    }
}

/// Planned ranks of the members of a record, and the members under their numbers in the epoch: without gaps.
fn numbered(members: &[(RankId, Nonce)]) -> (Vec<RankId>, Vec<(RankId, Nonce)>) {
    let planned = members.iter().map(|(rank, _)| *rank).collect();
    (planned, (0..).map(RankId).zip(members.iter().map(|(_, nonce)| *nonce)).collect())
}

fn place_of(roster: &[(RankId, Nonce)], nonce: Nonce) -> Result<RankId, MembershipError> {
    let found = roster.iter().find(|(_, listed)| *listed == nonce).map(|(rank, _)| *rank);
    found.ok_or_else(|| MembershipError::Change("the epoch that formed does not list this process".into()))
}
