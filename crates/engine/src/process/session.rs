//! Membership of one rank: the epoch, and what is said in it before experts move.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use eplb_comm::Bulletin;
use eplb_comm::store::deadlines::after;
use eplb_comm::store::{
    Absent, Formation, Group, Interrupt, InterruptibleStore, Names, Nonce, NotedStore, PrefixStore, Store,
};
use eplb_core::RankId;

use super::hosts::HostId;
use crate::board::{LastDecision, StoreBoard, passing_keys};
use crate::deadlines::Deadlines;
use crate::error::EngineError;

/// What a rank was doing when something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Reaching the store.
    Store,
    /// Forming an epoch.
    Rendezvous,
    /// Comparing versions, layouts and options.
    Comparing,
    /// Finding out who holds what.
    Standing,
    /// Making the communicator.
    Connecting,
    /// Planning a placement, or waiting for the plan.
    Planning,
    /// Agreeing on the waves.
    Agreeing,
    /// Moving experts.
    Moving,
    /// Checking bytes and comparing what came out.
    Reporting,
    /// Changing members: agreeing on who belongs to the next epoch, and on what is in force in it.
    Reforming,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Store => "reaching the store",
            Self::Rendezvous => "rendezvous",
            Self::Comparing => "comparing versions and options",
            Self::Standing => "finding out who holds what",
            Self::Connecting => "making the communicator",
            Self::Planning => "planning",
            Self::Agreeing => "agreeing on the waves",
            Self::Moving => "moving experts",
            Self::Reporting => "reporting",
            Self::Reforming => "reforming",
        })
    }
}

/// Names rank and stage in an error.
pub(crate) fn at<T, E: Into<EngineError>>(
    rank: RankId,
    stage: Stage,
    result: Result<T, E>,
) -> Result<T, EngineError> {
    result.map_err(|error| match error.into() {
        named @ EngineError::AtStage { .. } => named,
        error => EngineError::AtStage { rank, stage, error: Box::new(error) },
    })
}

/// A fact that must be the same on all ranks, in words.
pub(crate) type Fact = (&'static str, String);

/// Who belongs to an epoch, and this rank's ways to talk to them.
type Place = (Vec<(RankId, Nonce)>, Group, Arc<StoreBoard>);

/// What a rank leaves in the store with an epoch.
struct Leaving<'a> {
    nonce: Nonce,
    roster: &'a [(RankId, Nonce)],
    group: &'a Group,
    corners: &'a NotedStore,
}

impl Leaving<'_> {
    /// Keys that nobody needs any more once all starts of `next` have left the epoch: this rank's, and, by the lowest rank that goes
    /// on, those of the starts that do not. The decision record stays, closed.
    fn keys(&self, next: &[(RankId, Nonce)]) -> Vec<String> {
        let goes_on = |nonce: Nonce| next.iter().any(|(_, other)| *other == nonce);
        let (stay, gone): (Vec<_>, Vec<_>) = self.roster.iter().partition(|(_, nonce)| goes_on(*nonce));
        let lowest = stay.first().is_some_and(|(_, nonce)| *nonce == self.nonce);
        let mut ranks: Vec<RankId> = gone.into_iter().filter(|_| lowest).map(|(rank, _)| rank).collect();
        let mut keys = self.group.left_behind(&ranks);
        ranks.push(self.group.rank());
        keys.extend(passing_keys(self.group.epoch(), &ranks));
        keys.extend(self.corners.by().take());
        keys
    }
}

/// A member of an epoch: its group for collectives and its board for exchanges.
#[derive(Debug)]
pub struct Session {
    store: Arc<dyn Store>,
    rank: RankId,
    nonce: Nonce,
    expected: Vec<RankId>,
    /// Which start of which rank belongs to the epoch, ranks ascending.
    roster: Vec<(RankId, Nonce)>,
    deadlines: Deadlines,
    pub(crate) group: Group,
    pub(crate) board: Arc<StoreBoard>,
    /// When this rank is not to wait for others any more.
    interrupt: Interrupt,
    /// Communicators asked for in this epoch.
    communicators: u64,
    /// The store as communicators of this epoch see it.
    corners: NotedStore,
}

impl Session {
    /// Joins all of `0..world_size` in a new epoch of the store; returns when every one of them has come.
    ///
    /// # Errors
    /// [`EngineError::AtStage`]: a rank did not come, the store fails, or no thread is to be had.
    pub fn join(
        store: Arc<dyn Store>,
        rank: RankId,
        world_size: usize,
        deadlines: &Deadlines,
    ) -> Result<Self, EngineError> {
        Self::join_unless(store, rank, world_size, deadlines, Interrupt::never())
    }

    /// As [`Session::join`]. Whenever `interrupt` says so, this rank waits no longer for others, in this epoch and those that it joins after it:
    /// the call is left, with an error for which [`EngineError::is_interrupted`] holds.
    ///
    /// # Errors
    /// As [`Session::join`].
    pub(crate) fn join_unless(
        store: Arc<dyn Store>,
        rank: RankId,
        world_size: usize,
        deadlines: &Deadlines,
        interrupt: Interrupt,
    ) -> Result<Self, EngineError> {
        let nonce = at(rank, Stage::Rendezvous, Nonce::draw())?;
        let expected: Vec<RankId> = (0..world_size).map(RankId::at).collect();
        let place = Self::form(&store, (rank, nonce), &expected, None, deadlines, &interrupt)?;
        Ok(Self::at_place(store, (rank, nonce), expected, place, deadlines, interrupt))
    }

    fn form(
        store: &Arc<dyn Store>,
        (rank, nonce): (RankId, Nonce),
        expected: &[RankId],
        last: Option<u64>,
        deadlines: &Deadlines,
        interrupt: &Interrupt,
    ) -> Result<Place, EngineError> {
        let formation = Formation {
            rank,
            nonce,
            expected: expected.to_vec(),
            last,
            absent: Absent::Fail,
            accept: deadlines.store.accept,
        };
        let stage = Stage::Rendezvous;
        // What goes on when this rank is told to end, the board that cancels exchanges, has the store itself.
        let waits: Arc<dyn Store> = Arc::new(InterruptibleStore::new(store.clone(), interrupt.clone()));
        let record = at(rank, stage, formation.form(waits.as_ref(), after(deadlines.store.join)))?;
        let members = record.ranks();
        let group = at(rank, stage, Group::new(waits, record.epoch, rank, &members))?;
        let board = StoreBoard::open(store.clone(), record.epoch, rank, &members, &deadlines.store);
        Ok((record.members, group, at(rank, stage, board)?))
    }

    /// The session of a process in an epoch that was formed with it as `rank` of `roster`.
    pub(super) fn enter(
        store: Arc<dyn Store>,
        epoch: u64,
        (rank, nonce): (RankId, Nonce),
        roster: Vec<(RankId, Nonce)>,
        deadlines: &Deadlines,
    ) -> Result<Self, EngineError> {
        let expected: Vec<RankId> = roster.iter().map(|(rank, _)| *rank).collect();
        let stage = Stage::Reforming;
        let group = at(rank, stage, Group::new(store.clone(), epoch, rank, &expected))?;
        let board = StoreBoard::open(store.clone(), epoch, rank, &expected, &deadlines.store);
        let place = (roster, group, at(rank, stage, board)?);
        Ok(Self::at_place(store, (rank, nonce), expected, place, deadlines, Interrupt::never()))
    }

    fn at_place(
        store: Arc<dyn Store>,
        (rank, nonce): (RankId, Nonce),
        expected: Vec<RankId>,
        (roster, group, board): Place,
        deadlines: &Deadlines,
        interrupt: Interrupt,
    ) -> Self {
        let (corners, deadlines) = (NotedStore::new(store.clone(), Names::default()), *deadlines);
        Self {
            store,
            rank,
            nonce,
            expected,
            roster,
            deadlines,
            group,
            board,
            interrupt,
            communicators: 0,
            corners,
        }
    }

    /// Closes the epoch for all; its last decision.
    pub(super) fn close(&self) -> Result<LastDecision, EngineError> {
        at(self.rank, Stage::Reforming, self.board.close())
    }

    /// Leaves the epoch, after closing it for all, and joins the same ranks in the next. In place of a rank that is gone, a
    /// process that was started anew as that rank may come. `store`: another one, where the old one is lost.
    ///
    /// # Errors
    /// As [`Session::join`].
    pub fn rejoin(self, store: Option<Arc<dyn Store>>) -> Result<Self, EngineError> {
        let Self {
            store: old,
            rank,
            nonce,
            expected,
            roster,
            deadlines,
            mut group,
            board,
            interrupt,
            corners,
            ..
        } = self;
        // Members that wait for this rank in the old epoch need not; where it cannot be told, they find that the epoch is closed or this rank silent.
        drop(group.give_up("it forms the next epoch", after(deadlines.store.operation)));
        // Where the store is lost there is nothing to close, and others may have closed it before.
        drop(board.close());
        drop(board);
        let last = if store.is_some() { None } else { Some(group.epoch()) };
        // By another handle it may be the same store after all, with the epoch that this rank leaves: no record in it may list this
        // rank's new name.
        let next = if store.is_some() { at(rank, Stage::Rendezvous, Nonce::draw())? } else { nonce };
        let store = store.unwrap_or(old);
        let mut place = Self::form(&store, (rank, next), &expected, last, &deadlines, &interrupt)?;
        // A store that may be another may have an epoch of the same number: nothing is deleted there.
        if last.is_some_and(|last| last < place.1.epoch()) {
            let leaving = Leaving { nonce, roster: &roster, group: &group, corners: &corners };
            place.1.outdate(leaving.keys(&place.0));
        }
        Ok(Self::at_place(store, (rank, next), expected, place, &deadlines, interrupt))
    }

    /// In place of this session, in the same store, that of the next epoch: what this rank leaves in the store with the old one is
    /// deleted when all members have come.
    pub(super) fn succeed(&mut self, mut next: Self) {
        let Self { nonce, roster, group, corners, .. } = self;
        if group.epoch() < next.epoch() {
            next.group.outdate(Leaving { nonce: *nonce, roster, group, corners }.keys(&next.roster));
        }
        *self = next;
    }

    /// Which start of which rank belongs to the epoch, ranks ascending.
    pub fn roster(&self) -> &[(RankId, Nonce)] {
        &self.roster
    }

    /// Which start of this rank this is.
    pub fn nonce(&self) -> Nonce {
        self.nonce
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// This rank.
    pub fn rank(&self) -> RankId {
        self.rank
    }

    /// Ranks of the epoch, ascending.
    pub fn members(&self) -> &[RankId] {
        self.group.members()
    }

    /// Number of the epoch.
    pub fn epoch(&self) -> u64 {
        self.group.epoch()
    }

    /// The deadlines.
    pub fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    /// Deletes what communicators of this epoch have left in the store, once nobody has them any more: an epoch in which many are made
    /// anew would fill it.
    pub(crate) fn clear_corners(&self) {
        let deadline = after(self.deadlines.store.operation);
        for key in self.corners.by().take() {
            // A store that does not answer says so to whoever asks it for something next.
            drop(self.store.delete(&key, deadline));
        }
    }

    /// A corner of the store for the next communicator of this epoch.
    pub(crate) fn corner(&mut self) -> Result<Arc<dyn Store>, EngineError> {
        self.communicators += 1;
        let prefix = format!("{}/comm/{}", self.epoch(), self.communicators);
        Ok(Arc::new(PrefixStore::new(Arc::new(self.corners.clone()), &prefix)?))
    }

    /// The host of every member.
    ///
    /// # Errors
    /// A member does not come, or the store fails.
    pub fn hosts(&mut self) -> Result<Vec<HostId>, EngineError> {
        let gathered = HostId::here().gather(&mut self.group, after(self.deadlines.store.collective));
        let hosts = at(self.rank, Stage::Comparing, gathered)?;
        Ok(hosts.into_iter().map(|(_, host)| host).collect())
    }

    /// Returns when every member has brought the same facts, given in the same order.
    pub(crate) fn compare(&mut self, facts: &[Fact]) -> Result<(), EngineError> {
        let mut message = String::new();
        for (what, value) in facts {
            message += &format!("{what}\t{value}\n");
        }
        let deadline = after(self.deadlines.store.collective);
        let gathered = self.group.all_gather("facts", message.as_bytes(), deadline);
        let gathered = at(self.rank, Stage::Comparing, gathered)?;
        // Everyone compares everyone with the lowest rank, so that all come to the same end.
        let lines = |message: &[u8]| -> Vec<String> {
            String::from_utf8_lossy(message).lines().map(str::to_owned).collect()
        };
        let members = self.members();
        let first = lines(&gathered[0]);
        for (&rank, message) in members.iter().zip(&gathered).skip(1) {
            let theirs = lines(message);
            let count = first.len().max(theirs.len());
            let line = |lines: &[String], at: usize| lines.get(at).cloned().unwrap_or_default();
            if let Some(differs) = (0..count).find(|&at| line(&first, at) != line(&theirs, at)) {
                let (a, b) = (line(&first, differs), line(&theirs, differs));
                let (what, a) =
                    a.split_once('\t').map_or((String::new(), a.clone()), |(w, v)| (w.into(), v.into()));
                let b = b.split_once('\t').map_or(b.clone(), |(_, value)| value.to_owned());
                let error = EngineError::Differs { what, lowest: members[0], ours: a, rank, theirs: b };
                return at(self.rank, Stage::Comparing, Err(error));
            }
        }
        Ok(())
    }

    /// What every member has to say, in the order of the members, once all have come.
    pub(crate) fn gather(&mut self, label: &str, message: &[u8]) -> Result<Vec<Vec<u8>>, EngineError> {
        let deadline = after(self.deadlines.store.collective);
        let gathered = self.group.all_gather(label, message, deadline);
        at(self.rank, Stage::Reporting, gathered)
    }

    /// Begins the next exchange on the epoch's board, once every member has come with the same plan, and with a way to talk at once or
    /// without.
    pub(crate) fn begin_exchange(
        &mut self,
        plan_hash: u64,
        bulletin: Option<Arc<dyn Bulletin>>,
    ) -> Result<Arc<StoreBoard>, EngineError> {
        let at_once = u64::from(bulletin.is_some());
        let begun = self.board.begin_with(bulletin);
        at(self.rank, Stage::Agreeing, begun)?;
        let (number, base) = self.board.position();
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for part in [plan_hash, number, base, at_once] {
            hasher.update(&part.to_le_bytes());
        }
        let deadline = after(self.deadlines.store.collective);
        let agreed = self.group.agree_hash("waves", hasher.digest(), deadline);
        at(self.rank, Stage::Agreeing, agreed)?;
        Ok(self.board.clone())
    }

    /// Longest time that another rank may take to plan, and then to say so.
    pub(super) fn plan_deadline(&self) -> Duration {
        self.deadlines.plan + self.deadlines.store.collective
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use eplb_comm::store::InProcessStore;

    use super::*;

    #[test]
    fn corners_are_cleared_of_what_their_communicators_named_and_of_nothing_else() {
        let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
        let mut session = Session::join(store.clone(), RankId(0), 1, &Deadlines::new()).unwrap();
        let soon = || Instant::now() + Duration::from_secs(60);
        let put = |store: &dyn Store, key: &str| store.set(key, b"x", soon()).unwrap();
        let epoch = session.epoch();
        let corners = [session.corner().unwrap(), session.corner().unwrap()];
        let [first, second] = [1, 2].map(|number| format!("{epoch}/comm/{number}"));
        put(&*store, "another");
        // Written here; written by a rank that may be dead, and only read or waited for here; never heard of here.
        put(&*corners[0], "rank/0");
        for rank in 1..4 {
            put(&*store, &format!("{first}/rank/{rank}"));
        }
        corners[0].get("rank/1", soon()).unwrap();
        corners[0].wait(&["rank/2"], soon()).unwrap();
        put(&*corners[1], "rank/0");
        let there = |key: &str| store.get(key, soon()).unwrap().is_some();
        session.clear_corners();
        for gone in [
            format!("{first}/rank/0"),
            format!("{first}/rank/1"),
            format!("{first}/rank/2"),
            format!("{second}/rank/0"),
        ] {
            assert!(!there(&gone), "{gone} is left");
        }
        assert!(there(&format!("{first}/rank/3")) && there("another"));
        // What was cleared once is not asked for again.
        put(&*store, &format!("{first}/rank/0"));
        session.clear_corners();
        assert!(there(&format!("{first}/rank/0")));
        assert_eq!(session.board.close().map(|last| last.version), Ok(0), "the epoch's own keys are there");
    }
}
