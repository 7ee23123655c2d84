//! What a server does with requests: the map and the waits on it, without sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message::{Reply, Request};
use super::server::ServerOptions;
use super::waiters::{Answer, Waiter, Waiters, Want};
use crate::store::deadlines::after;
use crate::store::error::StoreError;
use crate::store::fields::Malformed;
use crate::store::table::Table;

/// The store behind a server. One thread drives it, which is what orders the operations.
#[derive(Debug)]
pub(super) struct Service {
    table: Table,
    waiters: Waiters,
    max_value: usize,
}

impl Service {
    pub(super) fn new(options: &ServerOptions) -> Self {
        Self {
            table: Table::new(options.limits),
            waiters: Waiters::new(options.max_waiters, options.max_waiter_bytes),
            max_value: options.limits.max_value,
        }
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    pub(super) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Carries out a client's message: its answer, unless it has to wait, and those of the waits that it ends.
    pub(super) fn carry_out(&mut self, client: usize, message: &[u8]) -> Result<Vec<Answer>, Malformed> {
        let (id, request) = Request::decode(message)?;
        let (reply, changed) = match self.answer(client, id, &request) {
            Ok(answer) => answer,
            Err(error) => (Some(Reply::Refused(error)), None),
        };
        let mut answers: Vec<Answer> =
            reply.into_iter().map(|reply| Answer { client, request: id, reply }).collect();
        if let Some(key) = changed {
            answers.extend(self.waiters.changed(key, &self.table));
        }
        Ok(answers)
    }

    /// Answers of the waits whose deadline has passed.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Answer> {
        self.waiters.expired(now, &self.table)
    }

    /// A client is gone, and its waits with it. What it wrote stays.
    pub(super) fn forget(&mut self, client: usize) {
        self.waiters.forget(client);
    }

    /// The reply, if there is one already, and the key that changed.
    fn answer<'a>(
        &mut self,
        client: usize,
        id: u64,
        request: &Request<'a>,
    ) -> Result<(Option<Reply>, Option<&'a str>), StoreError> {
        let table = &mut self.table;
        Ok(match *request {
            Request::Set { key, value } => {
                let changed = table.set(key, value)?;
                (Some(Reply::Done), changed.then_some(key))
            }
            Request::Get { ref keys } => (Some(Reply::Values(values(table, keys, self.max_value))), None),
            Request::Add { key, delta } => {
                let (sum, changed) = table.add(key, delta)?;
                (Some(Reply::Sum(sum)), changed.then_some(key))
            }
            Request::CompareAndSet { key, expected, new } => {
                match table.compare_and_set(key, expected, new)? {
                    Some(changed) => (Some(Reply::Swapped), changed.then_some(key)),
                    None => (Some(Reply::Current(table.get(key).cloned())), None),
                }
            }
            Request::Delete { key } => {
                let was_there = table.delete(key);
                (Some(Reply::Deleted(was_there)), was_there.then_some(key))
            }
            Request::Wait { ref keys, left } => match keys.iter().position(|k| table.get(k).is_none()) {
                None => (Some(Reply::Done), None),
                Some(at) => {
                    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
                    self.park(client, id, left, Want::Present { keys, at })?;
                    (None, None)
                }
            },
            Request::WaitChange { key, known, left } => {
                let current = table.get(key);
                if current.map(|value| &**value) != known {
                    (Some(Reply::Values(vec![current.cloned()])), None)
                } else {
                    self.park(client, id, left, Want::Change { key: key.to_owned() })?;
                    (None, None)
                }
            }
        })
    }

    fn park(&mut self, client: usize, request: u64, left: Duration, want: Want) -> Result<(), StoreError> {
        self.waiters.park(Waiter { client, request, deadline: after(left), want })
    }
}

/// Values of the first keys, as many as add up to one largest value, at least one.
fn values(table: &Table, keys: &[&str], max_bytes: usize) -> Vec<Option<Arc<[u8]>>> {
    let mut bytes = 0;
    let mut values = Vec::new();
    for key in keys {
        let value = table.get(key).cloned();
        bytes += value.as_ref().map_or(0, |value| value.len());
        if bytes > max_bytes && !values.is_empty() {
            break;
        }
        values.push(value);
    }
    values
}
