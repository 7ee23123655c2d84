//! Waits that a server holds until their keys are written or their time is up.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::message::Reply;
use crate::store::error::StoreError;
use crate::store::table::Table;

/// Bookkeeping of a wait beside the bytes of its keys: entries in three maps.
const WAIT_OVERHEAD_BYTES: usize = 320;
/// And per key.
const KEY_OVERHEAD_BYTES: usize = 40;

/// What a wait is for.
#[derive(Debug)]
pub(super) enum Want {
    /// All keys, each present at some moment. `at` is the first not seen yet; only that one is watched, so a wait
    /// for many keys costs no more than their bytes.
    Present { keys: Vec<String>, at: usize },
    /// Any change of the key. It held what the client knows when the wait came in.
    Change { key: String },
}

/// A blocked wait of a client.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) client: usize,
    pub(super) request: u64,
    pub(super) deadline: Instant,
    pub(super) want: Want,
}

/// An answer to a wait that has ended.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) client: usize,
    pub(super) request: u64,
    pub(super) reply: Reply,
}

/// All waits, bounded in number and bytes.
#[derive(Debug)]
pub(super) struct Waiters {
    // Maps are looked into by key; where several waits end at once, their order is that of the sets.
    by_id: HashMap<u64, Waiter>,
    by_key: HashMap<String, BTreeSet<u64>>,
    by_client: HashMap<usize, BTreeSet<u64>>,
    by_deadline: BTreeSet<(Instant, u64)>,
    next_id: u64,
    bytes: usize,
    max_count: usize,
    max_bytes: usize,
}

impl Waiters {
    pub(super) fn new(max_count: usize, max_bytes: usize) -> Self {
        Self {
            by_id: HashMap::new(),
            by_key: HashMap::new(),
            by_client: HashMap::new(),
            by_deadline: BTreeSet::new(),
            next_id: 0,
            bytes: 0,
            max_count,
            max_bytes,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Moment at which the next wait times out.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// Takes in a wait that is not satisfied yet.
    pub(super) fn park(&mut self, waiter: Waiter) -> Result<(), StoreError> {
        let key = watched(&waiter.want).to_owned();
        let bytes = cost(&waiter.want);
        if self.by_id.len() >= self.max_count || self.bytes + bytes > self.max_bytes {
            return Err(StoreError::Full {
                key,
                detail: format!(
                    "{} waits of {} bytes are under way; raise `max_waiters` and `max_waiter_bytes`",
                    self.by_id.len(),
                    self.bytes
                ),
            });
        }
        let id = self.next_id;
        self.next_id += 1;
        self.bytes += bytes;
        self.by_key.entry(key).or_default().insert(id);
        self.by_client.entry(waiter.client).or_default().insert(id);
        self.by_deadline.insert((waiter.deadline, id));
        self.by_id.insert(id, waiter);
        Ok(())
    }

    /// A key was written or deleted: the waits that end by it.
    pub(super) fn changed(&mut self, key: &str, table: &Table) -> Vec<Answer> {
        let mut answers = Vec::new();
        for id in self.by_key.remove(key).unwrap_or_default() {
            let Some(waiter) = self.by_id.get_mut(&id) else { continue };
            let reply = match &mut waiter.want {
                Want::Change { key } => Some(Reply::Values(vec![table.get(key).cloned()])),
                Want::Present { keys, at } => {
                    *at += keys[*at..].iter().take_while(|key| table.get(key).is_some()).count();
                    (*at == keys.len()).then_some(Reply::Done)
                }
            };
            match reply {
                Some(reply) => {
                    let answer = Answer { client: waiter.client, request: waiter.request, reply };
                    self.by_key_kept(id);
                    answers.push(answer);
                }
                None => {
                    let next = watched(&waiter.want).to_owned();
                    self.by_key.entry(next).or_default().insert(id);
                }
            }
        }
        answers
    }

    /// The waits whose deadline has passed.
    pub(super) fn expired(&mut self, now: Instant, table: &Table) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some(&(deadline, id)) = self.by_deadline.first()
            && deadline <= now
        {
            let Some(waiter) = self.remove(id) else { break };
            let missing = match &waiter.want {
                Want::Change { .. } => vec![0],
                Want::Present { keys, at } => {
                    let missing = |i: &usize| table.get(&keys[*i]).is_none();
                    (*at..keys.len()).filter(missing).map(|i| i as u32).collect()
                }
            };
            answers.push(Answer {
                client: waiter.client,
                request: waiter.request,
                reply: Reply::Missing(missing),
            });
        }
        answers
    }

    /// A client is gone, and its waits with it.
    pub(super) fn forget(&mut self, client: usize) {
        for id in self.by_client.get(&client).cloned().unwrap_or_default() {
            self.remove(id);
        }
    }

    /// Takes a wait out of all maps.
    fn remove(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.by_key_kept(id)?;
        let key = watched(&waiter.want);
        if let Some(ids) = self.by_key.get_mut(key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_key.remove(key);
            }
        }
        Some(waiter)
    }

    /// Takes a wait out of all maps but the one by key.
    fn by_key_kept(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.by_id.remove(&id)?;
        self.bytes -= cost(&waiter.want);
        self.by_deadline.remove(&(waiter.deadline, id));
        if let Some(ids) = self.by_client.get_mut(&waiter.client) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_client.remove(&waiter.client);
            }
        }
        Some(waiter)
    }
}

/// The key that a wait is filed under. `at` of a wait that is parked points at a key.
fn watched(want: &Want) -> &str {
    match want {
        Want::Present { keys, at } => &keys[*at],
        Want::Change { key } => key,
    }
}

fn cost(want: &Want) -> usize {
    let keys = match want {
        Want::Present { keys, .. } => keys.iter().map(|key| key.len() + KEY_OVERHEAD_BYTES).sum(),
        Want::Change { key } => key.len() + KEY_OVERHEAD_BYTES,
    };
    keys + WAIT_OVERHEAD_BYTES
}
