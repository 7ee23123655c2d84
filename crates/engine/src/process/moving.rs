//! How a rank that is a process moves experts with the others while it serves steps.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::Fence;
use eplb_comm::store::deadlines::after;
use eplb_core::Placement;
use eplb_exchange::{Exchange, ExchangePlan, Outcome, Totals};
use ndarray::Array2;

use super::member::{Member, Undecided};
use super::session::{Stage, at};
use crate::board::Board;
use crate::cluster::lockstep::Route;
use crate::driver::Ended;
use crate::error::EngineError;

/// What one exchange did, as this rank saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchanged {
    /// Waves that were committed.
    pub waves: usize,
    /// What they add up to, over all ranks.
    pub totals: Totals,
    /// Steps that this rank served meanwhile.
    pub steps: u64,
    /// From planning the waves to this rank's last commit, checks included.
    pub time: Duration,
    /// Bytes that this rank found wrong.
    pub bytes_wrong: u64,
    /// The first slot that it found wrong, in words.
    pub first_wrong: Option<String>,
}

/// Rest between two looks while an exchange runs. The thread does not wait for one thing that could wake it: bytes and copies are polled
/// ([`eplb_comm::Communicator::poll`], fences), notes come through the board, and the next step comes by the clock. It is short
/// beside a step, and long beside a look; and it is there during exchanges alone.
const LOOK: Duration = Duration::from_micros(100);

impl Member {
    /// Moves the experts to `new`, which was planned on `loads` (`[L, E]`), while this rank serves steps. All ranks call it, with
    /// the same arguments.
    ///
    /// A proposal that came too late for some rank is made again with a larger margin, which shrinks again with each exchange
    /// that completes.
    ///
    /// # Errors
    /// The exchange cannot be planned, ranks planned differently, or it was aborted or left undecided: what is in force then,
    /// [`Member::placement`] says; the rank has to [`Member::rejoin`].
    pub fn rebalance(&mut self, new: &Placement, loads: &Array2<f64>) -> Result<Exchanged, EngineError> {
        let rank = self.session.rank();
        let start = Instant::now();
        let mut sum: Option<Exchanged> = None;
        loop {
            let (outcome, mut exchanged) = self.attempt(new, loads)?;
            if let Some(before) = sum {
                exchanged.waves += before.waves;
                exchanged.totals += before.totals;
                exchanged.steps += before.steps;
                exchanged.bytes_wrong += before.bytes_wrong;
                exchanged.first_wrong = before.first_wrong.or(exchanged.first_wrong);
            }
            exchanged.time = start.elapsed();
            match outcome {
                Outcome::Completed => {
                    self.margin.shrink();
                    return Ok(exchanged);
                }
                _ if outcome.came_too_late() && self.margin.grow() => {
                    sum = Some(exchanged);
                    self.connect()?;
                }
                Outcome::Aborted { wave, cause, silent, .. } => {
                    let mut error = EngineError::Aborted { rank, wave, cause };
                    // Another rank may have heard of all that they stopped, find it worth another try, and wait for this one.
                    if !silent.is_empty() && self.session.board.lost().is_none() {
                        error = self.give_up(error);
                    }
                    return at(rank, Stage::Moving, Err(error));
                }
                Outcome::Broken { wave, cause, .. } => {
                    return at(rank, Stage::Moving, Err(EngineError::Aborted { rank, wave, cause }));
                }
                Outcome::Undecided { wave, cause, .. } => {
                    return at(rank, Stage::Moving, Err(EngineError::Unknown { rank, wave, cause }));
                }
            }
        }
    }

    fn attempt(&mut self, new: &Placement, loads: &Array2<f64>) -> Result<(Outcome, Exchanged), EngineError> {
        let rank = self.session.rank();
        let new = self.job.settings.hooks.placement(rank, Arc::new(new.clone()));
        let limits = &self.job.settings.limits;
        let plan = ExchangePlan::new(
            &self.placement,
            &new,
            &self.job.topology,
            &self.job.layout,
            Some(loads.view()),
            limits,
        );
        let plan = match plan {
            Ok(plan) => Arc::new(plan),
            Err(error) => return at(rank, Stage::Agreeing, Err(self.give_up(error.into()))),
        };
        let mut exchanged = Exchanged {
            waves: 0,
            totals: plan.totals_of(0),
            steps: 0,
            time: Duration::ZERO,
            bytes_wrong: 0,
            first_wrong: None,
        };
        let at_once = u64::from(self.bulletin.is_some());
        let begun = self.session.board.begin_with(self.bulletin.clone());
        at(rank, Stage::Agreeing, begun)?;
        let (number, base) = self.session.board.position();
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for part in [plan.hash64(), number, base, self.margin.steps(), at_once] {
            hasher.update(&part.to_le_bytes());
        }
        let deadline = after(self.session.deadlines().store.collective);
        let agreed = self.session.group.agree_hash("waves", hasher.digest(), deadline);
        at(rank, Stage::Agreeing, agreed)?;
        if plan.waves().is_empty() {
            return Ok((Outcome::Completed, exchanged));
        }
        let (outcome, steps) = at(rank, Stage::Moving, self.exchange(&plan))?;
        exchanged.steps = steps;
        exchanged.waves = outcome.committed(&plan);
        exchanged.totals = plan.totals_of(exchanged.waves);
        let found = self.serving.findings.take();
        exchanged.bytes_wrong = found.bytes_wrong;
        exchanged.first_wrong = found.first.map(|error| error.to_string());
        Ok((outcome, exchanged))
    }

    /// Runs the waves while steps go on; how it ended, and the steps served.
    fn exchange(&mut self, plan: &Arc<ExchangePlan>) -> Result<(Outcome, u64), EngineError> {
        let rank = self.session.rank();
        let communicator = self.communicator.take().ok_or_else(|| EngineError::Backend {
            backend: self.job.transport.name(),
            detail: "its communicator failed before; join the next epoch".into(),
        })?;
        let hooks = &self.job.settings.hooks;
        let board = hooks.board(rank, self.session.board.clone());
        let (deadlines, last) = (self.job.settings.deadlines, self.serving.driver.last_step());
        let members = self.session.members();
        let exchange =
            Exchange::new(plan.clone(), rank, members, deadlines, self.margin.steps(), last, Instant::now());
        self.sound = false;
        self.serving.driver.begin(exchange, communicator, board)?;

        let mut ended: Option<Ended> = None;
        let mut running: VecDeque<Fence> = VecDeque::new();
        let mut steps = 0;
        while ended.is_none() {
            let step = self.clock.at(Instant::now());
            if self.serving.driver.last_step().is_none_or(|last| last < step) {
                match self.serving.driver.step(step) {
                    Ok(()) => {
                        let route = Route { map: self.serving.driver.phy2log().clone(), over: false };
                        running.push_back(self.serving.enqueue(step, vec![route]));
                        steps += 1;
                    }
                    // The pass does not run; the exchange has ended by that, and says how.
                    Err(EngineError::Undecided { .. } | EngineError::Broken { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            self.serving.advance(plan, &mut ended)?;
            // As a server does, the host runs at most one step ahead of its device.
            while running.len() > 1 {
                let Some(fence) = running.pop_front() else { break };
                self.serving.wait(&fence, plan, &mut ended)?;
            }
            if ended.is_none() {
                std::thread::sleep(LOOK);
            }
        }
        for fence in running {
            self.serving.wait(&fence, plan, &mut ended)?;
        }
        let Some(Ended { outcome, communicator }) = ended else {
            return Err(EngineError::RankLost { rank, detail: "the exchange did not end".into() });
        };
        self.version += outcome.committed(plan) as u64;
        self.sound = true;
        if let Outcome::Undecided { wave, .. } = outcome {
            let ((_, base), epoch) = (self.session.board.position(), self.session.epoch());
            self.undecided = Some(Undecided { plan: plan.clone(), wave, epoch, base, committed: false });
        }
        let map = self.serving.driver.phy2log().as_ref().clone();
        self.placement = Placement::with_missing(self.placement.experts(), map)?;
        if outcome == Outcome::Completed {
            self.communicator = Some(communicator);
        }
        Ok((outcome, steps))
    }
}
