//! Whether a barrier that all members pass or none has been passed: one key, which the first member that knows writes, for good.
//!
//! A member writes *passed* once it has seen every member's entry, and *left* once it will not wait for them. Whichever came first holds: who
//! sees *passed* goes on, even if it wanted to leave, and who sees *left* does not, even if it has seen all entries.

use std::fmt;
use std::time::Instant;

use eplb_core::RankId;

use super::entry::LONGEST_REASON;
use super::error::GroupError;
use crate::store::error::StoreError;
use crate::store::fields::{Fields, Malformed};
use crate::store::{CasOutcome, Store};

/// Where the verdict on a barrier stands.
pub(super) struct Key {
    epoch: u64,
    sequence: u64,
}

impl Key {
    pub(super) fn new(epoch: u64, sequence: u64) -> Self {
        Self { epoch, sequence }
    }

    /// Writes what this member knows, if nobody has written before. The verdict that holds: `None`: passed; or who left, and why.
    pub(super) fn decide(
        &self,
        store: &dyn Store,
        rank: RankId,
        failure: Option<&GroupError>,
        deadline: Instant,
    ) -> Result<Option<(RankId, String)>, GroupError> {
        let mine = failure.map(|error| (rank, error.to_string()));
        match store.compare_and_set(&self.to_string(), None, &encode(mine.as_ref()), deadline)? {
            CasOutcome::Swapped => Ok(mine),
            CasOutcome::Current(held) => decode(&held.unwrap_or_default()).map_err(|detail| {
                StoreError::Protocol { store: self.to_string(), detail: format!("the verdict: {detail}") }
                    .into()
            }),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/group/{}/verdict", self.epoch, self.sequence)
    }
}

/// One byte, `0`: passed; `1`: left, and then by whom (u32) and why.
fn encode(left: Option<&(RankId, String)>) -> Vec<u8> {
    let Some((rank, reason)) = left else { return vec![0] };
    let mut out = vec![1];
    out.extend_from_slice(&rank.0.to_le_bytes());
    out.extend_from_slice(&reason.as_bytes()[..reason.len().min(LONGEST_REASON)]);
    out
}

fn decode(held: &[u8]) -> Result<Option<(RankId, String)>, Malformed> {
    let mut fields = Fields::new(held);
    match fields.u8()? {
        0 => Ok(None),
        1 => {
            let rank = RankId(fields.u32()?);
            Ok(Some((rank, String::from_utf8_lossy(fields.remainder()).into_owned())))
        }
        _ => Err("it is neither that all passed nor that one left"),
    }
}
