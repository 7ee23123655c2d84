//! Messages after the handshake.
//!
//! ```text
//! message = length of what follows (4)  kind (1)  request id (8)  fields of the kind
//! ```
//! A request is answered by one message with its id, in any order. Id 0 is the server's sign of life.

use std::sync::Arc;
use std::time::Duration;

use crate::store::error::{StoreError, StoreOp};
use crate::store::fields::{Fields, Malformed, put_bytes, put_optional};
use crate::store::limits::MAX_KEY_BYTES;

/// Bytes of the length before every message.
pub(crate) const LENGTH_BYTES: usize = 4;

/// Largest value that a server may be set to take: two of them and their keys fit the length.
pub(crate) const LARGEST_MAX_VALUE: usize = 1 << 30;

/// Keys of one request take at most this many bytes; a client splits longer lists.
pub(crate) const KEYS_PER_REQUEST_BYTES: usize = 32 << 10;

/// Longest message after its length: two values of a compare-and-set, and fields.
pub(crate) fn longest_message(max_value: usize) -> usize {
    (2 * max_value + 2 * MAX_KEY_BYTES + 1024).max(2 * KEYS_PER_REQUEST_BYTES)
}

const SET: u8 = 1;
const GET: u8 = 2;
const ADD: u8 = 3;
const COMPARE_AND_SET: u8 = 4;
const WAIT: u8 = 5;
const WAIT_CHANGE: u8 = 6;
const DELETE: u8 = 7;

const ALIVE: u8 = 64;
const DONE: u8 = 65;
const VALUES: u8 = 66;
const SUM: u8 = 67;
const SWAPPED: u8 = 68;
const CURRENT: u8 = 69;
const DELETED: u8 = 70;
const MISSING: u8 = 71;
const REFUSED: u8 = 72;

/// What a client asks. Waits carry the time that is left to them, since clocks of two machines differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    Set { key: &'a str, value: &'a [u8] },
    Get { keys: Vec<&'a str> },
    Add { key: &'a str, delta: i64 },
    CompareAndSet { key: &'a str, expected: Option<&'a [u8]>, new: &'a [u8] },
    Wait { keys: Vec<&'a str>, left: Duration },
    WaitChange { key: &'a str, known: Option<&'a [u8]>, left: Duration },
    Delete { key: &'a str },
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A sign of life; answers nothing.
    Alive,
    /// It is done; nothing to tell.
    Done,
    /// Values of the first of the keys asked for, as many as fit one message, at least one.
    Values(Vec<Option<Arc<[u8]>>>),
    /// The sum after an `add`.
    Sum(i64),
    /// A compare-and-set took place.
    Swapped,
    /// It did not; this is what the key holds.
    Current(Option<Arc<[u8]>>),
    /// Whether there was something to delete.
    Deleted(bool),
    /// The deadline passed; positions of the keys that are missing.
    Missing(Vec<u32>),
    /// The request was refused.
    Refused(StoreError),
}

impl<'a> Request<'a> {
    /// The message, with its length.
    pub(crate) fn encode(&self, id: u64) -> Vec<u8> {
        let mut out = vec![0; LENGTH_BYTES];
        let kind = match self {
            Self::Set { .. } => SET,
            Self::Get { .. } => GET,
            Self::Add { .. } => ADD,
            Self::CompareAndSet { .. } => COMPARE_AND_SET,
            Self::Wait { .. } => WAIT,
            Self::WaitChange { .. } => WAIT_CHANGE,
            Self::Delete { .. } => DELETE,
        };
        out.push(kind);
        out.extend_from_slice(&id.to_le_bytes());
        match self {
            Self::Set { key, value } => {
                put_bytes(&mut out, key.as_bytes());
                put_bytes(&mut out, value);
            }
            Self::Get { keys } => put_keys(&mut out, keys),
            Self::Add { key, delta } => {
                put_bytes(&mut out, key.as_bytes());
                out.extend_from_slice(&delta.to_le_bytes());
            }
            Self::CompareAndSet { key, expected, new } => {
                put_bytes(&mut out, key.as_bytes());
                put_optional(&mut out, *expected);
                put_bytes(&mut out, new);
            }
            Self::Wait { keys, left } => {
                put_left(&mut out, *left);
                put_keys(&mut out, keys);
            }
            Self::WaitChange { key, known, left } => {
                put_left(&mut out, *left);
                put_bytes(&mut out, key.as_bytes());
                put_optional(&mut out, *known);
            }
            Self::Delete { key } => put_bytes(&mut out, key.as_bytes()),
        }
        put_length(&mut out);
        out
    }

    /// A request and its id from a message without its length.
    pub(crate) fn decode(message: &'a [u8]) -> Result<(u64, Self), Malformed> {
        let mut fields = Fields::new(message);
        let kind = fields.u8()?;
        let id = fields.u64()?;
        let request = match kind {
            SET => Self::Set { key: fields.text()?, value: fields.bytes()? },
            GET => Self::Get { keys: keys(&mut fields)? },
            ADD => Self::Add { key: fields.text()?, delta: fields.i64()? },
            COMPARE_AND_SET => Self::CompareAndSet {
                key: fields.text()?,
                expected: fields.optional()?,
                new: fields.bytes()?,
            },
            WAIT => {
                let left = Duration::from_micros(fields.u64()?);
                Self::Wait { keys: keys(&mut fields)?, left }
            }
            WAIT_CHANGE => {
                let left = Duration::from_micros(fields.u64()?);
                Self::WaitChange { key: fields.text()?, known: fields.optional()?, left }
            }
            DELETE => Self::Delete { key: fields.text()? },
            _ => return Err("it is of a kind that is no request"),
        };
        fields.end()?;
        if id == 0 {
            return Err("its id is 0");
        }
        Ok((id, request))
    }

    /// The operation, for messages.
    pub(crate) fn op(&self) -> StoreOp {
        match self {
            Self::Set { .. } => StoreOp::Set,
            Self::Get { .. } => StoreOp::Get,
            Self::Add { .. } => StoreOp::Add,
            Self::CompareAndSet { .. } => StoreOp::CompareAndSet,
            Self::Wait { .. } => StoreOp::Wait,
            Self::WaitChange { .. } => StoreOp::WaitChange,
            Self::Delete { .. } => StoreOp::Delete,
        }
    }

    /// Its keys.
    pub(crate) fn keys(&self) -> &[&'a str] {
        match self {
            Self::Get { keys } | Self::Wait { keys, .. } => keys,
            Self::Set { key, .. }
            | Self::Add { key, .. }
            | Self::CompareAndSet { key, .. }
            | Self::WaitChange { key, .. }
            | Self::Delete { key } => std::slice::from_ref(key),
        }
    }
}

/// A reply as the pieces to send, so that values that the store holds are not copied.
pub(crate) fn encode_reply(id: u64, reply: &Reply) -> Vec<Piece> {
    let mut pieces = Pieces { done: Vec::new(), tail: vec![0; LENGTH_BYTES] };
    let out = &mut pieces.tail;
    let kind = match reply {
        Reply::Alive => ALIVE,
        Reply::Done => DONE,
        Reply::Values(_) => VALUES,
        Reply::Sum(_) => SUM,
        Reply::Swapped => SWAPPED,
        Reply::Current(_) => CURRENT,
        Reply::Deleted(_) => DELETED,
        Reply::Missing(_) => MISSING,
        Reply::Refused(_) => REFUSED,
    };
    out.push(kind);
    out.extend_from_slice(&id.to_le_bytes());
    match reply {
        Reply::Alive | Reply::Done | Reply::Swapped => {}
        Reply::Values(values) => {
            out.extend_from_slice(&(values.len() as u32).to_le_bytes());
            values.iter().for_each(|value| pieces.optional(value.as_ref()));
        }
        Reply::Sum(sum) => out.extend_from_slice(&sum.to_le_bytes()),
        Reply::Current(current) => pieces.optional(current.as_ref()),
        Reply::Deleted(was_there) => out.push(u8::from(*was_there)),
        Reply::Missing(positions) => {
            out.extend_from_slice(&(positions.len() as u32).to_le_bytes());
            positions.iter().for_each(|position| out.extend_from_slice(&position.to_le_bytes()));
        }
        Reply::Refused(error) => put_error(out, error),
    }
    pieces.finish()
}

/// A reply and its id from a message without its length; `server` is named in errors.
pub(crate) fn decode_reply(message: &[u8], server: &str) -> Result<(u64, Reply), Malformed> {
    let mut fields = Fields::new(message);
    let kind = fields.u8()?;
    let id = fields.u64()?;
    let reply = match kind {
        ALIVE => Reply::Alive,
        DONE => Reply::Done,
        VALUES => {
            let count = fields.u32()?;
            // Not reserved by `count`: each value takes a byte at least, so a lying count ends soon.
            let mut values = Vec::new();
            for _ in 0..count {
                values.push(fields.optional()?.map(Arc::from));
            }
            Reply::Values(values)
        }
        SUM => Reply::Sum(fields.i64()?),
        SWAPPED => Reply::Swapped,
        CURRENT => Reply::Current(fields.optional()?.map(Arc::from)),
        DELETED => Reply::Deleted(fields.u8()? != 0),
        MISSING => {
            let count = fields.u32()?;
            let mut positions = Vec::new();
            for _ in 0..count {
                positions.push(fields.u32()?);
            }
            Reply::Missing(positions)
        }
        REFUSED => Reply::Refused(error(&mut fields, server)?),
        _ => return Err("it is of a kind that is no reply"),
    };
    fields.end()?;
    Ok((id, reply))
}

/// Bytes to send: own ones, or a value shared with the store.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    Own(Vec<u8>),
    Shared(Arc<[u8]>),
}

impl Piece {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

struct Pieces {
    done: Vec<Piece>,
    tail: Vec<u8>,
}

impl Pieces {
    /// Values from this size on are shared rather than copied.
    const SHARED_FROM: usize = 4096;

    fn optional(&mut self, value: Option<&Arc<[u8]>>) {
        match value {
            Some(value) if value.len() >= Self::SHARED_FROM => {
                self.tail.push(1);
                self.tail.extend_from_slice(&(value.len() as u32).to_le_bytes());
                self.done.push(Piece::Own(std::mem::take(&mut self.tail)));
                self.done.push(Piece::Shared(Arc::clone(value)));
            }
            small => put_optional(&mut self.tail, small.map(|value| &**value)),
        }
    }

    fn finish(mut self) -> Vec<Piece> {
        if !self.tail.is_empty() {
            self.done.push(Piece::Own(self.tail));
        }
        let total: usize = self.done.iter().map(|piece| piece.bytes().len()).sum();
        // The first piece is the one with the place for the length.
        if let Some(Piece::Own(first)) = self.done.first_mut() {
            first[..LENGTH_BYTES].copy_from_slice(&((total - LENGTH_BYTES) as u32).to_le_bytes());
        }
        self.done
    }
}

fn put_length(message: &mut [u8]) {
    let length = (message.len() - LENGTH_BYTES) as u32;
    message[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
}

fn put_keys(out: &mut Vec<u8>, keys: &[&str]) {
    out.extend_from_slice(&(keys.len() as u32).to_le_bytes());
    keys.iter().for_each(|key| put_bytes(out, key.as_bytes()));
}

fn put_left(out: &mut Vec<u8>, left: Duration) {
    let micros = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
    out.extend_from_slice(&micros.to_le_bytes());
}

fn keys<'a>(fields: &mut Fields<'a>) -> Result<Vec<&'a str>, Malformed> {
    let count = fields.u32()?;
    // Not reserved by `count`: each key takes four bytes at least, so a lying count ends soon.
    let mut keys = Vec::new();
    for _ in 0..count {
        keys.push(fields.text()?);
    }
    Ok(keys)
}

const FULL: u8 = 1;
const COUNTER: u8 = 2;
const TOO_LARGE: u8 = 3;
const BAD_REQUEST: u8 = 4;

/// The errors that a server finds; anything else is a request that no client of this version sends.
fn put_error(out: &mut Vec<u8>, error: &StoreError) {
    match error {
        StoreError::Full { key, detail } => {
            out.push(FULL);
            put_bytes(out, key.as_bytes());
            put_bytes(out, detail.as_bytes());
        }
        StoreError::Counter { key, detail } => {
            out.push(COUNTER);
            put_bytes(out, key.as_bytes());
            put_bytes(out, detail.as_bytes());
        }
        StoreError::TooLarge { key, bytes, limit, .. } => {
            out.push(TOO_LARGE);
            put_bytes(out, key.as_bytes());
            out.extend_from_slice(&(*bytes as u64).to_le_bytes());
            out.extend_from_slice(&(*limit as u64).to_le_bytes());
        }
        other => {
            out.push(BAD_REQUEST);
            put_bytes(out, other.to_string().as_bytes());
        }
    }
}

fn error(fields: &mut Fields<'_>, server: &str) -> Result<StoreError, Malformed> {
    let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    Ok(match fields.u8()? {
        FULL => StoreError::Full { key: fields.text()?.to_owned(), detail: fields.text()?.to_owned() },
        COUNTER => StoreError::Counter { key: fields.text()?.to_owned(), detail: fields.text()?.to_owned() },
        TOO_LARGE => StoreError::TooLarge {
            what: "request",
            key: fields.text()?.to_owned(),
            bytes: size(fields.u64()?),
            limit: size(fields.u64()?),
        },
        BAD_REQUEST => StoreError::Protocol { store: server.to_owned(), detail: fields.text()?.to_owned() },
        _ => return Err("its error is of a kind that is none"),
    })
}
