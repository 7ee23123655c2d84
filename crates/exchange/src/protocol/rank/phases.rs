//! From the same plan on all ranks to the commit of each wave; how bytes get in between is in [`super::moving`].

use super::{Boundary, Exchange};
use crate::protocol::words::{Action, Cause, Note, Outcome, Phase, Verdict};

impl Exchange {
    pub(super) fn agree(&mut self) {
        let ours = self.plan.hash64();
        let other = self.peers.hashes().find(|&(_, hash)| hash != ours);
        if let Some((rank, theirs)) = other {
            self.fail(Cause::PlanMismatch { rank, theirs, ours });
        } else if self.peers.without_hash().is_empty() {
            self.start_wave();
        }
    }

    pub(super) fn start_wave(&mut self) {
        self.peers.forget_before(self.wave.saturating_sub(1));
        self.bytes = std::mem::take(&mut self.ahead);
        self.prepared = false;
        (self.agreed, self.reached) = (None, false);
        let over = self.wave == self.plan.waves().len();
        if !over && (self.doomed.is_some() || self.record.closed || self.record.decided > self.wave) {
            self.give_up();
            return;
        }
        match self.plan.waves().get(self.wave) {
            // Every wave is decided: there is nothing left to abort, whatever befell this rank or another.
            None => match self.doomed.take() {
                None => {
                    self.outcome = Some(Outcome::Completed);
                    self.enter(Phase::Over);
                }
                Some(cause) => {
                    let unconfirmed =
                        self.peers.missing(self.wave.saturating_sub(1), |h| h.committed.is_none());
                    self.doomed = Some(cause);
                    self.finish_abort(unconfirmed);
                }
            },
            Some(_) => self.enter(Phase::Draining),
        }
    }

    pub(super) fn propose(&mut self) {
        let wave = self.wave;
        let leads = self.peers.leader() == self.me;
        if let Some(step) = self.peers.proposed(wave) {
            if self.steps.begun.is_none_or(|last| last < step) {
                self.agreed = Some(step);
                self.say(Note::Acknowledged { wave });
                self.enter(Phase::Armed);
            } else {
                self.fail(Cause::TooLate { rank: self.me, wave });
            }
        } else if leads && self.peers.missing(wave, |h| h.prepared.is_none()).is_empty() {
            if self.plan.waves()[wave].needs_agreed_step() {
                let heard = self.peers.of_wave(wave).filter_map(|(_, h)| h.prepared.flatten()).max();
                let step = heard.max(self.steps.begun).map_or(0, |last| last + 1) + self.margin;
                self.say(Note::Proposed { wave, step });
                self.propose();
            } else {
                self.decide(Verdict::Commit { step: None }, false);
            }
        }
    }

    pub(super) fn collect(&mut self) {
        let (wave, leads) = (self.wave, self.peers.leader() == self.me);
        if leads && self.peers.missing(wave, |h| !h.acknowledged).is_empty() {
            self.decide(Verdict::Commit { step: self.agreed }, false);
        }
    }

    /// Acts on a record that decides the wave under way, or a later one: then this one was committed, at the step that
    /// this rank acknowledged, because an abort would have been the last word.
    pub(super) fn obey(&mut self) {
        if matches!(self.phase, Phase::Stopping | Phase::Over) {
            return;
        }
        if self.record.decided <= self.wave {
            if self.record.closed && !matches!(self.phase, Phase::Committing | Phase::Settling) {
                let (wave, phase) = (self.wave, self.phase);
                self.doomed.get_or_insert(Cause::EpochClosed { wave, phase });
                self.stop();
            }
            return;
        }
        let verdict = if self.record.decided == self.wave + 1 {
            self.record.verdict
        } else if self.may_be_committed() || matches!(self.phase, Phase::Committing | Phase::Settling) {
            Verdict::Commit { step: self.agreed }
        } else {
            // Nobody commits a wave that this rank has not prepared.
            Verdict::Abort
        };
        match verdict {
            Verdict::Commit { step }
                if matches!(self.phase, Phase::Prepared | Phase::Armed | Phase::Failing) =>
            {
                self.agreed = step;
                self.enter(Phase::Committing);
            }
            Verdict::Commit { .. } => {}
            Verdict::Abort => self.stop(),
        }
    }

    pub(super) fn commit(&mut self) {
        let reached = match (self.agreed, self.boundary) {
            (None, _) => true,
            (Some(step), Boundary::Step(id)) => id >= step,
            // No step of this rank comes any more.
            (Some(_), Boundary::Idle) => self.broken.is_some(),
            (Some(_), _) => false,
        };
        if let Some(first_step) = self.first_step_at_boundary()
            && reached
        {
            self.switched = first_step;
            self.actions.push(Action::Commit { wave: self.wave });
            self.enter(Phase::Settling);
        }
    }

    pub(super) fn settle(&mut self) {
        let missing = self.peers.missing(self.wave, |h| h.committed.is_none() && !h.broken);
        let over = self.doomed.is_some() || self.record.closed || self.record.decided > self.wave + 1;
        // Others may never confirm: when this rank's own commit is complete, it goes on to give up the next wave.
        if missing.is_empty() || (over && !missing.contains(&self.me)) {
            self.wave += 1;
            self.start_wave();
        }
    }
}
