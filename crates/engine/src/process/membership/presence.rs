//! What a process shows of itself while an epoch forms.

use eplb_comm::store::Nonce;
use eplb_core::RankId;

/// A process's word in the store. Renewed while it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// Which start of which rank it is.
    pub nonce: Nonce,
    /// Renewed: moves while the process lives.
    pub count: u64,
    /// The epoch that it has accepted, 0 for none.
    pub accepted: u64,
    /// Hash of the change that a member wants ([`super::Reform::hash64`]); 0 for one that joins.
    pub change: u64,
    /// Hash of what else must be the same: program, model, options, the topology of the next epoch.
    pub facts: u64,
    /// Hash of the layout of its experts.
    pub layout: u64,
}

const FORMAT: u8 = 1;
const BYTES: usize = 1 + 16 + 5 * 8;

impl Presence {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend(self.nonce.to_bytes());
        for number in [self.count, self.accepted, self.change, self.facts, self.layout] {
            out.extend(number.to_le_bytes());
        }
        out
    }

    /// Reads one; `None` for what is none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let (format, rest) = bytes.split_first()?;
        let (nonce, rest) = rest.split_first_chunk::<16>()?;
        let mut numbers = rest.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk));
        let mut next = || numbers.next();
        (*format == FORMAT).then_some(())?;
        Some(Self {
            nonce: Nonce::from_bytes(*nonce),
            count: next()?,
            accepted: next()?,
            change: next()?,
            facts: next()?,
            layout: next()?,
        })
    }
}

/// Where a member of epoch `old` shows itself.
pub(super) fn member_key(old: u64, rank: RankId) -> String {
    format!("{old}/reform/{}", rank.0)
}

/// Where a process shows itself that is to join as a rank.
pub(super) fn joiner_key(rank: RankId) -> String {
    format!("join/{}", rank.0)
}

/// Where it is told that it is not taken.
pub(super) fn refusal_key(rank: RankId) -> String {
    format!("join/{}/refused", rank.0)
}

/// Counts changes of all of these, so that one key is watched.
pub(super) const BELL_KEY: &str = "reform-bell";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presences_are_read_as_written_and_nothing_else_is_one() {
        let nonce = Nonce::from_bytes([7; 16]);
        let some = Presence { nonce, count: 1, accepted: 2, change: 3, facts: 4, layout: 5 };
        let bytes = some.encode();
        assert_eq!(Presence::decode(&bytes), Some(some));
        for end in 0..bytes.len() {
            assert_eq!(Presence::decode(&bytes[..end]), None);
        }
        assert_eq!(Presence::decode(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(Presence::decode(&[&[9], &bytes[1..]].concat()), None);
    }
}
