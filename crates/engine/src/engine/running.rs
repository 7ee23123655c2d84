//! A round that moves experts, as one rank takes part in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::metrics::balancedness;
use eplb_core::{Placement, Share};
use eplb_cuda::CommitList;
use eplb_exchange::{Cause, Exchange, ExchangePlan, Outcome, Phase};
use eplb_plan::Dispatch;

use super::SetId;
use super::closed::Closed;
use super::device::Ready;
use super::maps::{Wanted, make};
use super::progress::{LONGEST_PAUSE, Progress};
use super::report::{Report, RoundOutcome};
use super::shared::{BARRED, EXCHANGE, PUBLISH, Shared, lock};
use super::spans::Shown;
use super::state::{Event, State};
use super::wire::{Done, Plan};
use crate::driver::{Ended, own_commits};
use crate::error::EngineError;

/// Longest wait for copies of an exchange that is given up, while its communicator is kept.
const LONGEST_HALT: Duration = Duration::from_secs(5);

/// What this rank knows of the round under way.
#[derive(Debug)]
pub(super) struct Running {
    number: u64,
    plan: Plan,
    waves: Arc<ExchangePlan>,
    since: Instant,
    seen: Option<(Phase, usize)>,
    /// The phase, and behind it the round, for profilers: dropped in this order.
    phase: Option<Shown>,
    shown: Shown,
    wanted: Option<Wanted>,
}

impl Running {
    /// The maps that steps will need in a wave, and on a device its commit, so that none has to make them.
    fn make_ready(
        &self,
        shared: &Shared,
        wave: usize,
    ) -> Result<(Vec<Ready>, Option<CommitList>), EngineError> {
        let set = &shared.sets[self.plan.set];
        let Some(commits) = self.waves.waves().get(wave) else { return Ok((Vec::new(), None)) };
        let wanted = self.wanted.as_ref().map(|wanted| (wanted, set.topology.as_ref()));
        let mut ready = Vec::new();
        for map in self.waves.maps_of(wave) {
            let maps = make(&map, set.experts, set.columns, wanted)?;
            ready.push(Ready::new(maps, set.device.as_ref())?);
        }
        let commits = own_commits(commits, shared.rank, &set.topology);
        let list = set.device.as_ref().map(|device| device.lay_out(commits, &ready)).transpose()?;
        Ok((ready, list.flatten()))
    }
}

impl Progress {
    /// Begins a round.
    pub(super) fn begin(&mut self, number: u64, plan: Plan) -> Result<(), EngineError> {
        let shared = self.shared.clone();
        let since = Instant::now();
        let (at, set) = (plan.set, &shared.sets[plan.set]);
        let old = {
            let core = lock(&shared.core);
            Placement::with_missing(set.experts, core.lanes[at].driver.phy2log().as_ref().clone())?
        };
        let new = Placement::with_missing(set.experts, plan.phy2log.clone())?;
        let waves =
            ExchangePlan::new(&old, &new, &set.topology, &set.layout, Some(plan.loads.view()), &set.limits)?;
        let waves = Arc::new(waves);
        let (reason, moves) = (plan.reason.name(), waves.totals().moves);
        let shown = Shown::round(shared.rank.0, number, &set.name, reason, moves);
        let mut running = Running {
            number,
            plan,
            waves: waves.clone(),
            since,
            seen: None,
            phase: None,
            shown,
            wanted: None,
        };
        if running.plan.dry {
            return self.end(running, RoundOutcome::DryRun, 0);
        }
        let Some(session) = &self.session else { return Ok(()) };
        // A rank that is quiesced says there that it gives up.
        let bulletin = lock(&shared.core).lanes[at].bulletin.clone();
        session.board.begin_with(bulletin)?;
        let quiesced = shared.state() == State::Quiesced;
        if !quiesced {
            // A host that wants something else meanwhile has had it refused, or has it cancelled below.
            drop(shared.on(Event::Begin));
        }
        let members = session.members().to_vec();
        let wanted = match &running.plan.share {
            Some(share) => Some(Wanted::new(&new, &Share::new(share.clone(), &new)?, &set.topology)),
            None => None,
        };
        let mut core = lock(&shared.core);
        let last = shared.raise(EXCHANGE);
        let exchange = Exchange::new(
            waves,
            shared.rank,
            &members,
            shared.deadlines.exchange,
            running.plan.margin,
            last,
            Instant::now(),
        );
        core.moving = Some(at);
        let lane = &mut core.lanes[at];
        let communicator = lane.communicator.take().unwrap_or_else(|| Closed::boxed(shared.rank));
        lane.driver.begin_within_step(exchange, communicator, session.board.clone(), last)?;
        lane.reshared = wanted.is_some();
        lane.wanted = wanted.clone();
        lane.launch = Duration::ZERO;
        drop(core);
        running.wanted = wanted;
        self.running = Some(running);
        let wanted_otherwise = quiesced || !shared.state().is_exchanging();
        if wanted_otherwise {
            self.cancel("this rank is quiesced");
        }
        Ok(())
    }

    /// Asks the exchange under way to stop.
    pub(super) fn cancel(&mut self, why: &str) {
        let mut core = lock(&self.shared.core);
        if let Some(at) = core.moving {
            core.lanes[at].driver.cancel(why);
        }
    }

    /// A look at the exchange under way.
    pub(super) fn exchange_turn(&mut self) -> Result<(), EngineError> {
        // Passes go on, and what they counted has little room on its way.
        self.collect()?;
        let shared = self.shared.clone();
        let (ended, at) = {
            let mut core = lock(&shared.core);
            let Some(set) = core.moving else { return Ok(()) };
            let driver = &mut core.lanes[set].driver;
            let ended = driver.progress()?;
            (ended, driver.phase().zip(driver.wave()))
        };
        if let Some(ended) = ended {
            return self.over(ended);
        }
        let mut changed = false;
        if let (Some((phase, (wave, agreed))), Some(running)) = (at, &mut self.running) {
            changed = running.seen != Some((phase, wave));
            let ready = match running.seen.is_none_or(|(_, seen)| seen != wave) {
                true => Some(running.make_ready(&shared, wave)?),
                false => None,
            };
            if changed {
                // The one before ends first.
                running.phase = None;
                running.phase = Some(running.shown.phase(phase, wave));
            }
            running.seen = Some((phase, wave));
            if let Some(lane) = lock(&shared.core).lanes.get_mut(running.plan.set) {
                if let Some((ready, list)) = ready {
                    lane.ready = ready;
                    lane.driver.stream().lay_out(list);
                }
                lane.ready.iter().try_for_each(Ready::look)?;
                lane.driver.stream().look()?;
            }
            if changed {
                // While this rank is quiesced the exchange is not its state.
                drop(shared.on(Event::Phase { phase, wave, agreed }));
            }
            changed |= phase == Phase::Moving;
            if phase == Phase::Committing {
                self.commit_at_rest(agreed)?;
            }
        }
        self.rest(changed);
        Ok(())
    }

    /// Applies a commit that is decided, for a step or for the next boundary, neither of which comes, because the host has stopped: no pass is under
    /// way on this rank, so this is a boundary as good as that. Nothing, while the host goes on.
    fn commit_at_rest(&mut self, step: Option<u64>) -> Result<(), EngineError> {
        let shared = self.shared.clone();
        let mut core = lock(&shared.core);
        // Under the lock: a host that gives up waiting may run passes again, and the first of them waits for it.
        let Some(at) = core.moving.filter(|_| shared.desk.host_is_quiet()) else { return Ok(()) };
        let first_step = shared.hand.next_step();
        let lane = &mut core.lanes[at];
        let passed = match step {
            Some(step) => lane.driver.step(step),
            None => lane.driver.tick(),
        };
        let published = passed.and_then(|()| shared.publish(at, lane, first_step));
        let released = lane.driver.stream().release();
        published?;
        Ok(released?)
    }

    /// The exchange under way is over.
    fn over(&mut self, ended: Ended) -> Result<(), EngineError> {
        let Some(running) = self.running.take() else { return Ok(()) };
        let shared = self.shared.clone();
        let waves = running.waves.waves().len();
        let Ended { outcome, communicator } = ended;
        let committed = outcome.committed(&running.waves);
        {
            let mut core = lock(&shared.core);
            core.moving = None;
            let lane = &mut core.lanes[running.plan.set];
            lane.version += committed as u64;
            lane.ready.clear();
            lane.driver.stream().lay_out(None);
            let pending = lane.reshared || *lane.driver.phy2log() != lane.published;
            // A communicator that was stopped is of no more use.
            lane.communicator = (outcome == Outcome::Completed && communicator.backend() != Closed::NAME)
                .then_some(communicator);
            if lane.driver.is_barred() {
                shared.raise(BARRED);
            }
            if pending {
                shared.raise(PUBLISH);
            }
            shared.clear(EXCHANGE);
        }
        drop(shared.on(Event::Ended));
        let quiesced = shared.state() == State::Quiesced;
        let late = outcome.came_too_late();
        // Ranks with other plans have done something else, even where this one had nothing to do.
        let alike = !matches!(outcome, Outcome::Aborted { cause: Cause::PlanMismatch { .. }, .. });
        let result = match outcome {
            Outcome::Completed | Outcome::Aborted { .. } if waves == 0 && alike => {
                self.end(running, RoundOutcome::NothingToMove, 0)
            }
            Outcome::Completed => self.end(running, RoundOutcome::Moved, waves),
            // Given up when all was committed: what it was for is done.
            Outcome::Aborted { wave, .. } if wave == waves && alike => {
                self.end(running, RoundOutcome::Moved, waves)
            }
            Outcome::Aborted { cause, silent, .. } => {
                let fatal = (!silent.is_empty() || is_fatal(&cause)).then(|| cause.to_string());
                let how = match late {
                    true => RoundOutcome::TooLate,
                    false => RoundOutcome::Aborted { cause: cause.to_string() },
                };
                let ended = self.end(running, how, committed);
                match fatal {
                    Some(cause) => Err(EngineError::RoundFailed { rank: shared.rank, cause }),
                    None => ended,
                }
            }
            Outcome::Broken { cause, .. } => {
                let cause = cause.to_string();
                self.end(running, RoundOutcome::Aborted { cause: cause.clone() }, committed)?;
                Err(EngineError::RoundFailed { rank: shared.rank, cause })
            }
            Outcome::Undecided { wave, cause, .. } => {
                let how = RoundOutcome::Aborted { cause: cause.to_string() };
                self.end(running, how, committed)?;
                Err(EngineError::Unknown { rank: shared.rank, wave, cause })
            }
        };
        if quiesced {
            self.close();
        }
        result
    }

    /// Reports a round and shows that it has ended here.
    fn end(&mut self, running: Running, outcome: RoundOutcome, committed: usize) -> Result<(), EngineError> {
        let shared = self.shared.clone();
        let Running { number, plan, waves, since, phase, shown, .. } = running;
        drop(phase);
        self.round = number;
        self.done = match outcome {
            RoundOutcome::TooLate => Done::TooLate,
            RoundOutcome::Aborted { .. } => Done::Aborted,
            _ => Done::Well,
        };
        self.counted = shared.sets.iter().map(|set| set.counters.passes()).sum();
        let set = &shared.sets[plan.set];
        let (now, share, launch) = {
            let core = lock(&shared.core);
            let lane = &core.lanes[plan.set];
            let wanted = lane.wanted.as_ref().map(|wanted| (wanted, set.topology.as_ref()));
            let maps = make(lane.driver.phy2log(), set.experts, set.columns, wanted)?;
            (Placement::with_missing(set.experts, maps.phy2log)?, maps.share.mapv(f64::from), lane.launch)
        };
        let share =
            if set.options.dispatch == Dispatch::Share { Some(Share::new(share, &now)?) } else { None };
        let reached = balancedness(plan.loads.view(), &now, share.as_ref(), &set.topology)?;
        let totals = waves.totals();
        let report = Report {
            round: number,
            set: SetId(plan.set),
            reason: plan.reason,
            outcome,
            before: plan.before,
            predicted: plan.predicted,
            bound: plan.bound,
            reached: reached.mean,
            per_layer: reached.per_layer,
            moves: totals.moves,
            local_copies: totals.local_copies,
            link_bytes: totals.link_bytes,
            waves: waves.waves().len(),
            committed,
            plan_time: Duration::from_nanos(plan.plan_nanos),
            time: since.elapsed(),
            launch,
        };
        shown.within(|| {
            tracing::info!(
                rank = shared.rank.0,
                round = number,
                reason = report.reason.name(),
                outcome = %report.outcome,
                moves = report.moves,
                before = report.before,
                reached = report.reached,
                "round ended"
            )
        });
        // Shown before the host hears of it, so that what the host does next finds the ranks agreed.
        self.show()?;
        shared.end_round(report);
        Ok(())
    }

    /// Gives up the exchange under way, if any, without the others. Its copies have ended when this returns, or
    /// [`LONGEST_HALT`] is over.
    pub(super) fn abandon(&mut self, why: &str) {
        self.running = None;
        let shared = self.shared.clone();
        let left = {
            let mut core = lock(&shared.core);
            let left = core.moving.take().and_then(|at| {
                let lane = &mut core.lanes[at];
                lane.ready.clear();
                lane.driver.stream().lay_out(None);
                let left = lane.driver.abandon(why)?;
                lane.version += left.committed as u64;
                Some(left)
            });
            // Steps that must not run have to be told so before any is let past.
            if core.lanes.iter().any(|lane| lane.driver.is_barred()) {
                shared.raise(BARRED);
            }
            shared.clear(EXCHANGE);
            left
        };
        let begun = Instant::now();
        while !self.is_quiet() && begun.elapsed() < LONGEST_HALT {
            std::thread::sleep(LONGEST_PAUSE);
        }
        // What cannot be waited for is left to the communicator's own end.
        drop(left);
    }

    /// Waits, however long it takes, until nothing of this rank can touch the slots any more: then its memory may be freed.
    pub(super) fn settle(&self) {
        while !self.is_quiet() {
            std::thread::sleep(LONGEST_PAUSE);
        }
    }

    /// Whether no copy of an exchange that is over can touch the slots any more.
    fn is_quiet(&self) -> bool {
        lock(&self.shared.core).lanes.iter_mut().all(|lane| lane.driver.is_quiet())
    }
}

/// Whether no later round of this epoch can do better.
fn is_fatal(cause: &Cause) -> bool {
    matches!(
        cause,
        Cause::PlanMismatch { .. }
            | Cause::StoreLost { .. }
            | Cause::EpochClosed { .. }
            | Cause::PeerSilent { .. }
            | Cause::PeerLeft { .. }
            | Cause::Protocol { .. }
    )
}
