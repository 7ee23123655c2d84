//! One call of [`Formation::form`]: following a leader, and leading.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use eplb_core::RankId;

use super::record::{BELL_KEY, EPOCH_KEY, EpochRecord, Hello, Nonce, hello_key};
use super::{Absent, Formation, FormationError};
use crate::store::deadlines::{after, left};
use crate::store::error::{StoreError, StoreOp};
use crate::store::{CasOutcome, Store};

pub(super) struct Run<'a> {
    formation: &'a Formation,
    store: &'a dyn Store,
    deadline: Instant,
    start: Instant,
    /// Ranks of the epoch to be, ascending, each once.
    expected: Vec<RankId>,
    /// What this start has said of itself.
    said: Hello,
    /// Who was last found not to have come, or not to have accepted, for the error at the deadline.
    missing: Vec<RankId>,
    /// Number of the latest epoch seen, for the same.
    latest: Option<u64>,
}

/// The epoch key: its bytes, for compare-and-set, and what they say.
type Current = (Option<Vec<u8>>, Option<EpochRecord>);

/// An epoch that this rank has proposed.
struct Proposal {
    record: EpochRecord,
    /// When those who have not accepted it may be left out.
    accept_by: Instant,
}

impl<'a> Run<'a> {
    /// A call for a rank that is among the expected ones.
    pub(super) fn new(formation: &'a Formation, store: &'a dyn Store, deadline: Instant) -> Self {
        let mut expected = formation.expected.clone();
        expected.sort_unstable();
        expected.dedup();
        Self {
            formation,
            store,
            deadline,
            start: Instant::now(),
            said: Hello { nonce: formation.nonce, accepted: 0 },
            missing: expected.iter().copied().filter(|rank| *rank != formation.rank).collect(),
            latest: None,
            expected,
        }
    }

    pub(super) fn form(mut self) -> Result<EpochRecord, FormationError> {
        let rank = self.formation.rank;
        let leader = self.expected.iter().copied().fold(rank, RankId::min);
        let outcome = self.say_hello().and_then(|()| {
            if leader == rank {
                return self.lead();
            }
            let late = StoreError::timeout(StoreOp::WaitChange, EPOCH_KEY, self.start.elapsed());
            self.follow(self.deadline)?.ok_or(FormationError::Store(late))
        });
        // Whichever operation it was that ran out of time: what matters is who was waited for.
        match outcome {
            Err(FormationError::Store(StoreError::Timeout { .. })) if left(self.deadline).is_zero() => {
                let waited = self.start.elapsed();
                if leader == rank {
                    return Err(FormationError::Missing { ranks: self.missing, waited });
                }
                Err(FormationError::NotListed { rank, leader, latest: self.latest, waited })
            }
            outcome => outcome,
        }
    }

    /// Says hello over whatever stood there: of two starts of a rank, the later one counts.
    fn say_hello(&mut self) -> Result<(), FormationError> {
        self.store.set(&hello_key(self.formation.rank), &self.said.encode(), self.deadline)?;
        Ok(self.ring()?)
    }

    /// Adds to the hello that an epoch is accepted. If it stands no more, there has been a later start.
    fn accept(&mut self, epoch: u64) -> Result<(), FormationError> {
        let rank = self.formation.rank;
        let (old, new) = (self.said.encode(), Hello { accepted: epoch, ..self.said });
        match self.store.compare_and_set(&hello_key(rank), Some(&old), &new.encode(), self.deadline)? {
            CasOutcome::Swapped => {
                self.said = new;
                Ok(self.ring()?)
            }
            CasOutcome::Current(_) => Err(FormationError::Superseded { rank }),
        }
    }

    /// After a hello: whoever saw this count sees the hello as well.
    fn ring(&self) -> Result<(), StoreError> {
        self.store.add(BELL_KEY, 1, self.deadline).map(drop)
    }

    fn read_epoch(&mut self) -> Result<Current, FormationError> {
        let bytes = self.store.get(EPOCH_KEY, self.deadline)?;
        let record = bytes.as_deref().map(EpochRecord::decode).transpose().map_err(|detail| {
            let detail = format!("the epoch record is malformed: {detail}");
            StoreError::Protocol { store: EPOCH_KEY.to_owned(), detail }
        })?;
        if let Some(record) = &record {
            self.latest = Some(record.epoch);
            let Formation { rank, nonce, last, .. } = *self.formation;
            if record.formed && last.is_some_and(|last| record.epoch > last) && !record.lists(rank, nonce) {
                return Err(FormationError::Excluded { rank, epoch: record.epoch });
            }
        }
        Ok((bytes, record))
    }

    /// Whether a record lists this start and is news to it.
    fn concerns(&self, record: &EpochRecord) -> bool {
        let Formation { rank, nonce, last, .. } = *self.formation;
        record.lists(rank, nonce) && last.is_none_or(|last| record.epoch > last)
    }

    /// Accepts epochs that list this start until one is formed; `None` when `until` has passed.
    fn follow(&mut self, until: Instant) -> Result<Option<EpochRecord>, FormationError> {
        let rank = self.formation.rank;
        loop {
            let (bytes, record) = self.read_epoch()?;
            match record {
                Some(record) if self.concerns(&record) => {
                    if record.formed {
                        return Ok(Some(record));
                    }
                    if self.said.accepted != record.epoch {
                        self.accept(record.epoch)?;
                    }
                }
                // Another start of this rank is listed: an earlier one, or, if its hello stands, a later one.
                Some(record) if record.members.iter().any(|(listed, _)| *listed == rank) => {
                    self.check_not_superseded(&self.hellos(&[rank])?)?;
                }
                _ => {}
            }
            match self.store.wait_change(EPOCH_KEY, bytes.as_deref(), until.min(self.deadline)) {
                Err(StoreError::Timeout { .. }) => return Ok(None),
                other => other?,
            };
        }
    }

    fn check_not_superseded(&self, hellos: &BTreeMap<RankId, Hello>) -> Result<(), FormationError> {
        let Formation { rank, nonce, .. } = *self.formation;
        match hellos.get(&rank) {
            Some(hello) if hello.nonce != nonce => Err(FormationError::Superseded { rank }),
            _ => Ok(()),
        }
    }

    /// Proposes epochs until all whom one lists have accepted it, or joins that of a lower rank that leads as well.
    fn lead(&mut self) -> Result<EpochRecord, FormationError> {
        let Formation { rank, last, absent, accept, .. } = *self.formation;
        let join_by = match absent {
            Absent::Fail => self.deadline,
            Absent::LeaveOut { join_by } => join_by,
        };
        let mut proposal: Option<Proposal> = None;
        // Starts that did not accept in time, most likely of processes that are gone.
        let mut left_out: BTreeSet<(RankId, Nonce)> = BTreeSet::new();
        // Latest epoch of a lower rank that this rank has waited for in vain.
        let mut given_up = 0;
        loop {
            let bell = self.store.get(BELL_KEY, self.deadline)?;
            let mut hellos = self.hellos(&self.expected)?;
            self.check_not_superseded(&hellos)?;
            let (bytes, record) = self.read_epoch()?;
            let epoch = record.as_ref().map_or(0, |record| record.epoch);
            if let Some(record) = &record
                && self.concerns(record)
                && record.members.first().is_some_and(|(leader, _)| *leader < rank)
                && epoch > given_up
            {
                // Someone whom this rank does not expect leads. If it is dead, its proposal never forms.
                match self.follow(after(accept))? {
                    Some(formed) => return Ok(formed),
                    None => given_up = self.latest.unwrap_or(epoch),
                }
                continue;
            }

            let absentees = self.expected.iter().copied().filter(|rank| !hellos.contains_key(rank));
            if self.are_missing(absentees.collect()) && !left(join_by).is_zero() {
                self.await_hello(bell, join_by)?;
                continue;
            }

            hellos.retain(|rank, hello| !left_out.contains(&(*rank, hello.nonce)));
            let listed: Vec<_> = hellos.iter().map(|(rank, hello)| (*rank, hello.nonce)).collect();
            let mine = proposal.as_ref().filter(|mine| record.as_ref() == Some(&mine.record));
            let Some(mine) = mine.filter(|mine| mine.record.members == listed) else {
                let epoch = epoch.max(last.unwrap_or(0)) + 1;
                let record = EpochRecord { epoch, formed: false, members: listed };
                if self.write_epoch(bytes, &record)? {
                    proposal = Some(Proposal { record, accept_by: join_by.max(after(accept)) });
                }
                continue;
            };
            let has_accepted =
                |(other, hello): &(&RankId, &Hello)| **other == rank || hello.accepted == mine.record.epoch;
            let open: Vec<_> = hellos.iter().filter(|entry| !has_accepted(entry)).collect();
            if !self.are_missing(open.iter().map(|(rank, _)| **rank).collect()) {
                let formed = EpochRecord { formed: true, ..mine.record.clone() };
                if self.write_epoch(bytes, &formed)? {
                    return Ok(formed);
                }
            } else if absent != Absent::Fail && left(mine.accept_by).is_zero() {
                left_out.extend(open.iter().map(|(rank, hello)| (**rank, hello.nonce)));
            } else {
                self.await_hello(bell, mine.accept_by)?;
            }
        }
    }

    /// Whether there are such ranks; if so they are those that the error names.
    fn are_missing(&mut self, ranks: Vec<RankId>) -> bool {
        let any = !ranks.is_empty();
        if any {
            self.missing = ranks;
        }
        any
    }

    /// Puts a record in the place of the one that was read; whether it was still that one.
    fn write_epoch(&self, read: Option<Vec<u8>>, record: &EpochRecord) -> Result<bool, StoreError> {
        let outcome =
            self.store.compare_and_set(EPOCH_KEY, read.as_deref(), &record.encode(), self.deadline)?;
        Ok(outcome == CasOutcome::Swapped)
    }

    /// Hellos of some ranks; what is no hello counts as none.
    fn hellos(&self, ranks: &[RankId]) -> Result<BTreeMap<RankId, Hello>, StoreError> {
        let keys: Vec<String> = ranks.iter().map(|rank| hello_key(*rank)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let hellos = ranks.iter().zip(self.store.get_many(&keys, self.deadline)?);
        Ok(hellos.filter_map(|(rank, value)| Some((*rank, Hello::decode(&value?).ok()?))).collect())
    }

    /// Until the bell rings after `bell` was read, or `until` passes. An error when the whole deadline has passed.
    fn await_hello(&self, bell: Option<Vec<u8>>, until: Instant) -> Result<(), StoreError> {
        // Once `until` is over only the deadline is left to wait for.
        let until = if left(until).is_zero() { self.deadline } else { until.min(self.deadline) };
        match self.store.wait_change(BELL_KEY, bell.as_deref(), until) {
            Err(StoreError::Timeout { .. }) if !left(self.deadline).is_zero() => Ok(()),
            other => other.map(drop),
        }
    }
}
