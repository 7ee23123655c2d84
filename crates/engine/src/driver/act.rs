//! What the exchange asks for.

use std::sync::Arc;
use std::time::Instant;

use eplb_comm::timeline::tell;
use eplb_comm::{Fence, Moment, Stream, Timeline};
use eplb_core::{RankId, SlotCommit, Topology, Wave};
use eplb_exchange::plan::apply_commits;
use eplb_exchange::{Action, Part, Phase};

use super::Driver;
use super::active::{Active, Caller};

impl<S: Stream> Driver<S> {
    /// Carries out what the exchange asks for, until it asks for nothing.
    pub(super) fn act(&mut self, caller: Caller) {
        if let Some(active) = self.active.as_mut().filter(|_| caller == Caller::Look) {
            active.leave_notes(self.rank);
        }
        loop {
            let Some(active) = &mut self.active else { return };
            let at = (active.exchange.phase(), active.exchange.wave());
            if self.timeline.is_some() && active.told != Some(at) {
                active.told = Some(at);
                tell(&self.timeline, || Moment::Phase { wave: at.1, name: name(at.0) });
            }
            let actions = active.exchange.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.carry_out(action, caller);
            }
        }
    }

    fn carry_out(&mut self, action: Action, caller: Caller) {
        let Some(active) = &mut self.active else { return };
        match action {
            Action::Publish(note) if caller == Caller::Pass => active.notes.push(note),
            Action::Publish(note) => active.board.publish(self.rank, note),
            Action::Drain { wave, part } => {
                active.exchange.plan().apply_drains(Arc::make_mut(&mut self.map), wave, part);
            }
            Action::Submit { wave, part } => active.submit(wave, part, &self.timeline),
            Action::Commit { wave } => self.commit(wave),
            Action::Decide { from, to, hold } => {
                // What is decided may depend on them.
                active.leave_notes(self.rank);
                let now = Instant::now();
                let until = hold.then(|| now + active.exchange.deadlines().commit_hold);
                let record = active.board.decide(from, to, until);
                let after = Instant::now();
                if hold {
                    self.held.steps += 1;
                    self.held.time += after - now;
                }
                if let Some(record) = record {
                    active.exchange.decided(record, after);
                }
            }
            Action::Halt { cause } => {
                active.tickets.clear();
                active.halt = Some(active.communicator.abort(&cause));
            }
            Action::Restore { phy2log } => self.map = Arc::new(phy2log),
        }
    }

    /// Puts a wave in force: copies of staged experts on the stream, and the map.
    fn commit(&mut self, number: usize) {
        let Some(active) = &mut self.active else { return };
        tell(&self.timeline, || Moment::CommitEnqueued(number));
        let wave = &active.exchange.plan().waves()[number];
        let own = own_commits(wave, self.rank, &self.topology);
        apply_commits(Arc::make_mut(&mut self.map), wave);
        self.enqueued += 1;
        active.unproven = Some(number);
        match self.stream.commit(&own) {
            Ok(fence) => active.commit = Some(fence),
            Err(error) => active.exchange.commit_failed(error.to_string(), Instant::now()),
        }
    }
}

impl Active {
    /// Hands a part of a wave to the communicator.
    fn submit(&mut self, wave: usize, part: Part, timeline: &Option<Arc<Timeline>>) {
        let now = Instant::now();
        let transfers = self.exchange.plan().transfers(wave, part);
        // Others may still have the wave before under way when this rank goes ahead.
        let waves = if part == Part::Early { 2 } else { 1 };
        let deadline = now + self.exchange.deadlines().transfer * waves;
        tell(timeline, || Moment::Submitting);
        match self.communicator.submit(transfers, Fence::passed(), deadline) {
            Ok(ticket) => {
                let early = part == Part::Early;
                tell(timeline, || Moment::Submitted { wave, early, ticket });
                self.tickets.push((wave, part, ticket));
            }
            Err(error) => self.exchange.transfers_failed(error.to_string(), now),
        }
    }
}

/// A phase as the timeline names it.
fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Agreeing => "agreeing",
        Phase::Draining => "draining",
        Phase::Clearing => "clearing",
        Phase::Moving => "moving",
        Phase::Prepared => "prepared",
        Phase::Armed => "armed",
        Phase::Committing => "committing",
        Phase::Settling => "settling",
        _ => "ending",
    }
}

/// The changes of a wave in one rank's own slots.
pub(crate) fn own_commits(wave: &Wave, rank: RankId, topology: &Topology) -> Vec<SlotCommit> {
    wave.commits.iter().copied().filter(|commit| topology.rank_of(commit.slot) == rank).collect()
}
