//! Which start of which rank takes part: nonces, and the epoch that lists them.
//!
//! Every start of a rank draws a [`Nonce`] and says hello with it. The lowest rank lists all of them under the next
//! epoch number, by compare-and-set on one key; a rank accepts an epoch only if it lists the rank's own nonce; when all
//! have accepted, the epoch is *formed*. Every later key carries its number. So whatever an earlier run, or an
//! earlier start of a rank, left in the store is never taken for news:
//! - a hello of a dead process gets listed, is never accepted, and is replaced by that of the rank's next start;
//! - an epoch record of an earlier run lists other nonces;
//! - a leader that was stopped and resumes finds that its compare-and-set no longer applies.
//!
//! Keys: `hello/<rank>`, `hello-bell` (counts hellos, so that the leader watches one key), `epoch`. Their number
//! does not grow with the number of runs.

use std::fmt;
use std::time::{Duration, Instant};

use eplb_core::RankId;

use super::Store;
use super::error::StoreError;

mod record;
mod run;

pub use record::{EPOCH_KEY, EpochRecord, Nonce};
use run::Run;

/// What becomes of an epoch when an expected rank does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// The epoch does not form: [`FormationError::Missing`]. At the start of a job.
    Fail,
    /// Once `join_by` has passed, it forms without them. When members change.
    LeaveOut {
        /// Until when all expected ranks are waited for.
        join_by: Instant,
    },
}

/// A rank's part in forming an epoch.
#[derive(Debug, Clone)]
pub struct Formation {
    /// This rank.
    pub rank: RankId,
    /// The nonce of this start of it.
    pub nonce: Nonce,
    /// Ranks that should belong to the epoch, this one among them. All should be given the same; where they differ,
    /// the lowest of the leading ranks has its way.
    pub expected: Vec<RankId>,
    /// The last epoch that this start belonged to. An epoch formed after it without this rank means that the rank
    /// has been excluded; for a rank that starts it may mean an earlier run, and is passed over.
    pub last: Option<u64>,
    /// What becomes of absent ranks.
    pub absent: Absent,
    /// How long a listed rank has to accept, and a proposal of a lower rank to form, before this rank goes on
    /// without it ([`Deadlines::accept`](super::Deadlines)).
    pub accept: Duration,
}

/// Why no epoch with this rank has formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormationError {
    /// Some ranks did not come, or did not accept, by the deadline.
    #[error(
        "no epoch formed in {waited:?}: {} did not come; were they started, with the same store?",
        Ranks(ranks)
    )]
    Missing {
        /// The ranks, ascending.
        ranks: Vec<RankId>,
        /// Time from the call to giving up.
        waited: Duration,
    },
    /// The rank that leads has not listed this one by the deadline.
    #[error(
        "{rank}: no epoch lists this start of it after {waited:?} (latest: {latest:?}); {leader} leads: is it running, \
         with the same store and list of ranks?"
    )]
    NotListed {
        /// This rank.
        rank: RankId,
        /// The lowest expected rank.
        leader: RankId,
        /// Number of the latest epoch seen.
        latest: Option<u64>,
        /// Time from the call to giving up.
        waited: Duration,
    },
    /// The others have gone on without this rank.
    #[error("{rank}: epoch {epoch} formed without it; it was held for dead or came too late: join anew")]
    Excluded {
        /// This rank.
        rank: RankId,
        /// The epoch that it does not belong to.
        epoch: u64,
    },
    /// Another process says hello as the same rank.
    #[error(
        "{rank} was started again while this process was forming an epoch as it; only the later start may go on"
    )]
    Superseded {
        /// The rank.
        rank: RankId,
    },
    /// `expected` does not list this rank.
    #[error("{rank} is not among the ranks that it expects")]
    NotExpected {
        /// This rank.
        rank: RankId,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Ranks in a message.
pub(crate) struct Ranks<'a>(pub(crate) &'a [RankId]);

impl fmt::Display for Ranks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "rank " } else { "ranks " })?;
        for (i, rank) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i > 0 { ", " } else { "" }, rank.0)?;
        }
        Ok(())
    }
}

impl Formation {
    /// Forms or joins the next epoch: returns its record once all members have accepted it.
    ///
    /// All members return the same record. A rank whose process dies or is started again before that is not in it;
    /// one that dies right after it is, and is noticed as any dead member.
    ///
    /// # Errors
    /// See [`FormationError`]. The call may be repeated.
    pub fn form(&self, store: &dyn Store, deadline: Instant) -> Result<EpochRecord, FormationError> {
        if !self.expected.contains(&self.rank) {
            return Err(FormationError::NotExpected { rank: self.rank });
        }
        Run::new(self, store, deadline).form()
    }
}
