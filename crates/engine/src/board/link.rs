//! What the callers of a store's board and its two threads share.

mod threads;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eplb_comm::store::deadlines::{after, left};
use eplb_comm::store::{CasOutcome, Deadlines, Store, StoreError};
use eplb_comm::{Bulletin, BulletinError};
use eplb_core::RankId;
use eplb_exchange::{Note, Record};

use super::wire::{Decision, Malformed, Numbered, Posted, wave_of};

/// The part of a wait for a decision that is waited once more, where its time passed without an answer.
const AGAIN: u32 = 4;

/// A connection of one rank with the keys of an epoch.
pub(super) struct Link {
    store: Arc<dyn Store>,
    pub(super) epoch: u64,
    pub(super) me: RankId,
    /// All members, ascending.
    members: Vec<RankId>,
    operation: Duration,
    renew: Duration,
    state: Mutex<State>,
    /// Told when there is something to write, or the board closes; and the same as a flag, for a thread that looks and does not sleep.
    work: Condvar,
    told: AtomicBool,
}

#[derive(Debug)]
struct State {
    exchange: u64,
    /// The record when the exchange began.
    base: Decision,
    /// The latest record seen.
    seen: Decision,
    /// The latest that the exchange was told: of one that is over, the last word, with which the next begins on every member alike. What is in
    /// the store when this rank begins may be the next one's already.
    obeyed: Decision,
    /// Own notes that somebody may not have read, and the number of the first.
    log: VecDeque<Numbered>,
    first: u64,
    unwritten: bool,
    /// A decision to be tried.
    attempt: Option<(Decision, Decision)>,
    /// Whether the bell must be rung for something written elsewhere.
    ring: bool,
    renewed: bool,
    /// Where ranks of one host say the same at once: then no note goes through the store, and no bell rings for a decision that ranks learn
    /// of here.
    bulletin: Option<Arc<dyn Bulletin>>,
    peers: Vec<Peer>,
    looks: u64,
    lost: Option<String>,
    closing: bool,
}

/// What came from one member.
#[derive(Debug, Default)]
struct Peer {
    /// Number of the next note.
    next: u64,
    /// Notes not collected yet.
    inbox: VecDeque<Numbered>,
    sign: Vec<u8>,
    signs: u64,
    /// It has left, and all that it said is in the inbox or has been collected.
    left: bool,
}

/// Why a thread stops talking to the store.
#[derive(Debug)]
enum Trouble {
    Store(StoreError),
    Bulletin(BulletinError),
    Malformed(String, Malformed),
    Missed { rank: RankId, first: u64, next: u64 },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Bulletin(error) => error.fmt(f),
            Self::Malformed(key, what) => {
                write!(f, "key {key} is malformed: {what}; do all ranks run the same version?")
            }
            Self::Missed { rank, first, next } => {
                write!(f, "notes {next} to {first} of {rank} were not read in time; is this rank overloaded?")
            }
        }
    }
}

impl From<BulletinError> for Trouble {
    fn from(error: BulletinError) -> Self {
        Self::Bulletin(error)
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Link {
    pub(super) fn new(
        store: Arc<dyn Store>,
        epoch: u64,
        me: RankId,
        members: &[RankId],
        deadlines: &Deadlines,
    ) -> Self {
        let mut members = members.to_vec();
        members.sort_unstable();
        members.dedup();
        let state = State {
            exchange: 0,
            base: Decision::OPEN,
            seen: Decision::OPEN,
            obeyed: Decision::OPEN,
            log: VecDeque::new(),
            first: 0,
            unwritten: false,
            attempt: None,
            ring: false,
            renewed: true,
            bulletin: None,
            peers: members.iter().map(|_| Peer::default()).collect(),
            looks: 0,
            lost: None,
            closing: false,
        };
        Self {
            store,
            epoch,
            me,
            members,
            operation: deadlines.operation,
            renew: deadlines.renew,
            state: Mutex::new(state),
            work: Condvar::new(),
            told: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock leaves the state half changed when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something to do for the writing thread.
    fn tell(&self) {
        self.told.store(true, Ordering::Release);
        self.work.notify_all();
    }

    fn notes_key(&self, rank: RankId) -> String {
        notes_key(self.epoch, rank)
    }

    fn decision_key(&self) -> String {
        format!("{}/decision", self.epoch)
    }

    fn bell_key(&self) -> String {
        bell_key(self.epoch)
    }

    pub(super) fn begin(&self, decision: Decision, bulletin: Option<Arc<dyn Bulletin>>) {
        let mut state = self.lock();
        state.exchange += 1;
        state.bulletin = bulletin;
        state.base = state.obeyed;
        if decision.is_after(&state.seen) {
            state.seen = decision;
        }
        state.attempt = None;
        let exchange = state.exchange;
        for peer in &mut state.peers {
            peer.inbox.retain(|numbered| numbered.exchange >= exchange);
        }
    }

    pub(super) fn position(&self) -> (u64, u64) {
        let state = self.lock();
        (state.exchange, state.base.version)
    }

    pub(super) fn publish(&self, note: Note) {
        let mut state = self.lock();
        let exchange = state.exchange;
        if let Some(bulletin) = &state.bulletin {
            let posted = bulletin.post(&Posted::Note(Numbered { exchange, note }).encode());
            if let Err(error) = posted {
                drop(state);
                self.lose(&error.into());
            }
            return;
        }
        if let Some(wave) = wave_of(&note) {
            // Who speaks of wave w is at wave w - 1 at least, and has everyone's last note of wave w - 2: so everyone has come
            // to wave w - 2, and read all that was said of wave w - 3. An earlier exchange may still be under way on
            // another rank; one before that not.
            let needed = |n: &Numbered| {
                n.exchange + 1 == exchange
                    || (n.exchange == exchange && wave_of(&n.note).is_none_or(|w| w + 2 >= wave))
            };
            while state.log.front().is_some_and(|front| !needed(front)) {
                state.log.pop_front();
                state.first += 1;
            }
        }
        state.log.push_back(Numbered { exchange, note });
        state.unwritten = true;
        self.tell();
    }

    pub(super) fn collect(&self) -> Vec<(RankId, Note)> {
        if let Err(trouble) = self.read_bulletin() {
            self.lose(&trouble);
        }
        let mut state = self.lock();
        let exchange = state.exchange;
        let mut notes = Vec::new();
        for (&rank, peer) in self.members.iter().zip(&mut state.peers) {
            // A peer may be in the next exchange already; its notes wait until this rank is.
            while peer.inbox.front().is_some_and(|numbered| numbered.exchange <= exchange) {
                let Some(numbered) = peer.inbox.pop_front() else { break };
                if numbered.exchange == exchange && rank != self.me {
                    notes.push((rank, numbered.note));
                }
            }
        }
        notes
    }

    /// Takes in what ranks of this host have said.
    fn read_bulletin(&self) -> Result<(), Trouble> {
        let mut state = self.lock();
        let Some(bulletin) = &state.bulletin else { return Ok(()) };
        for (rank, message) in bulletin.read()? {
            let malformed = |what| Trouble::Malformed(format!("said by {rank}"), what);
            match Posted::decode(&message).map_err(malformed)? {
                Posted::Decision(decision) if decision.is_after(&state.seen) => state.seen = decision,
                Posted::Decision(_) => {}
                Posted::Note(note) => {
                    if let Ok(at) = self.members.binary_search(&rank) {
                        state.peers[at].inbox.push_back(note);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn renew(&self) {
        self.lock().renewed = true;
    }

    pub(super) fn signs(&self) -> Vec<(RankId, u64)> {
        self.members.iter().copied().zip(self.lock().peers.iter().map(|peer| peer.signs)).collect()
    }

    pub(super) fn left(&self) -> Vec<RankId> {
        let state = self.lock();
        self.members.iter().zip(&state.peers).filter(|(_, peer)| peer.left).map(|(&rank, _)| rank).collect()
    }

    pub(super) fn looks(&self) -> u64 {
        self.lock().looks
    }

    pub(super) fn lost(&self) -> Option<String> {
        self.lock().lost.clone()
    }

    pub(super) fn record(&self) -> Record {
        let mut state = self.lock();
        state.obeyed = state.seen;
        record(&state.base, &state.seen)
    }

    pub(super) fn decide(&self, from: Record, to: Record, until: Option<Instant>) -> Option<Record> {
        let mut state = self.lock();
        let base = state.base;
        let (from, to) = (decision(&base, from), decision(&base, to));
        match until {
            None => {
                state.attempt = Some((from, to));
                self.tell();
                None
            }
            // Not by way of the writer: it may be held up by notes.
            Some(deadline) => {
                drop(state);
                let hold = left(deadline);
                let seen = match self.try_decide(&from, &to, deadline) {
                    // This process may have been stopped meanwhile, the answer is there, and nobody had the time to read it. A second attempt
                    // after one that took effect finds its own record.
                    Err(error) if error.is_timeout() => self.try_decide(&from, &to, after(hold / AGAIN)),
                    other => other,
                };
                let seen = seen.ok()?;
                self.lock().obeyed = seen;
                Some(record(&base, &seen))
            }
        }
    }

    /// The record takes in what was seen of it.
    pub(super) fn see(&self, decision: Decision) {
        let mut state = self.lock();
        let newer = decision.is_after(&state.seen);
        if newer {
            state.seen = decision;
        }
        let told = match &state.bulletin {
            // What stands in the store, told to those who would have to ask for it.
            Some(bulletin) if newer => bulletin.post(&Posted::Decision(decision).encode()).is_ok(),
            Some(_) => true,
            None => false,
        };
        // Who is between two exchanges, and reads nothing, is told of the end of the epoch by the bell.
        state.ring = !told || decision.closed;
        self.tell();
    }

    pub(super) fn read_decision(&self) -> Result<Decision, StoreError> {
        self.parse_decision(self.store.get(&self.decision_key(), after(self.operation))?.as_deref())
    }

    fn parse_decision(&self, bytes: Option<&[u8]>) -> Result<Decision, StoreError> {
        let Some(bytes) = bytes else { return Ok(Decision::OPEN) };
        Decision::decode(bytes).map_err(|what| StoreError::Protocol {
            store: self.decision_key(),
            detail: format!("the decision record is malformed: {what}"),
        })
    }

    pub(super) fn swap(&self, from: &Decision, to: &Decision) -> Result<CasOutcome, StoreError> {
        self.swap_by(from, to, after(self.operation))
    }

    fn swap_by(&self, from: &Decision, to: &Decision, deadline: Instant) -> Result<CasOutcome, StoreError> {
        let expected = (*from != Decision::OPEN).then(|| from.encode());
        self.store.compare_and_set(&self.decision_key(), expected.as_deref(), &to.encode(), deadline)
    }

    /// Moves the record if it says `from`; what it says then.
    fn try_decide(&self, from: &Decision, to: &Decision, deadline: Instant) -> Result<Decision, StoreError> {
        let seen = match self.swap_by(from, to, deadline)? {
            CasOutcome::Swapped => *to,
            CasOutcome::Current(bytes) => self.parse_decision(bytes.as_deref())?,
        };
        self.see(seen);
        Ok(seen)
    }

    fn lose(&self, trouble: &Trouble) {
        let mut state = self.lock();
        state.lost.get_or_insert_with(|| trouble.to_string());
        self.tell();
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.tell();
    }
}

/// Keys of a board that nobody needs when every member has left its epoch: the notes of `ranks`, and the bell. Not the decision: by
/// it, closed for good, a rank that was stopped and resumes finds that its epoch is over.
pub(crate) fn passing_keys(epoch: u64, ranks: &[RankId]) -> impl Iterator<Item = String> {
    ranks.iter().map(move |&rank| notes_key(epoch, rank)).chain([bell_key(epoch)])
}

fn notes_key(epoch: u64, rank: RankId) -> String {
    format!("{epoch}/notes/{}", rank.0)
}

fn bell_key(epoch: u64) -> String {
    format!("{epoch}/bell")
}

/// A decision as the waves of one exchange count.
fn record(base: &Decision, seen: &Decision) -> Record {
    if seen.version <= base.version {
        return Record { closed: seen.closed, ..Record::OPEN };
    }
    let decided = usize::try_from(seen.version - base.version).unwrap_or(usize::MAX);
    Record { decided, verdict: seen.verdict, closed: seen.closed }
}

/// A record of an exchange as the epoch counts.
fn decision(base: &Decision, record: Record) -> Decision {
    if record.decided == 0 {
        return Decision { closed: record.closed, ..*base };
    }
    Decision { version: base.version + record.decided as u64, verdict: record.verdict, closed: record.closed }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("epoch", &self.epoch)
            .field("me", &self.me)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}
