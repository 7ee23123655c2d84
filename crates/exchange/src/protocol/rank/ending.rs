//! How an exchange ends early: by record where there is one, and without it where the store is lost.

use std::time::Instant;

use eplb_core::{Landing, RankId};

use super::{Break, Exchange};
use crate::plan::Part;
use crate::protocol::peers::Heard;
use crate::protocol::words::{Action, Cause, Note, Outcome, Phase, Touched, Verdict};

impl Exchange {
    /// The store is gone for good: no note comes or goes any more, and nothing can be decided.
    ///
    /// What is known to be committed is still carried out. A wave that cannot have been committed, because this rank had
    /// not agreed to it, is aborted here. One that may have been is left [`Outcome::Undecided`].
    pub fn store_lost(&mut self, detail: String, now: Instant) {
        self.clock.look(now);
        if self.lost || self.phase == Phase::Over {
            return;
        }
        match self.phase {
            // Decided already; the next wave, if any, is given up.
            Phase::Committing | Phase::Settling | Phase::Stopping => {
                self.doom_without_store(detail);
            }
            _ if self.may_be_committed() => self.leave_undecided(detail),
            _ => {
                self.doom_without_store(detail);
                self.stop();
            }
        }
        self.advance();
    }

    fn doom_without_store(&mut self, detail: String) {
        let cause = self.store_lost_cause(detail);
        self.lost = true;
        // A larger margin does not bring the store back, and who has aborted the wave by record cannot say any more why.
        let is_less = |cause: &Cause| cause.is_lateness() || matches!(cause, Cause::ByRecord { .. });
        if self.doomed.as_ref().is_none_or(is_less) {
            self.doomed = Some(cause);
        }
    }

    /// This rank cannot go on. The record has the last word on the wave under way; what it decided is carried out first.
    pub(super) fn fail(&mut self, cause: Cause) {
        if matches!(self.phase, Phase::Stopping | Phase::Over) || self.doomed.is_some() {
            return;
        }
        self.say(match cause {
            Cause::TooLate { rank, wave } => Note::TooLate { wave, rank },
            _ => Note::Failed { cause: cause.to_string() },
        });
        let differs = matches!(cause, Cause::PlanMismatch { .. });
        self.doomed = Some(cause);
        if self.plan.waves().is_empty() && !differs {
            // There is no wave to abort by record, and no rank that has all hashes waits for this one: it is over there.
            self.finish_abort(Vec::new());
            return;
        }
        if !matches!(self.phase, Phase::Committing | Phase::Settling) {
            self.give_up();
        }
    }

    /// A commit has failed on a rank's device. What is decided is carried out here as well; then the exchange is over.
    pub(super) fn break_off(&mut self, broken: Break) {
        let Break { rank, wave, .. } = broken;
        let cause = Cause::Commit { rank, wave, detail: broken.detail.clone() };
        if self.phase == Phase::Over || self.broken.is_some() {
            return;
        }
        self.broken = Some(broken);
        let doomed = self.doomed.replace(cause).is_some();
        if !doomed && !matches!(self.phase, Phase::Committing | Phase::Settling | Phase::Stopping) {
            self.give_up();
        }
    }

    /// Whether this rank's commit of the wave under way has failed.
    pub(super) fn is_broken_here(&self) -> bool {
        self.peers.of_wave(self.wave).any(|(rank, heard)| rank == self.me && heard.broken)
    }

    /// Whether this rank's commit of the wave under way has ended, well or not.
    pub(super) fn has_settled(&self) -> bool {
        let ended = |heard: Heard| heard.broken || heard.committed.is_some();
        self.peers.of_wave(self.wave).any(|(rank, heard)| rank == self.me && ended(heard))
    }

    pub(super) fn give_up(&mut self) {
        if self.lost {
            self.stop();
            return;
        }
        self.enter(Phase::Failing);
        self.decide(Verdict::Abort, false);
        self.obey();
    }

    /// Whether others may have committed the wave under way without this rank's knowing. A commit needs every rank to be
    /// prepared, and, where slots in service are overwritten, to have acknowledged the step.
    pub(super) fn may_be_committed(&self) -> bool {
        match self.plan.waves().get(self.wave) {
            Some(wave) if wave.needs_agreed_step() => self.agreed.is_some(),
            _ => self.prepared,
        }
    }

    fn store_lost_cause(&self, detail: String) -> Cause {
        Cause::StoreLost { rank: self.me, wave: self.wave, phase: self.phase, detail }
    }

    /// Ends the exchange without knowing what became of the wave.
    pub(super) fn leave_undecided(&mut self, detail: String) {
        let cause = self.store_lost_cause(detail);
        self.lost = true;
        let mut phy2log = self.plan.phy2log_drained(self.wave);
        if self.ahead.is_drained(Part::Early) {
            self.plan.apply_drains(&mut phy2log, self.wave + 1, Part::Early);
        }
        self.outcome = Some(Outcome::Undecided { wave: self.wave, step: self.agreed, cause, phy2log });
        self.enter(Phase::Over);
    }

    pub(super) fn stop(&mut self) {
        let (rank, wave) = (self.me, self.wave);
        if self.doomed.is_none() {
            self.doomed = Some(match self.agreed {
                Some(step) if self.reached => {
                    self.say(Note::TooLate { wave, rank });
                    Cause::ReachedFirst { rank, wave, step }
                }
                _ => Cause::ByRecord { wave },
            });
        }
        let cause = self.doomed.as_ref().map(ToString::to_string).unwrap_or_default();
        self.actions.push(Action::Halt { cause });
        self.enter(Phase::Stopping);
    }

    pub(super) fn finish_abort(&mut self, silent: Vec<RankId>) {
        let mut phy2log = self.plan.phy2log_after(self.wave.min(self.plan.waves().len()));
        // A drained slot in which bytes may have landed does not return to service.
        for (rank, heard) in self.peers.of_wave(self.wave) {
            let unknown = silent.contains(&rank) || self.lost;
            let touched = if unknown { Touched::ALL } else { heard.stopped.unwrap_or_default() };
            let parts = [
                (touched.early, self.wave, Part::Early),
                (touched.late, self.wave, Part::Late),
                (touched.ahead, self.wave + 1, Part::Early),
            ];
            for (_, wave, part) in
                parts.into_iter().filter(|&(touched, wave, _)| touched && wave < self.plan.waves().len())
            {
                let transfers = self.plan.transfers(wave, part).iter();
                for transfer in transfers.filter(|t| t.landing == Landing::InPlace && t.dest == rank) {
                    phy2log[(transfer.layer.index(), transfer.dest_slot.index())] = -1;
                }
            }
        }
        // What a commit that failed was to write may be anything.
        if let Some(last) = self.wave.checked_sub(1).filter(|&last| last < self.plan.waves().len()) {
            let broken: Vec<RankId> = self.peers.missing(last, |heard| heard.broken);
            for commit in self.plan.waves()[last].commits.iter().filter(|commit| commit.fill.overwrites()) {
                if broken.contains(&self.plan.owner(commit.slot)) {
                    phy2log[(commit.layer.index(), commit.slot.index())] = -1;
                }
            }
        }
        self.actions.push(Action::Restore { phy2log: phy2log.clone() });
        let wave = self.wave;
        let cause = self.doomed.take().unwrap_or(Cause::ByRecord { wave });
        let cause = self.weigh(cause, &silent);
        self.outcome = Some(match self.broken.clone() {
            None => Outcome::Aborted { wave, cause, phy2log, silent },
            Some(Break { rank, wave, detail }) => {
                let cause = Cause::Commit { rank, wave, detail };
                Outcome::Broken { rank, wave, cause, phy2log, silent }
            }
        });
        self.phase = Phase::Over;
    }

    /// The cause of an abort in the light of all that was said. Every rank that has stopped has said before why it gives up, if
    /// it has a reason of its own; so ranks that have heard of all others that they stopped weigh the same words, whichever came first, and
    /// agree on whether it was lateness and nothing else.
    fn weigh(&self, cause: Cause, silent: &[RankId]) -> Cause {
        let unexplained = matches!(cause, Cause::ByRecord { .. });
        if !unexplained && !cause.is_lateness() {
            return cause;
        }
        let wave = self.wave;
        if let Some((rank, detail)) = self.peers.failed() {
            return Cause::PeerFailed { rank: *rank, detail: detail.clone() };
        }
        if let Some(&rank) = silent.iter().find(|&&rank| rank != self.me) {
            // Who would have explained it, or have decided in time, is not there.
            return Cause::PeerSilent { rank, wave, phase: self.phase, silence: self.peers.silence(rank) };
        }
        match (cause, self.peers.late()) {
            (Cause::ByRecord { wave } | Cause::TooLate { wave, .. }, Some(rank)) => {
                Cause::TooLate { rank, wave }
            }
            (cause, _) => cause,
        }
    }
}
