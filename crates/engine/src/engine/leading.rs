//! What the leading rank's thread does between rounds.

use std::time::{Duration, Instant};

use eplb_comm::store::deadlines::after;
use eplb_core::{Placement, RankId};
use eplb_plan::Planner;

use super::progress::{Progress, STATUS, counts_name, round_key, while_renewing};
use super::report::Reason;
use super::shared::lock;
use super::state::Event;
use super::wire::{Done, Round, Status, Task, decode_counts};
use crate::error::EngineError;

impl Progress {
    /// On the leading rank: looks at all ranks and at the triggers, and announces a round when one is due.
    pub(super) fn lead_on(&mut self) -> Result<(), EngineError> {
        let Some(session) = &self.session else { return Ok(()) };
        if session.members()[0] != session.rank() {
            return Ok(());
        }
        if self.lead.announced > self.round {
            // This rank has still to read it, and others may have begun it: nothing else may stand in its place.
            return Ok(());
        }
        let statuses = self.statuses()?;
        if let Some((rank, cause)) = statuses.iter().find_map(|(rank, s)| Some((*rank, s.failed.clone()?))) {
            self.announce(Task::Fail { rank, cause: cause.clone() })?;
            return Err(EngineError::PeerFailed { rank, cause });
        }
        let members = self.session.as_ref().map_or(0, |session| session.members().len());
        if statuses.len() < members || statuses.iter().any(|(_, status)| status.round != self.round) {
            return Ok(());
        }
        self.close_round(&statuses);
        if let Some((rank, _)) = statuses.iter().find(|(_, s)| s.placements != statuses[0].1.placements) {
            return Err(EngineError::Diverged { a: statuses[0].0, b: *rank });
        }
        let demands: u64 = statuses.iter().map(|(_, status)| status.demands).sum();
        if demands > self.lead.demands {
            self.lead.demands = demands;
            self.lead.owing = (0..self.lead.sets.len()).collect();
            self.lead.sampled = None;
        }
        self.sample()?;
        if statuses.iter().any(|(_, status)| !status.ready) {
            return Ok(());
        }
        if statuses.iter().any(|(_, status)| !status.connected) {
            return self.announce(Task::Connect);
        }
        self.plan_if_due()
    }

    /// What every member shows of itself; fewer where one shows nothing yet.
    fn statuses(&self) -> Result<Vec<(RankId, Status)>, EngineError> {
        let Some(session) = &self.session else { return Ok(Vec::new()) };
        let posts = session.group.posts(STATUS, after(self.shared.deadlines.store.operation))?;
        let mut statuses = Vec::new();
        for (&rank, bytes) in session.members().iter().zip(&posts) {
            if let Some(bytes) = bytes {
                let unreadable = EngineError::Unreadable { rank, what: "its status" };
                statuses.push((rank, Status::decode(bytes).ok_or(unreadable)?));
            }
        }
        Ok(statuses)
    }

    /// Once for every round: all ranks have ended it.
    fn close_round(&mut self, statuses: &[(RankId, Status)]) {
        let Some(set) = self.lead.under_way.take() else { return };
        let any = |done| statuses.iter().any(|(_, status)| status.done == done);
        // Of lateness alone all ranks say the same.
        let (late, broken) = (any(Done::TooLate), any(Done::Aborted));
        let again = late && !broken && self.lead.margin.grow();
        if !again && !broken {
            self.lead.margin.shrink();
        }
        self.lead.sets[set].ended(again, broken || (late && !again));
    }

    /// Takes in the counts of all ranks, if it is time.
    fn sample(&mut self) -> Result<(), EngineError> {
        let shared = self.shared.clone();
        if !self.lead.sample_due(Duration::from_millis(shared.config.sample_ms)) {
            return Ok(());
        }
        self.lead.sampled = Some(Instant::now());
        let Some(session) = &self.session else { return Ok(()) };
        let tags = shared.config.planned_tags();
        for (at, set) in shared.sets.iter().enumerate() {
            let posts = session.group.posts(&counts_name(at), after(shared.deadlines.store.operation))?;
            let shape = (shared.config.tags.len(), set.layers(), set.experts);
            let mut counts = Vec::new();
            for (&rank, bytes) in session.members().iter().zip(&posts) {
                let unreadable = EngineError::Unreadable { rank, what: "its counts" };
                counts.push(match bytes {
                    Some(bytes) => Some(decode_counts(bytes, shape).ok_or(unreadable)?.1),
                    None => None,
                });
            }
            let placement = self.placement(at)?;
            self.lead.sets[at].take(counts, &tags, set, &placement)?;
            shared.meters.measured(at, self.lead.sets[at].balancedness());
        }
        Ok(())
    }

    /// The placement in force.
    fn placement(&self, set: usize) -> Result<Placement, EngineError> {
        let core = lock(&self.shared.core);
        let map = core.lanes[set].driver.phy2log().as_ref().clone();
        Ok(Placement::with_missing(self.shared.sets[set].experts, map)?)
    }

    fn plan_if_due(&mut self) -> Result<(), EngineError> {
        let shared = self.shared.clone();
        for (at, set) in shared.sets.iter().enumerate() {
            let demanded = self.lead.owing.contains(&at);
            let Some(reason) = self.lead.sets[at].due(&shared.config, demanded) else { continue };
            if shared.on(Event::PlanBegins).is_err() {
                return Ok(());
            }
            let planned = self.plan(at, reason);
            let plan = match planned {
                Ok(plan) => plan,
                Err(error) => {
                    let cause = format!("planning for layer set {:?} failed: {error}", set.name);
                    self.announce(Task::Fail { rank: shared.rank, cause: cause.clone() })?;
                    return Err(EngineError::PeerFailed { rank: shared.rank, cause });
                }
            };
            self.lead.owing.retain(|&owing| owing != at);
            self.lead.under_way = Some(at);
            let dry = plan.dry;
            self.announce(Task::Move(Box::new(plan)))?;
            // A dry run has no exchange that would end it; of others the round that all take up now is the next state.
            if dry || shared.state() == super::State::Stopped {
                drop(shared.on(Event::PlanEnds));
            }
            return Ok(());
        }
        Ok(())
    }

    fn plan(&mut self, at: usize, reason: Reason) -> Result<super::wire::Plan, EngineError> {
        let shared = self.shared.clone();
        let planner = match self.lead.planner.take() {
            Some(planner) => planner,
            None => Planner::new(shared.config.threads)?,
        };
        let placement = self.placement(at)?;
        let Some(session) = &self.session else {
            return Err(EngineError::Options("no epoch to plan in".into()));
        };
        let (lead, limits) = (&mut self.lead.sets[at], (self.lead.margin.steps(), shared.config.dry_run));
        let set = &shared.sets[at];
        let (plan, planner) = while_renewing(&session.board, shared.rank, move || {
            (lead.plan(&planner, (at, set), &placement, reason, limits), planner)
        });
        self.lead.planner = Some(planner);
        plan
    }

    fn announce(&mut self, task: Task) -> Result<(), EngineError> {
        let Some(session) = &self.session else { return Ok(()) };
        let round = Round { number: self.round + 1, task };
        let deadline = after(self.shared.deadlines.store.operation);
        session.store().set(&round_key(session), &round.encode(), deadline)?;
        self.lead.announced = round.number;
        Ok(())
    }
}
