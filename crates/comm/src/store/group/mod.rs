//! Collectives for small control messages between the members of an epoch, through the store.
//!
//! Every member calls the same collectives in the same order; each call takes the next sequence number, and its keys
//! are `<epoch>/group/<sequence>/<rank>`. So nobody ever reads a value of an earlier call or an earlier run, and two
//! members that are at different calls are told so by name instead of waiting for each other.
//!
//! All of them synchronise: no call returns before every member has entered it. That is what bounds the keys: a rank
//! that has completed a call knows that everyone is done with the one before, and deletes its key of that. A group
//! of W ranks holds at most 2 W keys of collectives, and one for each of the last two that all pass or none. Every
//! message passes through the store W times: these are for counts, hashes, plans and decisions, not for weights.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::RankId;

use super::Store;
use super::deadlines::after;
use super::error::StoreError;
use super::fields::{Fields, Malformed};
use super::liveness::counter_key;

mod entry;
mod error;
mod verdict;

use entry::{Entry, LONGEST_REASON};
pub use error::{Collective, GroupError};

/// This rank's place among the members of an epoch.
///
/// Collectives take `&mut self`: one thread makes them, in one order. Several groups of one epoch need a
/// [`PrefixStore`](super::PrefixStore) each.
#[derive(Debug)]
pub struct Group {
    store: Arc<dyn Store>,
    epoch: u64,
    rank: RankId,
    members: Vec<RankId>,
    sequence: u64,
    /// Own keys that nobody reads any more once the next collective is complete.
    outdated: Vec<String>,
    /// Names of this rank's [`Group::post`]s.
    posted: BTreeSet<String>,
    broken: Option<String>,
}

impl Group {
    /// Longest label, bytes; longer ones are cut.
    pub const LONGEST_LABEL: usize = 128;

    /// The group of an epoch. `members` in any order.
    ///
    /// # Errors
    /// [`GroupError::NotMember`].
    pub fn new(
        store: Arc<dyn Store>,
        epoch: u64,
        rank: RankId,
        members: &[RankId],
    ) -> Result<Self, GroupError> {
        let mut members = members.to_vec();
        members.sort_unstable();
        members.dedup();
        if !members.contains(&rank) {
            return Err(GroupError::NotMember { rank, epoch, members });
        }
        Ok(Self {
            store,
            epoch,
            rank,
            members,
            sequence: 0,
            outdated: Vec::new(),
            posted: BTreeSet::new(),
            broken: None,
        })
    }

    /// The group of a later epoch in place of this one. What this rank left of the old epoch is deleted when the
    /// first collective of the new one is complete: then every member has left the old one. What ranks that are no
    /// longer members left of it, the lowest member deletes.
    ///
    /// # Errors
    /// [`GroupError::NotMember`].
    pub fn succeed(self, epoch: u64, members: &[RankId]) -> Result<Self, GroupError> {
        let mut next = Self::new(self.store.clone(), epoch, self.rank, members)?;
        let lowest = next.members.first() == Some(&next.rank);
        let gone = self.members.iter().copied().filter(|rank| lowest && !next.members.contains(rank));
        next.outdate(self.left_behind(&gone.collect::<Vec<_>>()));
        Ok(next)
    }

    /// Keys in the store that are left of this rank in this epoch, and of members that are `gone`.
    pub fn left_behind(&self, gone: &[RankId]) -> Vec<String> {
        let mut keys = self.outdated.clone();
        // A rank that is gone had at most its keys of the two calls before this rank's last, of that, and of the next: where the last
        // failed, all have entered the one before it, but need not have done with the one before that.
        let sequences = self.sequence.saturating_sub(2)..=self.sequence + 1;
        for &rank in gone {
            keys.extend(sequences.clone().map(|sequence| key(self.epoch, sequence, rank)));
        }
        if !gone.is_empty() {
            keys.extend(sequences.map(|sequence| verdict::Key::new(self.epoch, sequence).to_string()));
        }
        for &rank in gone.iter().chain([&self.rank]) {
            keys.push(counter_key(self.epoch, rank));
            keys.extend(self.posted.iter().map(|name| post_key(self.epoch, name, rank)));
        }
        keys
    }

    /// Has keys deleted once the next collective is complete: those that only members still read which have not entered it.
    pub fn outdate(&mut self, keys: impl IntoIterator<Item = String>) {
        self.outdated.extend(keys);
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// This rank.
    pub fn rank(&self) -> RankId {
        self.rank
    }

    /// The members, ascending.
    pub fn members(&self) -> &[RankId] {
        &self.members
    }

    /// The store that it works through.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Returns when every member has entered it. `label` names it in errors.
    ///
    /// # Errors
    /// See [`GroupError`]. After any but `Disagree` the group is broken, and every later call says so.
    pub fn barrier(&mut self, label: &str, deadline: Instant) -> Result<(), GroupError> {
        self.exchange(Collective::Barrier, label, &[], deadline).map(drop)
    }

    /// As [`Group::barrier`], but either every member passes it or none does, whoever is late, interrupted or gives up meanwhile: for what all
    /// members must begin or none, because those that do wait for each other. Costs one operation of the store more. `grace` is time for one
    /// operation that waits for nobody, after the deadline too.
    ///
    /// # Errors
    /// As [`Group::barrier`]; [`GroupError::CalledOff`] names the member that did not pass. After a store that fails this member does not know
    /// whether the others have passed.
    pub fn barrier_all_or_none(
        &mut self,
        label: &str,
        deadline: Instant,
        grace: Duration,
    ) -> Result<(), GroupError> {
        if self.broken.is_some() {
            return self.barrier(label, deadline);
        }
        let came = self.exchange(Collective::Barrier, label, &[], deadline).map(drop);
        let verdict = verdict::Key::new(self.epoch, self.sequence);
        if self.members.first() == Some(&self.rank) {
            self.outdated.push(verdict.to_string());
        }
        let decided = verdict.decide(&*self.store, self.rank, came.as_ref().err(), after(grace));
        let passed = match (came, decided) {
            // All had come before this member left, and others may be past it.
            (_, Ok(None)) => Ok(()),
            (Ok(()), Ok(Some((rank, reason)))) => {
                Err(GroupError::CalledOff { rank, label: label.to_owned(), epoch: self.epoch, reason })
            }
            (Err(error), _) | (Ok(()), Err(error)) => Err(error),
        };
        self.broken = passed.as_ref().err().map(GroupError::to_string);
        passed
    }

    /// `root`'s message on every member; that of the others is not looked at.
    ///
    /// # Errors
    /// As [`Group::barrier`]; [`GroupError::NotMember`] if `root` is none.
    pub fn broadcast(
        &mut self,
        label: &str,
        root: RankId,
        message: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, GroupError> {
        let at = self.members.binary_search(&root).map_err(|_| GroupError::NotMember {
            rank: root,
            epoch: self.epoch,
            members: self.members.clone(),
        })?;
        let mine = if root == self.rank { message } else { &[] };
        let mut messages = self.exchange(Collective::Broadcast, label, mine, deadline)?;
        Ok(messages.swap_remove(at))
    }

    /// Every member's message, in the order of [`Group::members`].
    ///
    /// # Errors
    /// As [`Group::barrier`].
    pub fn all_gather(
        &mut self,
        label: &str,
        message: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, GroupError> {
        self.exchange(Collective::AllGather, label, message, deadline)
    }

    /// Returns when every member has brought the same hash.
    ///
    /// # Errors
    /// [`GroupError::Disagree`], on every member alike, names the hashes and who has which; else as
    /// [`Group::barrier`].
    pub fn agree_hash(&mut self, label: &str, hash: u64, deadline: Instant) -> Result<(), GroupError> {
        let messages = self.exchange(Collective::AgreeHash, label, &hash.to_le_bytes(), deadline)?;
        let mut values: Vec<(u64, Vec<RankId>)> = Vec::new();
        for (rank, message) in self.members.iter().zip(&messages) {
            let mut fields = Fields::new(message);
            let hash = fields.u64().map_err(|detail| self.malformed(*rank, detail))?;
            match values.iter_mut().find(|(value, _)| *value == hash) {
                Some((_, ranks)) => ranks.push(*rank),
                None => values.push((hash, vec![*rank])),
            }
        }
        if values.len() > 1 {
            return Err(GroupError::Disagree { label: label.to_owned(), epoch: self.epoch, values });
        }
        Ok(())
    }

    /// Shows a message of this rank under a name, in place of an earlier one; waits for nobody. For reports that
    /// others look at when they like. Names should be few and the same on all ranks: each is a key per rank.
    ///
    /// # Errors
    /// Those of the store.
    pub fn post(&mut self, name: &str, message: &[u8], deadline: Instant) -> Result<(), GroupError> {
        self.store.set(&post_key(self.epoch, name, self.rank), message, deadline)?;
        self.posted.insert(name.to_owned());
        Ok(())
    }

    /// What every member shows under a name now, in the order of [`Group::members`].
    ///
    /// # Errors
    /// Those of the store.
    pub fn posts(&self, name: &str, deadline: Instant) -> Result<Vec<Option<Vec<u8>>>, GroupError> {
        let keys: Vec<String> = self.members.iter().map(|rank| post_key(self.epoch, name, *rank)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        Ok(self.store.get_many(&keys, deadline)?)
    }

    /// Tells the others, at the call that they are in or enter next, that this rank does not come and why, so that
    /// they need not wait for their deadline. The group is broken after it.
    ///
    /// # Errors
    /// Those of the store; [`GroupError::Broken`] when it was broken before.
    pub fn give_up(&mut self, reason: &str, deadline: Instant) -> Result<(), GroupError> {
        if let Some(cause) = &self.broken {
            return Err(GroupError::Broken { epoch: self.epoch, cause: cause.clone() });
        }
        self.sequence += 1;
        self.outdated.push(key(self.epoch, self.sequence, self.rank));
        self.broken = Some(format!("{} gave up: {reason}", self.rank));
        Ok(self.show_giving_up(reason, deadline)?)
    }

    /// One collective: shows this member's message, waits for all, reads all.
    fn exchange(
        &mut self,
        collective: Collective,
        label: &str,
        message: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, GroupError> {
        if let Some(cause) = &self.broken {
            return Err(GroupError::Broken { epoch: self.epoch, cause: cause.clone() });
        }
        self.sequence += 1;
        let start = Instant::now();
        let entry = Entry { collective: Some(collective), label: cut(label), message }.encode();
        let outcome = self.exchange_entries(collective, cut(label), &entry, deadline);
        let own = key(self.epoch, self.sequence, self.rank);
        match outcome {
            Ok(messages) => {
                // Everyone has entered this call, so everyone is done with the one before.
                let outdated = std::mem::replace(&mut self.outdated, vec![own]);
                // What cannot be deleted now is tried again after the next call.
                let kept = outdated.into_iter().filter(|key| self.store.delete(key, deadline).is_err());
                let kept: Vec<String> = kept.collect();
                self.outdated.extend(kept);
                Ok(messages)
            }
            Err(failure) => {
                self.outdated.push(own);
                let error = match failure {
                    Failure::Other(error) => error,
                    Failure::Missing(ranks) => GroupError::Missing {
                        collective,
                        label: label.to_owned(),
                        epoch: self.epoch,
                        sequence: self.sequence,
                        ranks,
                        waited: start.elapsed(),
                    },
                };
                self.broken = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Shows this member's entry, waits for those of all, reads them.
    fn exchange_entries(
        &self,
        collective: Collective,
        label: &str,
        entry: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, Failure> {
        let own = key(self.epoch, self.sequence, self.rank);
        if entry.len() > self.store.max_value() {
            let reason = format!("its message of {} bytes is larger than the store takes", entry.len());
            self.show_giving_up(&reason, deadline)?;
            let (key, limit) = (own, self.store.max_value());
            return Err(StoreError::TooLarge { what: "value", key, bytes: entry.len(), limit }.into());
        }
        self.store.set(&own, entry, deadline)?;
        let others: Vec<RankId> = self.members.iter().copied().filter(|rank| *rank != self.rank).collect();
        let keys: Vec<String> = others.iter().map(|rank| key(self.epoch, self.sequence, *rank)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        self.store.wait(&keys, deadline).map_err(|error| match error {
            StoreError::Timeout { keys: missing, .. } => {
                let is_missing = |key: &str| missing.iter().any(|missing| missing == key);
                let ranks = keys.iter().zip(&others).filter(|(key, _)| is_missing(key));
                Failure::Missing(ranks.map(|(_, rank)| *rank).collect())
            }
            error => error.into(),
        })?;
        let mut values = self.store.get_many(&keys, deadline)?.into_iter();
        let mut messages = Vec::with_capacity(self.members.len());
        for &rank in &self.members {
            let value = if rank == self.rank { Some(entry.to_vec()) } else { values.next().flatten() };
            // A member deletes its entry only when this rank has entered the next call.
            let value = value.ok_or_else(|| self.malformed(rank, "it vanished while it was read"))?;
            let found = Entry::decode(&value).map_err(|detail| self.malformed(rank, detail))?;
            match found.collective {
                Some(theirs) if (theirs, found.label) == (collective, label) => {
                    messages.push(found.message.to_vec());
                }
                Some(theirs) => {
                    return Err(Failure::Other(GroupError::Mismatch {
                        rank,
                        found: format!("{theirs} {:?}", found.label),
                        expected: format!("{collective} {label:?}"),
                        epoch: self.epoch,
                        sequence: self.sequence,
                    }));
                }
                None => {
                    let reason = String::from_utf8_lossy(found.message).into_owned();
                    let epoch = self.epoch;
                    return Err(Failure::Other(GroupError::GaveUp { rank, epoch, reason }));
                }
            }
        }
        Ok(messages)
    }

    fn show_giving_up(&self, reason: &str, deadline: Instant) -> Result<(), StoreError> {
        let message = &reason.as_bytes()[..reason.len().min(LONGEST_REASON)];
        let entry = Entry { collective: None, label: "", message }.encode();
        self.store.set(&key(self.epoch, self.sequence, self.rank), &entry, deadline)
    }

    fn malformed(&self, rank: RankId, detail: Malformed) -> GroupError {
        GroupError::Store(StoreError::Protocol {
            store: key(self.epoch, self.sequence, rank),
            detail: format!("{rank}'s message: {detail}"),
        })
    }
}

/// Why entries could not be exchanged.
enum Failure {
    Missing(Vec<RankId>),
    Other(GroupError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Other(error.into())
    }
}

impl From<GroupError> for Failure {
    fn from(error: GroupError) -> Self {
        Self::Other(error)
    }
}

fn key(epoch: u64, sequence: u64, rank: RankId) -> String {
    format!("{epoch}/group/{sequence}/{}", rank.0)
}

fn post_key(epoch: u64, name: &str, rank: RankId) -> String {
    format!("{epoch}/post/{name}/{}", rank.0)
}

fn cut(label: &str) -> &str {
    let mut end = label.len().min(Group::LONGEST_LABEL);
    while !label.is_char_boundary(end) {
        end -= 1;
    }
    &label[..end]
}
