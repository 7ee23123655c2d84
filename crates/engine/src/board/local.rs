//! The board of ranks that are threads of one process.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use eplb_core::RankId;
use eplb_exchange::{Note, Record};

use super::{Board, Reader};

/// The board of ranks that are threads of one process.
#[derive(Debug)]
pub struct LocalBoard {
    members: Vec<RankId>,
    notes: Mutex<Vec<Vec<Note>>>,
    signs: Vec<AtomicU64>,
    looks: AtomicU64,
    record: Mutex<Record>,
}

impl LocalBoard {
    /// An empty board for the members of an exchange.
    pub fn new(members: &[RankId]) -> Arc<Self> {
        Arc::new(Self {
            members: members.to_vec(),
            notes: Mutex::new(vec![Vec::new(); members.len()]),
            signs: members.iter().map(|_| AtomicU64::new(0)).collect(),
            looks: AtomicU64::new(0),
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

    fn looks(&self) -> u64 {
        // The counts are always those of now.
        self.looks.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn record(&self) -> Record {
        *lock(&self.record)
    }

    fn decide(&self, from: Record, to: Record, _until: Option<Instant>) -> Option<Record> {
        let mut record = lock(&self.record);
        if *record == from {
            *record = to;
        }
        Some(*record)
    }

    fn lost(&self) -> Option<String> {
        None
    }
}
