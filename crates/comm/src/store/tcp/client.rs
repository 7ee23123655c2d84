//! The connecting side.

use std::sync::Arc;
use std::time::Instant;

use super::dial::dial;
use super::link::Link;
use super::message::{KEYS_PER_REQUEST_BYTES, Reply, Request};
use super::token::Token;
use crate::store::deadlines::{Deadlines, after, left};
use crate::store::error::{StoreError, StoreOp};
use crate::store::limits::Limits;
use crate::store::{CasOutcome, Store};

/// A client of a [`StoreServer`](super::StoreServer). See the [module](super). Clones are handles of one connection.
#[derive(Debug, Clone)]
pub struct TcpStore {
    link: Arc<Link>,
}

impl TcpStore {
    /// Connects to `host:port`. While nothing listens there it tries again until the deadline.
    ///
    /// # Errors
    /// [`StoreError::Timeout`] when nothing answered; [`StoreError::Refused`] when the tokens do not fit;
    /// [`StoreError::Protocol`] when what answered is no store of this version.
    pub fn connect(
        address: &str,
        token: Option<&Token>,
        deadlines: &Deadlines,
        deadline: Instant,
    ) -> Result<Self, StoreError> {
        let (stream, welcome) = dial(address, token, deadlines, deadline)?;
        Ok(Self { link: Arc::new(Link::start(address, stream, welcome, deadlines)?) })
    }

    /// The server's address, as given to [`TcpStore::connect`].
    pub fn server(&self) -> &str {
        self.link.server()
    }

    /// Requests that are not sent, and requests that wait for a reply.
    #[cfg(test)]
    pub(crate) fn under_way(&self) -> (usize, usize) {
        self.link.under_way()
    }

    fn limits(&self) -> Limits {
        Limits { max_value: self.link.max_value(), max_total: usize::MAX }
    }

    fn unexpected<T>(&self, op: StoreOp, reply: &Reply) -> Result<T, StoreError> {
        let kind = match reply {
            Reply::Alive => "a sign of life",
            Reply::Done => "a bare acknowledgement",
            Reply::Values(_) => "values",
            Reply::Sum(_) => "a sum",
            Reply::Swapped | Reply::Current(_) => "the outcome of a compare-and-set",
            Reply::Deleted(_) => "the outcome of a delete",
            Reply::Missing(_) | Reply::Refused(_) => "a refusal",
        };
        Err(StoreError::Protocol {
            store: self.link.server().to_owned(),
            detail: format!("it answered {op} with {kind}"),
        })
    }
}

/// The first of `keys` that fit one request, at least one, and the others.
fn split<'k, 's>(keys: &'k [&'s str]) -> (&'k [&'s str], &'k [&'s str]) {
    let mut bytes = 0;
    let fit = keys.iter().take_while(|key| {
        bytes += key.len() + 4;
        bytes <= KEYS_PER_REQUEST_BYTES
    });
    keys.split_at(fit.count().max(1).min(keys.len()))
}

impl Store for TcpStore {
    fn set(&self, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        self.limits().check_value(key, value)?;
        match self.link.call(&Request::Set { key, value }, deadline)? {
            Reply::Done => Ok(()),
            other => self.unexpected(StoreOp::Set, &other),
        }
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.get_many(&[key], deadline)?.pop().flatten())
    }

    fn add(&self, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        match self.link.call(&Request::Add { key, delta }, deadline)? {
            Reply::Sum(sum) => Ok(sum),
            other => self.unexpected(StoreOp::Add, &other),
        }
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        self.limits().check_value(key, new)?;
        if expected.is_some_and(|expected| expected.len() > self.link.max_value()) {
            // No key holds that much: the answer is what it does hold.
            return self.get(key, deadline).map(CasOutcome::Current);
        }
        match self.link.call(&Request::CompareAndSet { key, expected, new }, deadline)? {
            Reply::Swapped => Ok(CasOutcome::Swapped),
            Reply::Current(current) => Ok(CasOutcome::Current(current.map(|value| value.to_vec()))),
            other => self.unexpected(StoreOp::CompareAndSet, &other),
        }
    }

    fn wait(&self, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        let mut rest = keys;
        while !rest.is_empty() {
            let (some, others) = split(rest);
            match self.link.call(&Request::Wait { keys: some.to_vec(), left: left(deadline) }, deadline) {
                Ok(Reply::Done) => rest = others,
                Ok(other) => return self.unexpected(StoreOp::Wait, &other),
                Err(StoreError::Timeout { op, keys: mut missing, waited }) => {
                    // The others have not been looked at; those that are there are not to blame.
                    let found = self.get_many(others, after(self.link.reply_grace())).unwrap_or_default();
                    let absent = |at: usize| !matches!(found.get(at), Some(Some(_)));
                    missing.extend(
                        others
                            .iter()
                            .enumerate()
                            .filter(|(at, _)| absent(*at))
                            .map(|(_, key)| (*key).to_owned()),
                    );
                    return Err(StoreError::Timeout { op, keys: missing, waited });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait_change(
        &self,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if known.is_some_and(|known| known.len() > self.link.max_value()) {
            // No key holds that much: whatever it holds differs.
            return self.get(key, deadline);
        }
        match self.link.call(&Request::WaitChange { key, known, left: left(deadline) }, deadline)? {
            Reply::Values(mut values) if values.len() == 1 => {
                Ok(values.pop().flatten().map(|value| value.to_vec()))
            }
            other => self.unexpected(StoreOp::WaitChange, &other),
        }
    }

    fn delete(&self, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        match self.link.call(&Request::Delete { key }, deadline)? {
            Reply::Deleted(was_there) => Ok(was_there),
            other => self.unexpected(StoreOp::Delete, &other),
        }
    }

    fn get_many(&self, keys: &[&str], deadline: Instant) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let mut values = Vec::with_capacity(keys.len());
        while values.len() < keys.len() {
            let (some, _) = split(&keys[values.len()..]);
            match self.link.call(&Request::Get { keys: some.to_vec() }, deadline)? {
                Reply::Values(got) if (1..=some.len()).contains(&got.len()) => {
                    values.extend(got.into_iter().map(|value| value.map(|value| value.to_vec())));
                }
                other => return self.unexpected(StoreOp::Get, &other),
            }
        }
        Ok(values)
    }

    fn max_value(&self) -> usize {
        self.link.max_value()
    }
}
