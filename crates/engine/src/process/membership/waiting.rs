//! How a process gets into an epoch that others form. No IO, no clock of its own.

use std::time::Duration;

use eplb_comm::store::EpochRecord;
use eplb_comm::store::liveness::LOOKS_MISSED;
use eplb_core::RankId;

use super::agreement::Act;
use super::error::MembershipError;
use super::presence::Presence;

/// The part of a process that joins: it shows itself, accepts what lists it, and waits until that is formed.
#[derive(Debug)]
pub struct Waiting {
    planned: RankId,
    own: Presence,
    renew: Duration,
    deadline: Duration,
    looked_at: Option<Duration>,
    observed: Duration,
    due: Duration,
    latest: Option<u64>,
}

impl Waiting {
    /// For a process that is to be rank `planned` of [`Reform::topology`](super::Reform::topology); gives up after `deadline`.
    pub fn new(planned: RankId, own: Presence, renew: Duration, deadline: Duration) -> Self {
        Self {
            planned,
            own,
            renew,
            deadline,
            looked_at: None,
            observed: Duration::ZERO,
            due: Duration::ZERO,
            latest: None,
        }
    }

    /// The rank that it is to be.
    pub fn planned(&self) -> RankId {
        self.planned
    }

    /// Which start of it this is, and what it shows.
    pub fn own(&self) -> &Presence {
        &self.own
    }

    /// Looks at the record, at what is shown where this process shows itself, and at what was answered to it (`refused`), at
    /// `now`.
    ///
    /// # Errors
    /// [`MembershipError::JoinRefused`]; [`MembershipError::Superseded`]; [`MembershipError::JoinTimeout`] at the deadline, or when an epoch has formed without
    /// this process after one was to form with it.
    pub fn look(
        &mut self,
        record: Option<&EpochRecord>,
        shown: Option<&Presence>,
        refused: Option<&str>,
        now: Duration,
    ) -> Result<Vec<Act>, MembershipError> {
        let gap = self.looked_at.map_or(Duration::ZERO, |before| now.saturating_sub(before));
        self.observed += gap.min(self.renew.saturating_mul(LOOKS_MISSED));
        self.looked_at = Some(now);
        let rank = self.planned;
        if let Some(reason) = refused {
            return Err(MembershipError::JoinRefused { rank, reason: reason.to_owned() });
        }
        if self.own.count > 0 && shown.is_some_and(|shown| shown.nonce != self.own.nonce) {
            return Err(MembershipError::Superseded { rank });
        }
        let mut accepts = false;
        if let Some(record) = record {
            self.latest = Some(record.epoch);
            let lists_me = record.lists(rank, self.own.nonce);
            if lists_me && record.formed {
                return Ok(vec![Act::Formed(record.clone())]);
            }
            if record.formed && self.own.accepted > 0 {
                return Err(self.too_late());
            }
            accepts = lists_me && self.own.accepted != record.epoch;
            if accepts {
                self.own.accepted = record.epoch;
            }
        }
        // Who has accepted is about to be formed: the members' deadlines end that.
        if self.observed >= self.deadline && self.own.accepted == 0 {
            return Err(self.too_late());
        }
        if !accepts && self.observed < self.due {
            return Ok(Vec::new());
        }
        self.own.count += 1;
        self.due = self.observed + self.renew;
        Ok(vec![Act::Say(self.own)])
    }

    fn too_late(&self) -> MembershipError {
        MembershipError::JoinTimeout { rank: self.planned, waited: self.observed, latest: self.latest }
    }
}
