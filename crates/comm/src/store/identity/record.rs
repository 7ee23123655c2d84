//! Nonces, hellos and epoch records, and how they look in the store.

use std::fmt;
use std::io;

use eplb_core::RankId;

use crate::store::error::StoreError;
use crate::store::fields::{Fields, Malformed};

/// Key of the epoch record.
pub const EPOCH_KEY: &str = "epoch";
/// Key that counts hellos.
pub(super) const BELL_KEY: &str = "hello-bell";

/// Tells one start of a rank from every other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// A new one, from the operating system's random source.
    ///
    /// # Errors
    /// The source is not available.
    pub fn draw() -> Result<Self, StoreError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| {
            StoreError::io("(any)", "draw random bytes", &io::Error::other(error.to_string()))
        })?;
        Ok(Self(bytes))
    }

    /// From the bytes of [`Nonce::to_bytes`].
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// The record of an epoch in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRecord {
    /// Its number, above that of every epoch before it.
    pub epoch: u64,
    /// Whether all members have accepted it.
    pub formed: bool,
    /// Who belongs to it, ranks ascending, each once.
    pub members: Vec<(RankId, Nonce)>,
}

impl EpochRecord {
    /// The ranks that belong to it, ascending.
    pub fn ranks(&self) -> Vec<RankId> {
        self.members.iter().map(|(rank, _)| *rank).collect()
    }

    /// Whether it lists this start of this rank.
    pub fn lists(&self, rank: RankId, nonce: Nonce) -> bool {
        self.members.contains(&(rank, nonce))
    }

    /// Its bytes in the store.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![RECORD_VERSION, u8::from(self.formed)];
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&(self.members.len() as u32).to_le_bytes());
        for (rank, nonce) in &self.members {
            out.extend_from_slice(&rank.0.to_le_bytes());
            out.extend_from_slice(&nonce.0);
        }
        out
    }

    /// Reads what [`EpochRecord::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(record: &[u8]) -> Result<Self, &'static str> {
        let mut fields = Fields::new(record);
        if fields.u8()? != RECORD_VERSION {
            return Err("it is of another version");
        }
        let formed = fields.u8()? != 0;
        let epoch = fields.u64()?;
        let count = fields.u32()?;
        // Not reserved by `count`: each member takes 20 bytes, so a lying count ends soon.
        let mut members = Vec::new();
        for _ in 0..count {
            members.push((RankId(fields.u32()?), Nonce(fields.array()?)));
        }
        fields.end()?;
        if !members.is_sorted_by(|a, b| a.0 < b.0) {
            return Err("its ranks do not ascend");
        }
        Ok(Self { epoch, formed, members })
    }
}

const RECORD_VERSION: u8 = 1;

/// What a rank says of itself: its nonce, and the last epoch that it accepted (0: none).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) nonce: Nonce,
    pub(super) accepted: u64,
}

impl Hello {
    pub(super) fn encode(self) -> Vec<u8> {
        [&self.nonce.0[..], &self.accepted.to_le_bytes()].concat()
    }

    pub(super) fn decode(hello: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(hello);
        let hello = Self { nonce: Nonce(fields.array()?), accepted: fields.u64()? };
        fields.end()?;
        Ok(hello)
    }
}

/// Key of a rank's hello.
pub(super) fn hello_key(rank: RankId) -> String {
    format!("hello/{}", rank.0)
}
