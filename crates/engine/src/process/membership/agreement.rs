//! How the members of a closed epoch agree on who belongs to the next one. No IO, no clock of its own.
//!
//! Every process that wants to belong shows a [`Presence`] and renews it. One record ([`EpochRecord`]) is moved by
//! compare-and-set: `(k, formed) -> (k + 1, proposed) -> .. -> (n, formed)`. The *leader* is the lowest member that shows
//! signs of life, or may still come; it proposes when nobody is left to wait for, all whom a proposal lists accept it
//! in their presence, and the leader forms it. Why all come to the same end:
//! - a formed record is never replaced here: whoever it lists takes it, whoever it does not list is excluded;
//! - it replaces the very proposal that all have accepted, so of two leaders one fails, looks again, and finds what the other wrote;
//! - a listed process that dies before it accepts stops renewing, and the next proposal leaves it out; one that dies after
//!   it is noticed as any dead member of the new epoch.
//!
//! Ranks in the record are those of [`Reform::topology`](super::Reform::topology); the epoch numbers them without gaps, in
//! their order.

use std::time::Duration;

use eplb_comm::store::liveness::LOOKS_MISSED;
use eplb_comm::store::{EpochRecord, Nonce, Pulse};
use eplb_core::RankId;

use super::error::MembershipError;
use super::presence::Presence;

/// A place in the next epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Its rank if everybody comes.
    pub planned: RankId,
    /// The member of the old epoch that is to have it, and which start of it; `None`: a process that joins.
    pub member: Option<(RankId, Nonce)>,
}

/// How long is waited for whom; in [`crate::deadlines::Deadlines`] each has its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Interval in which a presence is renewed.
    pub renew: Duration,
    /// A presence that stands still for this long is that of a dead process.
    pub peer_timeout: Duration,
    /// How long members that are not suspected to be dead are waited for.
    pub gather: Duration,
    /// How long processes are waited for that are to join.
    pub join: Duration,
    /// When it is given up.
    pub whole: Duration,
}

/// What the store says at one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The record of the latest epoch.
    pub record: Option<EpochRecord>,
    /// What is shown for each seat, in their order.
    pub presences: Vec<Option<Presence>>,
}

/// What is to be done, in the order given, before the next look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Show this.
    Say(Presence),
    /// Replace the record if it is still `from`. What came of it, the next look shows.
    Propose {
        /// The record as it was read.
        from: Option<EpochRecord>,
        /// What it is to be.
        to: EpochRecord,
    },
    /// Tell a process that it cannot join.
    Refuse {
        /// The rank that it was to be.
        planned: RankId,
        /// The process.
        nonce: Nonce,
        /// Why.
        reason: String,
    },
    /// The epoch is formed, and this process belongs to it. The last act.
    Formed(EpochRecord),
}

/// What is known of another seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Somebody is there.
    Present(Presence),
    /// Somebody may still come.
    Coming,
    /// Nobody is there, and nobody is waited for.
    Gone,
}

#[derive(Debug)]
struct Watched {
    seat: Seat,
    suspect: bool,
    /// The process that is shown there, and its signs of life.
    pulse: Option<(Nonce, Pulse)>,
    /// A process that cannot join.
    refused: Option<Nonce>,
    state: State,
}

/// A member's part in forming the next epoch.
#[derive(Debug)]
pub struct Agreement {
    old: u64,
    me: usize,
    watched: Vec<Watched>,
    own: Presence,
    timing: Timing,
    looked_at: Option<Duration>,
    /// Time in which this process was looking.
    observed: Duration,
    /// Observed time at which the presence is to be shown again.
    due: Duration,
    proposal: Option<EpochRecord>,
}

impl Agreement {
    /// For the member with seat `seats[me]`, whose `own` presence says what must be the same on all. `old` is the epoch that was
    /// closed; `suspects` are ranks of it that are held for dead.
    pub fn new(
        old: u64,
        seats: &[Seat],
        me: usize,
        suspects: &[RankId],
        own: Presence,
        timing: Timing,
    ) -> Self {
        let watch = |&seat: &Seat| Watched {
            seat,
            suspect: seat.member.is_some_and(|(rank, _)| suspects.contains(&rank)),
            pulse: None,
            refused: None,
            state: State::Coming,
        };
        Self {
            old,
            me,
            watched: seats.iter().map(watch).collect(),
            own,
            timing,
            looked_at: None,
            observed: Duration::ZERO,
            due: Duration::ZERO,
            proposal: None,
        }
    }

    /// Number of the epoch that was closed.
    pub fn old(&self) -> u64 {
        self.old
    }

    /// The seats, in the order of [`Seen::presences`].
    pub fn seats(&self) -> impl Iterator<Item = Seat> + '_ {
        self.watched.iter().map(|watched| watched.seat)
    }

    /// Looks at what the store says at `now`, on a clock of the caller's that only runs forward.
    ///
    /// # Errors
    /// [`MembershipError::Excluded`], [`MembershipError::Differs`], [`MembershipError::NotFormed`]. The agreement is over then.
    pub fn look(&mut self, seen: &Seen, now: Duration) -> Result<Vec<Act>, MembershipError> {
        // A process that was itself stopped must not find that everybody else is late.
        let gap = self.looked_at.map_or(Duration::ZERO, |before| now.saturating_sub(before));
        self.observed += gap.min(self.timing.renew.saturating_mul(LOOKS_MISSED));
        self.looked_at = Some(now);

        let mut acts = Vec::new();
        let mut accepts = false;
        if let Some(record) = seen.record.as_ref().filter(|record| record.epoch > self.old) {
            let lists_me = record.lists(self.seat().planned, self.own.nonce);
            if record.formed && lists_me {
                return Ok(vec![Act::Formed(record.clone())]);
            }
            if record.formed {
                let (rank, old, epoch) = (self.rank(), self.old, record.epoch);
                return Err(MembershipError::Excluded { rank, old, epoch });
            }
            accepts = lists_me && self.own.accepted != record.epoch;
            if accepts {
                self.own.accepted = record.epoch;
            }
        }
        if accepts || self.observed >= self.due {
            self.own.count += 1;
            self.due = self.observed + self.timing.renew;
            acts.push(Act::Say(self.own));
        }
        self.watch(seen, now, &mut acts)?;
        if self.leads() {
            acts.extend(self.lead(seen.record.as_ref()));
        }
        if acts.is_empty() && self.observed >= self.timing.whole {
            let waited = self.observed;
            return Err(MembershipError::NotFormed {
                rank: self.rank(),
                waited,
                waiting_for: self.waiting_for(),
            });
        }
        Ok(acts)
    }

    fn seat(&self) -> Seat {
        self.watched[self.me].seat
    }

    /// This rank in the old epoch.
    pub fn rank(&self) -> RankId {
        self.seat().member.map_or(self.seat().planned, |(rank, _)| rank)
    }

    /// Takes in what the other seats show.
    fn watch(&mut self, seen: &Seen, now: Duration, acts: &mut Vec<Act>) -> Result<(), MembershipError> {
        let (rank, own, timing, observed) = (self.rank(), self.own, self.timing, self.observed);
        let mut refuse = Vec::new();
        for (at, (watched, shown)) in self.watched.iter_mut().zip(&seen.presences).enumerate() {
            if at == self.me {
                watched.state = State::Present(own);
                continue;
            }
            let shown = shown.filter(|shown| match watched.seat.member {
                Some((other, nonce)) => {
                    let its = shown.nonce == nonce;
                    if its && shown.change != own.change {
                        refuse.push(MembershipError::Differs { rank, other });
                    }
                    its
                }
                None => true,
            });
            if let (Some(shown), None) = (shown, watched.seat.member)
                && let Some(reason) = differs(&own, &shown)
            {
                if watched.refused != Some(shown.nonce) {
                    watched.refused = Some(shown.nonce);
                    let (planned, nonce) = (watched.seat.planned, shown.nonce);
                    acts.push(Act::Refuse { planned, nonce, reason });
                }
                watched.state = State::Gone;
                continue;
            }
            let window = if watched.seat.member.is_some() { timing.gather } else { timing.join };
            watched.state = match shown {
                None if watched.suspect || watched.pulse.is_some() || observed >= window => State::Gone,
                None => State::Coming,
                Some(shown) => {
                    if watched.pulse.as_ref().is_none_or(|(nonce, _)| *nonce != shown.nonce) {
                        watched.pulse = Some((shown.nonce, Pulse::new(timing.peer_timeout, timing.renew)));
                    }
                    let life = watched.pulse.as_mut().map(|(_, pulse)| pulse.observe(Some(shown.count), now));
                    if life.is_some_and(|life| life.is_dead()) { State::Gone } else { State::Present(shown) }
                }
            };
        }
        refuse.into_iter().next().map_or(Ok(()), Err)
    }

    /// Whether no lower member is there or may still come.
    fn leads(&self) -> bool {
        let mine = self.rank();
        let before = |seat: &Seat| seat.member.is_some_and(|(rank, _)| rank < mine);
        !self.watched.iter().any(|watched| before(&watched.seat) && watched.state != State::Gone)
    }

    fn lead(&mut self, record: Option<&EpochRecord>) -> Option<Act> {
        let present: Vec<(RankId, Presence)> = self
            .watched
            .iter()
            .filter_map(|watched| match watched.state {
                State::Present(shown) => Some((watched.seat.planned, shown)),
                _ => None,
            })
            .collect();
        let shown = |rank: RankId, nonce: Nonce| {
            present.iter().find(|(r, shown)| (*r, shown.nonce) == (rank, nonce)).map(|(_, shown)| *shown)
        };
        let from = record.cloned();
        if let Some(mine) = self.proposal.as_ref().filter(|mine| record == Some(mine)) {
            let listed: Option<Vec<Presence>> =
                mine.members.iter().map(|&(rank, nonce)| shown(rank, nonce)).collect();
            if let Some(listed) = listed {
                // Nobody whom it lists has gone.
                let own = self.own.nonce;
                let accepted = |shown: &Presence| shown.nonce == own || shown.accepted == mine.epoch;
                return listed
                    .iter()
                    .all(accepted)
                    .then(|| Act::Propose { from, to: EpochRecord { formed: true, ..mine.clone() } });
            }
        } else if self.watched.iter().any(|watched| watched.state == State::Coming) {
            return None;
        }
        let mut members: Vec<(RankId, Nonce)> =
            present.iter().map(|&(rank, shown)| (rank, shown.nonce)).collect();
        members.sort_unstable();
        let epoch = record.map_or(0, |record| record.epoch).max(self.old) + 1;
        let to = EpochRecord { epoch, formed: false, members };
        self.proposal = Some(to.clone());
        Some(Act::Propose { from, to })
    }

    /// Members that may still come, or lead and do not; for the error.
    fn waiting_for(&self) -> Vec<RankId> {
        let others = self.watched.iter().enumerate().filter(|(at, _)| *at != self.me);
        let there = others.filter(|(_, watched)| watched.state != State::Gone);
        there.filter_map(|(_, watched)| watched.seat.member.map(|(rank, _)| rank)).collect()
    }
}

/// What forbids that a process joins, in words.
fn differs(own: &Presence, theirs: &Presence) -> Option<String> {
    let words = |what: &str, ours: u64, theirs: u64| {
        format!("{what} differs: {ours:016x} in the group, {theirs:016x} there")
    };
    if theirs.layout != own.layout {
        return Some(words("the layout of its experts", own.layout, theirs.layout));
    }
    if theirs.facts != own.facts {
        return Some(words("its program, model or options (their hash)", own.facts, theirs.facts));
    }
    None
}
