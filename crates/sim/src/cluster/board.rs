//! Notes that arrive late, and a record that is read late.

use eplb_core::RankId;
use eplb_exchange::{Note, Record};
use fastrand::Rng;

/// The control traffic of one exchange.
#[derive(Debug)]
pub(super) struct Board {
    /// By sender: when the note can be seen, and the note.
    notes: Vec<Vec<(u64, Note)>>,
    /// By reader, by sender: notes read.
    read: Vec<Vec<usize>>,
    /// All that the record ever said, with the time since when.
    record: Vec<(u64, Record)>,
    /// By reader: the entry of `record` read last.
    known: Vec<usize>,
    signs: Vec<u64>,
    /// By reader, by rank.
    seen: Vec<Vec<u64>>,
    /// Nothing comes or goes any more.
    pub(super) lost: bool,
}

impl Board {
    pub(super) fn new(ranks: usize) -> Self {
        Self {
            notes: vec![Vec::new(); ranks],
            read: vec![vec![0; ranks]; ranks],
            record: vec![(0, Record::OPEN)],
            known: vec![0; ranks],
            signs: vec![0; ranks],
            seen: vec![vec![0; ranks]; ranks],
            lost: false,
        }
    }

    /// Leaves a note that is seen `delay` later, and never before an earlier one of the same rank.
    pub(super) fn publish(&mut self, from: usize, note: Note, now: u64, delay: u64) {
        let last = self.notes[from].last().map_or(0, |&(at, _)| at);
        if !self.lost {
            self.notes[from].push(((now + delay).max(last), note));
        }
    }

    /// Notes of others that `reader` can see by now and has not read.
    pub(super) fn collect(&mut self, reader: usize, now: u64) -> Vec<(RankId, Note)> {
        let mut fresh = Vec::new();
        if self.lost {
            return fresh;
        }
        for (from, notes) in self.notes.iter().enumerate() {
            let read = &mut self.read[reader][from];
            while let Some((at, note)) = notes.get(*read)
                && *at <= now
            {
                if from != reader {
                    fresh.push((RankId::at(from), note.clone()));
                }
                *read += 1;
            }
        }
        fresh
    }

    pub(super) fn renew(&mut self, rank: usize) {
        self.signs[rank] += 1;
    }

    /// Ranks that gave a sign of life since `reader` asked last.
    pub(super) fn fresh_signs(&mut self, reader: usize) -> Vec<RankId> {
        let seen = std::mem::replace(&mut self.seen[reader], self.signs.clone());
        let fresh = seen.iter().zip(&self.signs).enumerate().filter(|(_, (old, new))| old != new);
        fresh.map(|(rank, _)| RankId::at(rank)).collect()
    }

    /// The record as it was at some time between the reader's last look and now.
    pub(super) fn record(&mut self, reader: usize, rng: &mut Rng) -> Record {
        let newest = if self.lost { self.known[reader] } else { self.record.len() - 1 };
        let known = &mut self.known[reader];
        *known = if rng.u32(0..4) == 0 { rng.usize(*known..=newest) } else { newest };
        self.record[*known].1
    }

    /// Compare-and-set; returns what the record says then, or nothing if the store is gone.
    pub(super) fn decide(&mut self, from: Record, to: Record, now: u64, overwrite: bool) -> Option<Record> {
        if self.lost {
            return None;
        }
        if self.last_word() == from || overwrite {
            self.record.push((now, to));
        }
        Some(self.last_word())
    }

    /// What the record says in the end.
    pub(super) fn last_word(&self) -> Record {
        self.record[self.record.len() - 1].1
    }
}
