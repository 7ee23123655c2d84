//! What the host asks of an engine, and how long it waits for it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use eplb_comm::CommError;
use eplb_comm::store::deadlines::after;

use super::desk::View;
use super::report::Report;
use super::shared::lock;
use super::state::{Event, Order, State};
use super::{Engine, SetId};
use crate::error::EngineError;

/// How long dropping an engine waits for its end.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

impl Engine {
    /// Where the engine is.
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Asks for a round for every layer set, whatever the triggers say. Returns [`Engine::rounds`] as it is now, for
    /// [`Engine::wait_round`].
    ///
    /// # Errors
    /// The engine has failed, is stopped, or closed.
    pub fn rebalance_now(&self) -> Result<u64, EngineError> {
        let state = self.state();
        if matches!(state, State::Failed { .. } | State::Stopped | State::Quiesced) {
            return Err(self.misfit("rebalance_now", &state));
        }
        let rounds = self.shared.desk.rounds();
        self.shared.demands.fetch_add(1, Ordering::SeqCst);
        Ok(rounds)
    }

    /// Rounds that have ended on this rank since the start.
    pub fn rounds(&self) -> u64 {
        self.shared.desk.rounds()
    }

    /// Waits until more than `after` rounds have ended, and returns the report of the last one of the first set that had one. Rounds are
    /// counted as by [`Engine::rounds`], not as in [`Report::round`].
    ///
    /// # Errors
    /// [`EngineError::Late`]; the engine failed or was stopped meanwhile. A rank that is alone has no rounds.
    pub fn wait_round(&self, after: u64, timeout: Duration) -> Result<Report, EngineError> {
        let over = |state: &State| matches!(state, State::Failed { .. } | State::Stopped);
        let state = self.shared.desk.wait(timeout, |view| view.rounds > after || over(view.state));
        let state = self.in_time(state, "wait_round", timeout)?;
        let reports = (0..self.shared.sets.len()).filter_map(|set| self.last_report(SetId(set)));
        match reports.max_by_key(|report| report.round).filter(|_| self.rounds() > after) {
            Some(report) => Ok(report),
            None => Err(self.misfit("wait_round", &state)),
        }
    }

    /// No new round begins until [`Engine::resume`]; one that is under way goes on.
    ///
    /// # Errors
    /// The engine is stopped.
    pub fn pause(&self) -> Result<(), EngineError> {
        self.tell(Event::Pause, "pause")
    }

    /// Rounds may begin again.
    ///
    /// # Errors
    /// The engine is stopped.
    pub fn resume(&self) -> Result<(), EngineError> {
        self.tell(Event::Resume, "resume")
    }

    /// Finishes or cancels what is under way, and closes all handles on other ranks: for sleep, reload and refit. All ranks call
    /// it, each with no pass under way. Returns when nothing of this engine touches the slots any more.
    ///
    /// # Errors
    /// [`EngineError::Late`]; the engine failed or is stopped.
    pub fn quiesce(&self, timeout: Duration) -> Result<(), EngineError> {
        self.tell(Event::Quiesce, "quiesce")?;
        self.reach("quiesce", timeout, |state| *state == State::Quiesced)
    }

    /// Goes on after [`Engine::quiesce`]. The first round after it waits for all ranks.
    ///
    /// # Errors
    /// The engine is not quiesced, or [`EngineError::Late`].
    pub fn reopen(&self, timeout: Duration) -> Result<(), EngineError> {
        self.tell(Event::Reopen, "reopen")?;
        self.reach("reopen", timeout, |state| *state != State::Reforming)
    }

    /// Forms the next epoch with the same ranks, some of which may have been started anew: after a failure, or to be rid of one.
    /// All ranks call it, each with no pass under way. Ranks go on from the placement that is committed; a slot whose bytes nobody vouches
    /// for is filled from the [`source`](super::Builder::source). From when the ranks know what they go on from until all are there, steps are
    /// refused ([`EngineError::Unformed`]); after a reform that failed then, until one that succeeds.
    ///
    /// # Errors
    /// [`EngineError::Late`], or why no epoch was formed.
    pub fn reform(&self, timeout: Duration) -> Result<(), EngineError> {
        let asked = self.shared.desk.reform();
        let (before, change) = asked.map_err(|misfit| self.misfit("reform", &misfit.state))?;
        self.shared.tell(change);
        if lock(&self.thread).is_none() {
            self.alone();
        }
        // By count: when this looks, the next round may wait for a step of the host that waits here, or have failed.
        let formed = |view: &View<'_>| view.formed > before;
        let over = |state: &State| matches!(state, State::Failed { .. } | State::Stopped);
        let mut done = false;
        let state = self.shared.desk.wait(timeout, |view| {
            done = formed(&view);
            done || (!view.busy && over(view.state))
        });
        let state = self.in_time(state, "reform", timeout)?;
        if done { Ok(()) } else { Err(self.misfit("reform", &state)) }
    }

    /// Ends the engine, from any state: what is under way is cancelled, or left at the deadline, and no other rank is waited for but to agree
    /// on that; those that come to wait for this one are told. The placement in force stays. To be called with no pass under way: a commit that is
    /// decided is applied.
    ///
    /// # Errors
    /// [`EngineError::Late`]: the progress thread is still in a call that does not return, or a commit has not run; memory that was registered must stay
    /// valid. [`EngineError::Panicked`]: that thread has ended by a fault of eplb, before or now. The engine is stopped all the same.
    pub fn shutdown(&self, timeout: Duration) -> Result<(), EngineError> {
        drop(self.shared.on(Event::Stop));
        let deadline = after(timeout);
        if lock(&self.thread).is_none() {
            self.alone();
        } else {
            let over = self.shared.desk.end(timeout, |change| self.shared.tell(Some(change)));
            let mut thread = lock(&self.thread);
            if !over && thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
                return self.in_time(None, "shutdown", timeout).map(drop);
            }
            if let Some(thread) = thread.take() {
                // What it panicked with, the desk knows.
                drop(thread.join());
            }
        }
        self.last_writes(timeout, deadline)?;
        match self.shared.desk.panicked() {
            Some(cause) => Err(EngineError::Panicked { rank: self.shared.rank, cause }),
            None => Ok(()),
        }
    }

    /// Waits until the commits and changes of maps that were enqueued have run.
    fn last_writes(&self, timeout: Duration, deadline: Instant) -> Result<(), EngineError> {
        let written: Vec<_> = lock(&self.shared.core)
            .lanes
            .iter_mut()
            .filter_map(|lane| lane.driver.stream().written())
            .collect();
        for fence in written {
            // One that failed writes no more.
            if let Err(CommError::Timeout { .. }) = fence.wait(self.shared.rank, "the last commit", deadline)
            {
                return self.in_time(None, "shutdown", timeout).map(drop);
            }
        }
        Ok(())
    }

    fn tell(&self, event: Event, call: &'static str) -> Result<(), EngineError> {
        self.shared.on(event).map_err(|misfit| self.misfit(call, &misfit.state))?;
        if lock(&self.thread).is_none() {
            self.alone();
        }
        Ok(())
    }

    /// Without a thread nothing is open, and every order is carried out at once.
    fn alone(&self) {
        loop {
            let orders = self.shared.desk.take_orders();
            if orders.is_empty() {
                return;
            }
            for order in orders {
                if matches!(order, Order::Open | Order::Reform) {
                    drop(self.shared.on(Event::Formed));
                }
            }
        }
    }

    /// Waits until the engine is where it should be.
    fn reach(
        &self,
        call: &'static str,
        timeout: Duration,
        there: impl Fn(&State) -> bool,
    ) -> Result<(), EngineError> {
        let over = |state: &State| matches!(state, State::Failed { .. } | State::Stopped);
        let state =
            self.shared.desk.wait(timeout, |view| !view.busy && (there(view.state) || over(view.state)));
        let state = self.in_time(state, call, timeout)?;
        if over(&state) { Err(self.misfit(call, &state)) } else { Ok(()) }
    }

    fn in_time(
        &self,
        state: Option<State>,
        call: &'static str,
        timeout: Duration,
    ) -> Result<State, EngineError> {
        state.ok_or_else(|| EngineError::Late {
            rank: self.shared.rank,
            call,
            timeout,
            state: self.state().to_string(),
        })
    }

    fn misfit(&self, call: &'static str, state: &State) -> EngineError {
        EngineError::State { rank: self.shared.rank, call, state: state.to_string() }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Who wants to know how it ended calls `shutdown` first.
        drop(self.shutdown(DROP_TIMEOUT));
    }
}
