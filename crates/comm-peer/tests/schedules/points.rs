//! Every point of a rank's part in an exchange, so that it can give up at each of them.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::shared::Shared;
use crate::world::{RANKS, WAVES, World};

/// What a rank is about to do, or has just done, once in every wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    // Its driver.
    Submits,
    HasSubmitted,
    HasBytes,
    KnowsDecision,
    HasCommitted,
    // Its progress thread.
    Announces,
    Pulls,
    Fences,
    // Its copies.
    BeginsCopy,
    IsCopying,
    PassesFence,
}

impl Step {
    pub(crate) const ALL: [Self; 11] = [
        Self::Submits,
        Self::HasSubmitted,
        Self::HasBytes,
        Self::KnowsDecision,
        Self::HasCommitted,
        Self::Announces,
        Self::Pulls,
        Self::Fences,
        Self::BeginsCopy,
        Self::IsCopying,
        Self::PassesFence,
    ];
}

/// Where a rank gives up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) rank: usize,
    pub(crate) wave: usize,
    pub(crate) step: Step,
}

impl Point {
    /// Every one of every rank.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let waves = (0..RANKS).flat_map(|rank| (0..WAVES).map(move |wave| (rank, wave)));
        waves.flat_map(|(rank, wave)| Step::ALL.map(|step| Self { rank, wave, step }))
    }
}

#[derive(Default)]
struct State {
    /// By rank, how often each step was come to.
    passed: [[usize; Step::ALL.len()]; RANKS],
    struck: bool,
    shared: Option<Arc<Shared>>,
}

/// What ranks have come to; one gives up at one point. It adds no order of its own to the threads.
pub(crate) struct Points {
    at: Option<Point>,
    world: Arc<World>,
    state: Mutex<State>,
}

impl fmt::Debug for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a rank has to give up at {:?}", self.at)
    }
}

impl Points {
    pub(crate) fn new(at: Option<Point>, world: Arc<World>) -> Self {
        Self { at, world, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rank that may give up has this communicator.
    pub(crate) fn hold(&self, rank: usize, shared: &Arc<Shared>) {
        if self.at.is_some_and(|at| at.rank == rank) {
            self.state().shared = Some(shared.clone());
        }
    }

    /// Whether this is where the rank gives up. Who asks does it.
    pub(crate) fn is_reached(&self, rank: usize, step: Step) -> bool {
        let mut state = self.state();
        let wave = state.passed[rank][step as usize];
        state.passed[rank][step as usize] += 1;
        let is_here = self.at.is_some_and(|at| (at.rank, at.wave, at.step) == (rank, wave, step));
        state.struck |= is_here;
        is_here
    }

    /// A step at which the rank may give up at once, by whichever of its threads is there.
    pub(crate) fn pass(&self, rank: usize, step: Step) {
        if self.is_reached(rank, step) {
            self.give_up();
        }
    }

    /// Gives up, as a driver does: nothing more is enqueued, and the wave that is open is aborted if it still can be.
    pub(crate) fn give_up(&self) {
        let shared = self.state().shared.clone();
        shared.expect("the rank that is struck has a communicator").abort("it gives up here");
        self.world.abort();
    }

    /// Whether the rank has given up here.
    pub(crate) fn has_struck(&self, rank: usize) -> bool {
        self.at.is_some_and(|at| at.rank == rank) && self.state().struck
    }

    /// The exchange is over: a rank that had to give up came to that point.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        // It holds this in turn.
        state.shared = None;
        assert!(self.at.is_none() || state.struck, "{self:?}, and it never came there");
    }
}
