//! The board of ranks that are processes.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use eplb_comm::Bulletin;
use eplb_comm::store::{CasOutcome, Deadlines, Store, StoreError};
use eplb_core::RankId;
use eplb_exchange::{Note, Record, Verdict};

use super::link::Link;
use super::wire::Decision;
use super::{Board, Reader};

/// Why a board could not be opened, or an exchange not be begun on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BoardError {
    /// The rank is not a member of the epoch.
    #[error("{rank} is not a member of epoch {epoch}; join it first")]
    NotMember {
        /// The rank.
        rank: RankId,
        /// The epoch.
        epoch: u64,
    },
    /// The operating system refused a thread.
    #[error("no thread for the control traffic of {rank}: {detail}; raise the limit on threads")]
    NoThread {
        /// The rank.
        rank: RankId,
        /// The system's answer.
        detail: String,
    },
    /// Nothing goes through this board any more.
    #[error("the board of epoch {epoch} is lost ({cause}); form a new epoch")]
    Lost {
        /// The epoch.
        epoch: u64,
        /// Why.
        cause: String,
    },
    /// The epoch has been closed: its members have gone on, or are forming another.
    #[error("epoch {epoch} is closed; join the next one")]
    Closed {
        /// The epoch.
        epoch: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the record of a closed epoch says, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastDecision {
    /// Waves decided in the epoch.
    pub version: u64,
    /// What was decided of the last of them.
    pub verdict: Verdict,
}

impl LastDecision {
    /// Whether wave `wave` of the exchange before which `base` waves were decided is committed. Of an exchange that was
    /// aborted the last decision is the abort.
    pub fn commits(&self, base: u64, wave: usize) -> bool {
        let decided = base + wave as u64 + 1;
        self.version > decided || (self.version == decided && self.verdict != Verdict::Abort)
    }
}

/// A [`Board`] on a [`Store`], for one epoch and all exchanges in it.
///
/// Keys, each bounded in size: `<epoch>/notes/<rank>` holds what a rank has said and somebody may not have read yet (its notes
/// of two waves, and those of the exchange before), `<epoch>/alive/<rank>` its sign of life or that it has left, `<epoch>/decision` the one
/// record, which counts the waves of all exchanges of the epoch, and `<epoch>/bell` counts changes, so that one key is
/// watched. A rank of a group of W holds two keys; the number of exchanges and waves does not matter.
///
/// Two threads talk to the store: one writes, one reads. So no caller waits for the network, and the notes of this rank do
/// not wait behind a read that waits for others. A store operation that fails makes the board lost, for good: what would
/// have to be guessed after that is decided in a new epoch.
///
/// Exchanges are begun by all members in the same order ([`StoreBoard::begin`]), and compared ([`StoreBoard::position`]) by
/// them before the first note.
#[derive(Debug)]
pub struct StoreBoard {
    link: Arc<Link>,
    threads: Vec<JoinHandle<()>>,
}

impl StoreBoard {
    /// The board of an epoch with these members, for rank `me`. The store is the one that the epoch was formed in.
    /// `operation`, `renew` and `peer_timeout` of the deadlines are used.
    ///
    /// # Errors
    /// `me` is no member, or there is no thread to be had.
    pub fn open(
        store: Arc<dyn Store>,
        epoch: u64,
        me: RankId,
        members: &[RankId],
        deadlines: &Deadlines,
    ) -> Result<Arc<Self>, BoardError> {
        if !members.contains(&me) {
            return Err(BoardError::NotMember { rank: me, epoch });
        }
        let link = Arc::new(Link::new(store, epoch, me, members, deadlines));
        let mut board = Self { link, threads: Vec::new() };
        // On an error the board is dropped, which ends the thread that was had.
        board.start("eplb-notes-out", Link::write)?;
        board.start("eplb-notes-in", Link::listen)?;
        Ok(Arc::new(board))
    }

    fn start(&mut self, name: &str, task: fn(&Link)) -> Result<(), BoardError> {
        let link = self.link.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || task(&link));
        let refused =
            |error: std::io::Error| BoardError::NoThread { rank: self.link.me, detail: error.to_string() };
        self.threads.push(thread.map_err(refused)?);
        Ok(())
    }

    /// Begins the next exchange of the epoch: notes and waves count from here. The exchange before must have ended on this
    /// rank.
    ///
    /// # Errors
    /// The board is lost, the epoch closed, or the record cannot be read.
    pub fn begin(&self) -> Result<(), BoardError> {
        self.begin_with(None)
    }

    /// As [`StoreBoard::begin`], with a way in which ranks that share memory talk at once: notes go there, and not through the store, which
    /// has the decisions alone. All members begin with one, or none does.
    ///
    /// # Errors
    /// As [`StoreBoard::begin`].
    pub fn begin_with(&self, bulletin: Option<Arc<dyn Bulletin>>) -> Result<(), BoardError> {
        let epoch = self.link.epoch;
        if let Some(cause) = self.lost() {
            return Err(BoardError::Lost { epoch, cause });
        }
        let decision = self.link.read_decision()?;
        if decision.closed {
            return Err(BoardError::Closed { epoch });
        }
        self.link.begin(decision, bulletin);
        Ok(())
    }

    /// Number of the exchange in the epoch, from 1, and waves decided before it. Equal on all members, or they must not go on.
    pub fn position(&self) -> (u64, u64) {
        self.link.position()
    }

    /// Closes the epoch: nothing is decided in it any more. To be called with no wave open. Returns the last decision.
    ///
    /// # Errors
    /// The store fails. The outcome is unknown then.
    pub fn close(&self) -> Result<LastDecision, BoardError> {
        loop {
            let now = self.link.read_decision()?;
            let last = LastDecision { version: now.version, verdict: now.verdict };
            if now.closed {
                return Ok(last);
            }
            let closed = Decision { closed: true, ..now };
            if self.link.swap(&now, &closed)? == CasOutcome::Swapped {
                self.link.see(closed);
                return Ok(last);
            }
        }
    }
}

impl Board for StoreBoard {
    fn publish(&self, from: RankId, note: Note) {
        debug_assert_eq!(from, self.link.me, "a board of processes is written by its own rank");
        self.link.publish(note);
    }

    fn collect(&self, _reader: &mut Reader) -> Vec<(RankId, Note)> {
        // One rank reads this board, so what it has collected is simply gone.
        self.link.collect()
    }

    fn renew(&self, _rank: RankId) {
        self.link.renew();
    }

    fn signs(&self) -> Vec<(RankId, u64)> {
        self.link.signs()
    }

    fn looks(&self) -> u64 {
        self.link.looks()
    }

    fn left(&self) -> Vec<RankId> {
        self.link.left()
    }

    fn record(&self) -> Record {
        self.link.record()
    }

    fn decide(&self, from: Record, to: Record, until: Option<Instant>) -> Option<Record> {
        self.link.decide(from, to, until)
    }

    fn lost(&self) -> Option<String> {
        self.link.lost()
    }
}

impl Drop for StoreBoard {
    /// Tells the other members that this rank has left, and waits for both threads: at most for the store operations that they are in.
    fn drop(&mut self) {
        self.link.close();
        for thread in self.threads.drain(..) {
            // A panic in it was printed; there is nothing left to tell.
            drop(thread.join());
        }
    }
}
