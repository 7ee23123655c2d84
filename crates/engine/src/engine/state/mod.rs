//! Where a rank's engine is, as a state machine without IO: events in, orders out.
//!
//! ```text
//!                    counts            leads, a trigger fires
//!          ┌─> Idle ───────> Collecting ───────────> Planning
//!          │    │ a round begins │                      │ a plan that moves experts is announced
//!          │    └────────────┬───┴──────────────────────┘        (nothing to move: back to Idle)
//!          │                 v
//!          │             Agreeing ─> Draining ─> Moving(w) ─> Armed(step)     wave by wave; Draining and
//!          │                 │           │           │            │           Armed only where a wave needs them
//!          └─────────────────┴───────────┴───────────┴────────────┘  the exchange is over: done or aborted
//!
//!   Paused      <- pause    (an exchange under way is finished first)    -> resume
//!   Quiesced    <- quiesce  (an exchange under way is cancelled first)   -> Reforming -> Idle by reopen
//!   Reforming   <- reform   (an exchange under way is cancelled first)   -> Idle, or Paused
//!   Failed      <- from anywhere                                         -> Reforming by reform
//!   Stopped     <- shutdown, from anywhere; the last
//! ```
//!
//! A round that was announced before this rank paused goes on: [`State::Paused`] may become [`State::Agreeing`], and comes back.

#[cfg(test)]
mod tests;

use std::fmt;

use eplb_exchange::Phase;

/// Where an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Nothing was counted since the last round.
    Idle,
    /// Counts come in, and triggers are looked at.
    Collecting,
    /// This rank leads, and makes a plan.
    Planning,
    /// A plan is there; ranks compare its hash.
    Agreeing,
    /// Slots are taken out of service, or wait for the last step that may use them.
    Draining,
    /// Bytes of a wave are under way, or its commit completes.
    Moving {
        /// Number of the wave.
        wave: usize,
    },
    /// The commit of a wave waits for an agreed step.
    Armed {
        /// The step; it is known to be the commit's when this rank has acknowledged it.
        step: u64,
    },
    /// No new round begins until `resume`.
    Paused,
    /// Nothing is open towards other ranks until `reopen`.
    Quiesced,
    /// The ranks form an epoch, or make communicators.
    Reforming,
    /// No round can be run until `reform`. The last committed placement stays in force.
    Failed {
        /// Why.
        cause: String,
    },
    /// Shut down, for good.
    Stopped,
}

impl State {
    /// Name of the state alone, as metrics label it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Collecting => "collecting",
            Self::Planning => "planning",
            Self::Agreeing => "agreeing",
            Self::Draining => "draining",
            Self::Moving { .. } => "moving",
            Self::Armed { .. } => "armed",
            Self::Paused => "paused",
            Self::Quiesced => "quiesced",
            Self::Reforming => "reforming",
            Self::Failed { .. } => "failed",
            Self::Stopped => "stopped",
        }
    }

    /// Names of all states, in the order of the documentation.
    pub const NAMES: [&'static str; 12] = [
        "idle",
        "collecting",
        "planning",
        "agreeing",
        "draining",
        "moving",
        "armed",
        "paused",
        "quiesced",
        "reforming",
        "failed",
        "stopped",
    ];

    /// Whether an exchange is under way.
    pub fn is_exchanging(&self) -> bool {
        matches!(self, Self::Agreeing | Self::Draining | Self::Moving { .. } | Self::Armed { .. })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moving { wave } => write!(f, "moving wave {wave}"),
            Self::Armed { step } => write!(f, "armed for step {step}"),
            Self::Failed { cause } => write!(f, "failed: {cause}"),
            other => f.write_str(other.name()),
        }
    }
}

/// What happened on this rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// Something was counted.
    Counted,
    /// This rank begins to plan.
    PlanBegins,
    /// The plan moves nothing, or could not be made.
    PlanEnds,
    /// A round with a plan begins.
    Begin,
    /// Where the exchange is now.
    Phase {
        /// Its phase.
        phase: Phase,
        /// Number of the wave.
        wave: usize,
        /// The step that this rank has acknowledged.
        agreed: Option<u64>,
    },
    /// The exchange is over.
    Ended,
    /// The host wants no new rounds.
    Pause,
    /// The host wants rounds again.
    Resume,
    /// The host wants everything closed.
    Quiesce,
    /// The host wants everything open again.
    Reopen,
    /// The host wants a new epoch.
    Reform,
    /// What Reforming was for is done.
    Formed,
    /// Something cannot go on.
    Fail(String),
    /// Nor can anything that the host may want, but the end.
    Collapse(String),
    /// The host wants the end.
    Stop,
    /// The host waits no longer for the end.
    Halt,
}

/// What the engine has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Cancel the exchange under way.
    Cancel(&'static str),
    /// Close the communicators.
    Close,
    /// Make the communicators anew.
    Open,
    /// Form the next epoch.
    Reform,
}

/// An event that does not fit the state; the state is as before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Misfit {
    pub(super) state: State,
}

/// What follows when the exchange under way is over; the larger wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wish {
    Quiesce,
    Reform,
    Stop,
}

/// The machine. Whoever carries out what it orders reports with the next event.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    state: State,
    paused: bool,
    wish: Option<Wish>,
    /// Planted by tests: wishes are forgotten when an exchange ends.
    #[cfg(test)]
    forgets: bool,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            state: State::Idle,
            paused: false,
            wish: None,
            #[cfg(test)]
            forgets: false,
        }
    }

    /// One that forgets wishes.
    #[cfg(test)]
    pub(super) fn forgetful() -> Self {
        Self { forgets: true, ..Self::new() }
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Whether this rank would begin a round.
    fn is_ready(&self) -> bool {
        matches!(self.state, State::Idle | State::Collecting)
    }

    /// Whether the host waits, with no pass under way, for what is under way to be over.
    pub(super) fn has_wish(&self) -> bool {
        self.wish.is_some()
    }

    /// Whether the host wants the end, or has it.
    pub(super) fn is_ending(&self) -> bool {
        self.state == State::Stopped || self.wish == Some(Wish::Stop)
    }

    /// Takes in an event.
    ///
    /// # Errors
    /// [`Misfit`]: the event cannot happen here.
    pub(super) fn on(&mut self, event: Event) -> Result<Option<Order>, Misfit> {
        let misfit = Misfit { state: self.state.clone() };
        if self.state == State::Stopped {
            return if matches!(event, Event::Stop | Event::Halt) { Ok(None) } else { Err(misfit) };
        }
        match event {
            Event::Counted => {
                if self.state == State::Idle {
                    self.state = State::Collecting;
                }
            }
            Event::PlanBegins if self.is_ready() => self.state = State::Planning,
            Event::PlanEnds if self.state == State::Planning => return Ok(self.settle()),
            Event::Begin if self.is_ready() || matches!(self.state, State::Planning | State::Paused) => {
                self.state = State::Agreeing;
                return Ok(self.wish.map(|_| Order::Cancel("the host wants something else")));
            }
            Event::Phase { phase, wave, agreed } if self.state.is_exchanging() => {
                self.state = match (phase, agreed) {
                    (Phase::Agreeing, _) => State::Agreeing,
                    (Phase::Draining | Phase::Clearing, _) => State::Draining,
                    (Phase::Armed | Phase::Committing, Some(step)) => State::Armed { step },
                    _ => State::Moving { wave },
                };
            }
            Event::Ended if self.state.is_exchanging() => return Ok(self.settle()),
            Event::Pause => {
                self.paused = true;
                if self.is_ready() {
                    self.state = State::Paused;
                }
            }
            Event::Resume => {
                self.paused = false;
                if self.state == State::Paused {
                    self.state = State::Idle;
                }
            }
            Event::Quiesce => return self.wants(Wish::Quiesce, "the host quiesces").ok_or(misfit),
            Event::Reform => return self.wants(Wish::Reform, "the host forms a new epoch").ok_or(misfit),
            Event::Stop => return self.wants(Wish::Stop, "the host shuts down").ok_or(misfit),
            Event::Reopen if self.state == State::Quiesced => {
                self.state = State::Reforming;
                return Ok(Some(Order::Open));
            }
            Event::Formed if self.state == State::Reforming => return Ok(self.settle()),
            // The host leaves what failed already.
            Event::Fail(_) if self.wish == Some(Wish::Reform) => return Ok(self.settle()),
            Event::Fail(cause) | Event::Collapse(cause) => {
                self.state =
                    if self.wish == Some(Wish::Stop) { State::Stopped } else { State::Failed { cause } };
                self.wish = None;
            }
            Event::Halt => {
                self.state = State::Stopped;
                // It waits for nothing any more, and may run passes.
                self.wish = None;
            }
            _ => return Err(misfit),
        }
        Ok(None)
    }

    /// Follows a wish now, or remembers it until what is under way is over. `None`: it does not fit.
    fn wants(&mut self, wish: Wish, why: &'static str) -> Option<Option<Order>> {
        let busy = self.state.is_exchanging() || matches!(self.state, State::Planning | State::Reforming);
        if busy {
            let cancel = self.state.is_exchanging() && self.wish.is_none();
            self.wish = self.wish.max(Some(wish));
            return Some(cancel.then_some(Order::Cancel(why)));
        }
        match (wish, &self.state) {
            // What failed stays so, with nothing open.
            (Wish::Quiesce, State::Failed { .. }) => Some(Some(Order::Close)),
            _ => Some(self.follow(wish)),
        }
    }

    fn follow(&mut self, wish: Wish) -> Option<Order> {
        let (state, order) = match wish {
            Wish::Quiesce => (State::Quiesced, Some(Order::Close)),
            Wish::Reform => (State::Reforming, Some(Order::Reform)),
            Wish::Stop => (State::Stopped, None),
        };
        self.state = state;
        order
    }

    /// What comes after something that is over.
    fn settle(&mut self) -> Option<Order> {
        #[cfg(test)]
        if self.forgets {
            self.wish = None;
        }
        if let Some(wish) = self.wish.take() {
            return self.follow(wish);
        }
        self.state = if self.paused { State::Paused } else { State::Idle };
        None
    }
}
