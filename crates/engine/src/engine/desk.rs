//! What the host asks for, what the progress thread carries out of it, and how each waits for the other.
//!
//! One lock over the [`Machine`] and its orders, and one wake for all who wait. The end of an engine is here as a whole: the host's side
//! ([`Desk::end`]), and the life of the thread until then ([`Desk::work`], [`Desk::finish`]). The model below explores it.

use std::ops::DerefMut;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::shared::lock;
use super::state::{Event, Machine, Misfit, Order, State};

/// What is under the lock.
#[derive(Debug)]
pub(super) struct Asked {
    machine: Machine,
    orders: Vec<Order>,
    since: Instant,
    rounds: u64,
    /// How often what the engine was reforming for was done, and nothing else was wanted.
    formed: u64,
    /// Orders are being carried out.
    obeying: bool,
    /// The progress thread has ended.
    over: bool,
    /// With what it panicked, if it did.
    panicked: Option<String>,
}

impl Asked {
    fn new(machine: Machine) -> Self {
        let (orders, since) = (Vec::new(), Instant::now());
        Self { machine, orders, since, rounds: 0, formed: 0, obeying: false, over: false, panicked: None }
    }
}

/// A lock, a wake, and deadlines; in the model they are loom's, and deadlines pass whenever they may.
pub(super) trait Monitor {
    /// The lock, held.
    type Guard<'a>: DerefMut<Target = Asked>
    where
        Self: 'a;
    /// When a wait is over.
    type Deadline;
    fn new(asked: Asked) -> Self;
    fn lock(&self) -> Self::Guard<'_>;
    /// Wakes all who wait, of what was changed under the lock that is still held.
    fn wake(&self, changed: &Asked);
    fn deadline(&self, timeout: Duration) -> Self::Deadline;
    /// Waits for a wake, which may come for nothing; `None`: the deadline has passed.
    fn wait<'a>(&'a self, guard: Self::Guard<'a>, deadline: &Self::Deadline) -> Option<Self::Guard<'a>>;
}

/// Those of a running engine.
#[derive(Debug)]
pub(super) struct Real {
    asked: Mutex<Asked>,
    changed: Condvar,
}

impl Monitor for Real {
    type Guard<'a> = MutexGuard<'a, Asked>;
    type Deadline = Instant;

    fn new(asked: Asked) -> Self {
        Self { asked: Mutex::new(asked), changed: Condvar::new() }
    }

    fn lock(&self) -> Self::Guard<'_> {
        lock(&self.asked)
    }

    fn wake(&self, _: &Asked) {
        self.changed.notify_all();
    }

    fn deadline(&self, timeout: Duration) -> Instant {
        eplb_comm::store::deadlines::after(timeout)
    }

    fn wait<'a>(&'a self, guard: Self::Guard<'a>, deadline: &Instant) -> Option<Self::Guard<'a>> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        Some(self.changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0)
    }
}

/// What waits look at.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) state: &'a State,
    pub(super) rounds: u64,
    /// What [`Desk::reform`] counts.
    pub(super) formed: u64,
    /// Whether the progress thread has ended.
    pub(super) over: bool,
    /// Whether something that the host asked for is still to be done.
    pub(super) busy: bool,
}

/// A change of state: from, to, and how long the first one lasted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) from: State,
    pub(super) to: State,
    pub(super) spent: Duration,
}

/// What the progress thread does.
pub(super) trait Worker {
    /// Carries out an order.
    fn obey(&mut self, order: Order);
    /// A look at what there is to do, and a rest.
    fn turn(&mut self);
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Desk<M = Real>(M);

impl<M: Monitor> Desk<M> {
    pub(super) fn new() -> Self {
        Self(M::new(Asked::new(Machine::new())))
    }

    /// Takes in an event; orders go to the progress thread.
    pub(super) fn on(&self, event: Event) -> Result<Option<Change>, Misfit> {
        self.take_in(&mut self.0.lock(), event)
    }

    /// Takes in that the host wants a new epoch. Once it is formed, [`View::formed`] is more than the number that comes back, whatever has become
    /// of it since.
    pub(super) fn reform(&self) -> Result<(u64, Option<Change>), Misfit> {
        let mut asked = self.0.lock();
        let change = self.take_in(&mut asked, Event::Reform)?;
        Ok((asked.formed, change))
    }

    fn take_in(&self, asked: &mut Asked, event: Event) -> Result<Option<Change>, Misfit> {
        let from = asked.machine.state().clone();
        if asked.panicked.is_some() && !matches!(event, Event::Stop | Event::Halt) {
            // Nobody is there to carry anything out.
            return Err(Misfit { state: from });
        }
        let forms = event == Event::Formed;
        let order = asked.machine.on(event)?;
        asked.orders.extend(order);
        let to = asked.machine.state().clone();
        asked.formed += u64::from(forms && to != State::Reforming);
        let change = (to != from).then(|| {
            let spent = asked.since.elapsed();
            asked.since = Instant::now();
            Change { from, to, spent }
        });
        self.0.wake(asked);
        Ok(change)
    }

    /// Takes in that something cannot go on.
    pub(super) fn fail(&self, cause: String) -> Option<Change> {
        let mut asked = self.0.lock();
        // The host leaves what failed already: this must not be taken for the end of what it has asked for.
        if asked.orders.contains(&Order::Reform) {
            return None;
        }
        // Refused only once stopped, and then there is nobody to tell.
        self.take_in(&mut asked, Event::Fail(cause)).ok().flatten()
    }

    /// Where the engine is.
    pub(super) fn state(&self) -> State {
        self.0.lock().machine.state().clone()
    }

    /// Whether the host waits, with no pass under way, for what is under way to be over. It may cease to wait at once: true only for as long as the
    /// caller holds the lock that a step would wait for.
    pub(super) fn host_is_quiet(&self) -> bool {
        self.0.lock().machine.has_wish()
    }

    /// Whether the host wants to be out of the epoch: to end, or to form another. Who waits for other ranks in it need not wait any more.
    pub(super) fn leaves_epoch(&self) -> bool {
        let asked = self.0.lock();
        asked.machine.is_ending() || asked.orders.contains(&Order::Reform)
    }

    /// What the progress thread has to do.
    pub(super) fn take_orders(&self) -> Vec<Order> {
        let mut asked = self.0.lock();
        let orders = std::mem::take(&mut asked.orders);
        asked.obeying = !orders.is_empty();
        orders
    }

    /// What was taken has been carried out.
    fn obeyed(&self) {
        let mut asked = self.0.lock();
        asked.obeying = false;
        self.0.wake(&asked);
    }

    /// Rounds ended on this rank.
    pub(super) fn rounds(&self) -> u64 {
        self.0.lock().rounds
    }

    /// A round has ended.
    pub(super) fn end_round(&self) {
        let mut asked = self.0.lock();
        asked.rounds += 1;
        self.0.wake(&asked);
    }

    /// Has a worker carry out orders and take turns until the engine is stopped.
    pub(super) fn work(&self, worker: &mut impl Worker) {
        loop {
            for order in self.take_orders() {
                worker.obey(order);
            }
            self.obeyed();
            if self.state() == State::Stopped {
                return;
            }
            worker.turn();
        }
    }

    /// The progress thread ends.
    pub(super) fn finish(&self) -> Option<Change> {
        let mut asked = self.0.lock();
        asked.over = true;
        self.take_in(&mut asked, Event::Halt).ok().flatten()
    }

    /// The progress thread has ended by a panic: what it was about to do is not done, and nothing that the host asks for will be.
    pub(super) fn collapse(&self, cause: &str) -> Option<Change> {
        let mut asked = self.0.lock();
        asked.orders.clear();
        (asked.over, asked.obeying) = (true, false);
        let change = self.take_in(&mut asked, Event::Collapse(cause.to_owned())).ok().flatten();
        asked.panicked = Some(cause.to_owned());
        change
    }

    /// With what the progress thread has panicked.
    pub(super) fn panicked(&self) -> Option<String> {
        self.0.lock().panicked.clone()
    }

    /// Waits until `done` holds; the state then, or `None` at the deadline.
    pub(super) fn wait(&self, timeout: Duration, mut done: impl FnMut(View<'_>) -> bool) -> Option<State> {
        let deadline = self.0.deadline(timeout);
        let mut asked = self.0.lock();
        loop {
            let view = View {
                state: asked.machine.state(),
                rounds: asked.rounds,
                formed: asked.formed,
                over: asked.over,
                busy: asked.obeying || !asked.orders.is_empty() || asked.machine.has_wish(),
            };
            if done(view) {
                return Some(asked.machine.state().clone());
            }
            asked = self.0.wait(asked, &deadline)?;
        }
    }

    /// After [`Event::Stop`]: waits for the end of the progress thread, half of the time for an orderly one, the rest for any. `false`: it is
    /// still in a call that does not return.
    pub(super) fn end(&self, timeout: Duration, tell: impl FnOnce(Change)) -> bool {
        if self.wait(timeout / 2, |view| view.over).is_none()
            && let Ok(Some(change)) = self.on(Event::Halt)
        {
            tell(change);
        }
        self.wait(timeout / 2, |view| view.over).is_some()
    }
}

#[cfg(test)]
mod model;
