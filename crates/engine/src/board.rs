//! Where ranks leave notes for each other while an exchange runs, and where its decision record lies.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eplb_core::RankId;
use eplb_exchange::{Note, Record};

/// Control traffic of one exchange: notes, signs of life and one record. Small and rare; never on a GPU.
///
/// Notes of one rank are seen by every other in the order left. What a rank wrote to memory before leaving a note
/// happens-before what a rank does after it has collected the note.
pub trait Board: Debug + Send + Sync {
    /// Leaves a note for all other ranks.
    fn publish(&self, from: RankId, note: Note);

    /// Notes of the other ranks that `reader` has not collected yet.
    fn collect(&self, reader: &mut Reader) -> Vec<(RankId, Note)>;

    /// Shows a sign of life.
    fn renew(&self, rank: RankId);

    /// Counts of signs of life, by rank in the order of the members.
    fn signs(&self) -> Vec<(RankId, u64)>;

    /// The decision record.
    fn record(&self) -> Record;

    /// Moves the record from `from` to `to` if it says `from`; returns what it says then.
    fn decide(&self, from: Record, to: Record) -> Record;
}

/// How far a rank has read a board.
#[derive(Debug, Clone)]
pub struct Reader {
    rank: RankId,
    read: Vec<usize>,
}

impl Reader {
    /// Nothing read yet.
    pub fn new(rank: RankId) -> Self {
        Self { rank, read: Vec::new() }
    }
}

/// The board of ranks that are threads of one process.
#[derive(Debug)]
pub struct LocalBoard {
    members: Vec<RankId>,
    notes: Mutex<Vec<Vec<Note>>>,
    signs: Vec<AtomicU64>,
    record: Mutex<Record>,
}

impl LocalBoard {
    /// An empty board for the members of an exchange.
    pub fn new(members: &[RankId]) -> Arc<Self> {
        Arc::new(Self {
            members: members.to_vec(),
            notes: Mutex::new(vec![Vec::new(); members.len()]),
            signs: members.iter().map(|_| AtomicU64::new(0)).collect(),
            record: Mutex::new(Record::OPEN),
        })
    }

    fn place(&self, rank: RankId) -> Option<usize> {
        self.members.iter().position(|&member| member == rank)
    }
}

/// No panic can happen while one of the locks is held, so a poisoned one still guards whole values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board for LocalBoard {
    fn publish(&self, from: RankId, note: Note) {
        if let Some(at) = self.place(from) {
            lock(&self.notes)[at].push(note);
        }
    }

    fn collect(&self, reader: &mut Reader) -> Vec<(RankId, Note)> {
        reader.read.resize(self.members.len(), 0);
        let notes = lock(&self.notes);
        let mut fresh = Vec::new();
        for (at, (&rank, left)) in self.members.iter().zip(notes.iter()).enumerate() {
            if rank != reader.rank {
                fresh.extend(left[reader.read[at]..].iter().map(|note| (rank, note.clone())));
                reader.read[at] = left.len();
            }
        }
        fresh
    }

    fn renew(&self, rank: RankId) {
        if let Some(at) = self.place(rank) {
            self.signs[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn signs(&self) -> Vec<(RankId, u64)> {
        self.members
            .iter()
            .zip(&self.signs)
            .map(|(&rank, sign)| (rank, sign.load(Ordering::Relaxed)))
            .collect()
    }

    fn record(&self) -> Record {
        *lock(&self.record)
    }

    fn decide(&self, from: Record, to: Record) -> Record {
        let mut record = lock(&self.record);
        if *record == from {
            *record = to;
        }
        *record
    }
}
