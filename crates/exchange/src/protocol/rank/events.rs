//! What happened: the methods that a driver calls.

use std::time::Instant;

use eplb_core::RankId;

use super::{Boundary, Break, Exchange};
use crate::plan::Part;
use crate::protocol::words::{Cause, Note, Outcome, Phase, Record, Verdict};

impl Exchange {
    /// The host is about to run step `id`; ids rise strictly, gaps are allowed. Until [`Exchange::end_boundary`] maps may
    /// be switched, and the step sees them.
    pub fn begin_step(&mut self, id: u64, now: Instant) {
        self.clock.look(now);
        self.steps.begun = Some(self.steps.begun.map_or(id, |last| last.max(id)));
        self.steps.open.push_back(id);
        self.boundary = Boundary::Step(id);
        if self.awaits_decision_on(id) {
            // The step has come and the decision has not: whoever is first at the record decides.
            self.reached = true;
            self.decide(Verdict::Abort, true);
        }
        self.advance();
    }

    /// The rank runs no step at present; maps may be switched until [`Exchange::end_boundary`].
    pub fn tick(&mut self, now: Instant) {
        self.clock.look(now);
        self.boundary = Boundary::Idle;
        self.advance();
    }

    /// Ends the boundary opened by [`Exchange::begin_step`] or [`Exchange::tick`]. Returns whether the step may run: not if
    /// the agreed step has come and the decision is still unknown, because the record could not be reached. Then the
    /// exchange is over ([`Outcome::Undecided`]): it is not guessed later what is not known now. Nor if a commit is known to
    /// have failed on some rank's device ([`Outcome::Broken`]).
    pub fn end_boundary(&mut self) -> bool {
        if self.broken.is_some() && matches!(self.boundary, Boundary::Step(_)) {
            self.at_rest = true;
        }
        // A rank that is at rest may switch maps at any time.
        self.boundary = if self.at_rest { Boundary::Idle } else { Boundary::Closed };
        if self.steps.begun.is_some_and(|begun| self.awaits_decision_on(begun)) {
            let detail = format!("it did not answer within {:?}", self.deadlines.commit_hold);
            self.leave_undecided(detail);
        }
        let undecided = matches!(&self.outcome, Some(Outcome::Undecided { step: Some(step), .. }) if self.steps.next() > *step);
        !undecided && self.broken.is_none()
    }

    /// Whether a step must not run before it is known what became of the wave: this rank has acknowledged an earlier one
    /// or this for the commit, which others may have carried out, whatever has happened to this rank since.
    fn awaits_decision_on(&self, step: u64) -> bool {
        matches!(self.phase, Phase::Armed | Phase::Failing)
            && self.agreed.is_some_and(|agreed| step >= agreed)
    }

    /// The device has finished every step up to `id`.
    pub fn finish_step(&mut self, id: u64, now: Instant) {
        self.clock.look(now);
        while self.steps.open.front().is_some_and(|&open| open <= id) {
            self.steps.open.pop_front();
        }
        self.advance();
    }

    /// This rank's share in a submission is done: its bytes are in, its reads of others are over.
    pub fn transfers_done(&mut self, wave: usize, part: Part, now: Instant) {
        self.clock.look(now);
        self.land(wave, part);
        self.advance();
    }

    /// This rank's share in a submission failed.
    pub fn transfers_failed(&mut self, detail: String, now: Instant) {
        self.clock.look(now);
        self.fail(Cause::Transfer { rank: self.me, wave: self.wave, detail });
        self.advance();
    }

    /// The commit of the wave is complete on the device.
    pub fn commit_done(&mut self, now: Instant) {
        self.clock.look(now);
        if self.phase == Phase::Settling && !self.is_broken_here() {
            self.say(Note::Committed { wave: self.wave, first_step: self.switched });
        }
        self.advance();
    }

    /// The commit of the wave failed on the device. The wave is decided, so it stays committed on the other ranks; they are
    /// told, and nobody runs a step with what this rank's slots may hold.
    pub fn commit_failed(&mut self, detail: String, now: Instant) {
        self.clock.look(now);
        if self.phase == Phase::Settling && !self.is_broken_here() {
            self.say(Note::Broken { wave: self.wave, detail: detail.clone() });
            self.break_off(Break { rank: self.me, wave: self.wave, detail });
        }
        self.advance();
    }

    /// The rank and the wave of the first commit that is known here to have failed on a device.
    pub fn broken(&self) -> Option<(RankId, usize)> {
        self.broken.as_ref().map(|broken| (broken.rank, broken.wave))
    }

    /// After [`Action::Halt`](crate::protocol::Action::Halt): nothing of the wave can touch this rank's memory any more.
    pub fn halted(&mut self, now: Instant) {
        self.clock.look(now);
        if self.phase == Phase::Stopping {
            self.say(Note::Stopped { wave: self.wave, touched: self.touched() });
        }
        self.advance();
    }

    /// Signs of life of all members were looked at; `alive` showed a new one since the last look. Silence counts only
    /// while this rank looks.
    pub fn observe(&mut self, alive: impl IntoIterator<Item = RankId>, now: Instant) {
        let observed = self.clock.look(now);
        self.peers.look(observed - self.signs_at);
        self.signs_at = observed;
        for rank in alive {
            self.peers.see_alive(rank);
        }
    }

    /// A note of another rank came.
    pub fn hear(&mut self, from: RankId, note: &Note, now: Instant) {
        if !self.peers.is_member(from) {
            return;
        }
        self.clock.look(now);
        self.peers.see_alive(from);
        self.peers.hear(from, note);
        if let Note::Broken { wave, detail } = note {
            self.break_off(Break { rank: from, wave: *wave, detail: detail.clone() });
        }
        match note {
            Note::Failed { cause } => self.fail(Cause::PeerFailed { rank: from, detail: cause.clone() }),
            Note::TooLate { rank, wave } => self.fail(Cause::TooLate { rank: *rank, wave: *wave }),
            _ => {}
        }
        self.advance();
    }

    /// Another rank has left the epoch: it takes no part any more, and says nothing but what it has said. To be called when all of that was heard
    /// ([`Exchange::hear`]); it is acted on at the next look at the clock.
    pub fn peer_left(&mut self, rank: RankId) {
        if rank != self.me {
            self.peers.leave(rank);
        }
    }

    /// The answer to [`Action::Decide`](crate::protocol::Action::Decide): what the record says now.
    pub fn decided(&mut self, record: Record, now: Instant) {
        self.deciding = false;
        self.learn(record, now);
    }

    /// What the record was seen to say.
    pub fn learn(&mut self, record: Record, now: Instant) {
        self.clock.look(now);
        if record.decided > self.record.decided || (record.closed && !self.record.closed) {
            self.deciding = false;
            self.record = record;
            self.obey();
        }
        self.advance();
    }

    /// The caller wants the exchange to stop at the next possible point.
    pub fn cancel(&mut self, why: &str, now: Instant) {
        self.clock.look(now);
        self.fail(Cause::Cancelled(why.into()));
        self.advance();
    }

    /// Looks at the clock. Only what needs no traffic has a deadline here: a group that serves nothing waits.
    pub fn check_time(&mut self, now: Instant) {
        let waited = self.clock.look(now).saturating_sub(self.since);
        let late = match self.phase {
            Phase::Agreeing if waited > self.deadlines.answer => Some(self.peers.without_hash()),
            Phase::Moving if waited > self.deadlines.transfer => Some(vec![self.me]),
            Phase::Armed if waited > self.deadlines.answer => {
                Some(self.peers.missing(self.wave, |h| !h.acknowledged))
            }
            Phase::Stopping => {
                let silent = self.peers.missing(self.wave, |h| h.stopped.is_none());
                // Nobody waits for the dead to say that they have stopped, nor for those who have left.
                let gone = |&rank: &RankId| self.peers.is_gone(rank, self.deadlines.peer);
                if waited > self.deadlines.answer || (!silent.contains(&self.me) && silent.iter().all(gone)) {
                    self.finish_abort(silent);
                }
                None
            }
            Phase::Settling if waited > self.deadlines.settle && !self.has_settled() => {
                self.commit_failed(format!("it was not complete within {waited:?}"), now);
                None
            }
            // The store has the last word, and has not spoken.
            Phase::Failing if waited > self.deadlines.answer => {
                self.store_lost(format!("it did not say within {waited:?} what was decided"), now);
                None
            }
            _ => None,
        };
        if let Some(waiting_for) = late {
            let (wave, phase) = (self.wave, self.phase);
            self.fail(Cause::Timeout { wave, phase, waiting_for, waited });
        }
        let (wave, phase) = (self.wave, self.phase);
        if matches!(phase, Phase::Stopping | Phase::Over) {
            // It is known already, or of no account.
        } else if let Some(rank) = self.peers.left() {
            self.fail(Cause::PeerLeft { rank, wave, phase });
        } else if let Some((rank, silence)) = self.peers.silent(self.deadlines.peer, self.me) {
            self.fail(Cause::PeerSilent { rank, wave, phase, silence });
        }
        self.advance();
    }
}
