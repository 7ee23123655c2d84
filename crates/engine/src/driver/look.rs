//! Off the forward path: what has happened since the last look.

use std::sync::Arc;
use std::time::Instant;

use eplb_comm::timeline::tell;
use eplb_comm::{Moment, Progress, Stream, Timeline};
use eplb_exchange::Outcome;

use super::Driver;
use super::active::{Active, Caller, Ended};
use super::boundary::Bar;
use crate::error::EngineError;

impl<S: Stream> Driver<S> {
    /// Looks at everything that may have happened since, and goes on. Returns the end of the exchange, once.
    ///
    /// # Errors
    /// Stream or communicator errors.
    pub fn progress(&mut self) -> Result<Option<Ended>, EngineError> {
        let Some(active) = &mut self.active else { return Ok(None) };
        let now = Instant::now();
        active.board.renew(self.rank);
        active.look_at_signs(now);
        active.look_at_steps(now);
        active.look_at_transfers(&self.timeline, now);
        active.look_at_commit(&self.timeline, now);
        if let Some(fence) = &active.halt
            && fence.poll()?
        {
            active.halt = None;
            active.exchange.halted(now);
        }
        active.read_board(now);
        active.exchange.check_time(now);
        self.act(Caller::Look);
        Ok(self.take_ended())
    }

    /// What the exchange leaves behind, if it is over.
    fn take_ended(&mut self) -> Option<Ended> {
        let active = self.active.take_if(|active| active.exchange.outcome().is_some())?;
        tell(&self.timeline, || Moment::Ended);
        let outcome = active.exchange.outcome()?.clone();
        match outcome {
            Outcome::Undecided { wave, step: Some(step), .. } => {
                self.barred.get_or_insert(Bar::Undecided { step, wave });
            }
            Outcome::Broken { rank: broken, wave, .. } => {
                self.barred = Some(Bar::Broken { broken, wave });
            }
            _ => {}
        }
        // A deadline may have ended it before its last copies.
        self.unfinished.extend(active.commit.into_iter().chain(active.halt));
        Some(Ended { outcome, communicator: active.communicator })
    }
}

impl Active {
    /// Signs of life of the other ranks.
    fn look_at_signs(&mut self, now: Instant) {
        let looks = self.board.looks();
        if looks == self.looks {
            return;
        }
        self.looks = looks;
        let signs = self.board.signs();
        let fresh = signs.iter().zip(&self.signs).filter(|(sign, seen)| sign != seen);
        self.exchange.observe(fresh.map(|((rank, _), _)| *rank), now);
        self.signs = signs;
    }

    /// Steps whose work has ended.
    fn look_at_steps(&mut self, now: Instant) {
        while let Some((id, fence)) = self.steps.front() {
            match fence.poll() {
                Ok(false) => break,
                Ok(true) => self.exchange.finish_step(*id, now),
                // The device is lost; if a commit is under way, that is what the others have to know.
                Err(error) if self.commit.take().is_some() => {
                    self.exchange.commit_failed(error.to_string(), now);
                }
                Err(error) => self.exchange.transfers_failed(error.to_string(), now),
            }
            self.steps.pop_front();
        }
    }

    /// Bytes that have come.
    fn look_at_transfers(&mut self, timeline: &Option<Arc<Timeline>>, now: Instant) {
        for (wave, part, ticket) in std::mem::take(&mut self.tickets) {
            match self.communicator.poll(ticket) {
                Ok(Progress::Pending) => self.tickets.push((wave, part, ticket)),
                Ok(Progress::Done) => {
                    tell(timeline, || Moment::Arrived(ticket));
                    self.exchange.transfers_done(wave, part, now);
                }
                Err(error) => self.exchange.transfers_failed(error.to_string(), now),
            }
        }
    }

    /// A commit whose copies have run.
    fn look_at_commit(&mut self, timeline: &Option<Arc<Timeline>>, now: Instant) {
        let Some(fence) = &self.commit else { return };
        match fence.poll() {
            Ok(false) => {}
            Ok(true) => {
                (self.commit, self.unproven) = (None, None);
                tell(timeline, || Moment::Committed(self.exchange.wave()));
                self.committed.push(self.exchange.wave());
                self.exchange.commit_done(now);
            }
            Err(error) => {
                self.commit = None;
                self.exchange.commit_failed(error.to_string(), now);
            }
        }
    }

    /// What the others say, what is decided, who has left, and whether the store is still there.
    fn read_board(&mut self, now: Instant) {
        // Before the notes are collected: who has left is heard out.
        let left = self.board.left();
        for (from, note) in self.board.collect(&mut self.reader) {
            self.exchange.hear(from, &note, now);
        }
        let record = self.board.record();
        self.exchange.learn(record, now);
        left.into_iter().for_each(|rank| self.exchange.peer_left(rank));
        if let Some(detail) = self.board.lost() {
            self.exchange.store_lost(detail, now);
        }
    }
}
