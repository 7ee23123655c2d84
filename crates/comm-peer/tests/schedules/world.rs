//! What all ranks see: memory that notices who uses it at a time, and the record of decisions.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sync::yield_now;

/// Ranks of a model.
pub(crate) const RANKS: usize = 3;
/// Waves of an exchange.
pub(crate) const WAVES: usize = 2;
/// Bytes of no expert.
pub(crate) const JUNK: u64 = 999;

/// What befalls the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Well,
    /// Nothing, and ranks take turns at sources.
    InTurns,
    /// One gives up at a moment that the schedule chooses.
    GivesUp,
    /// Each in turn gives up at each point that it comes to.
    GivesUpAnywhere,
    /// Likewise, where ranks take turns at sources.
    GivesUpInTurns,
    /// The others give up on one, which does not know and goes on when the schedule lets it.
    HeldBack,
}

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    WordFirst,
    WordsOfBefore,
    FenceEarly,
    CommitEarly,
    RecordForgotten,
    QuietForgotten,
    PreparedAnyway,
    CommitForgotten,
}

/// What was decided of a wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Open,
    Commit,
    Abort,
}

/// A place for one expert.
#[derive(Debug, Default)]
struct Place {
    holds: u64,
    readers: usize,
    is_written: bool,
    writes: u64,
}

#[derive(Debug)]
struct State {
    slots: Vec<Place>,
    staging: Vec<Place>,
    /// By wave, ranks that are prepared, and that have committed.
    prepared: [usize; WAVES],
    committed: [usize; WAVES],
    decisions: [Decision; WAVES],
}

/// Threads take turns at its lock, and none gives up its turn inside: it adds no order of its own.
#[derive(Debug)]
pub(crate) struct World(Mutex<State>);

/// Which memory of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Slot,
    Staging,
}

impl State {
    fn place(&mut self, rank: usize, part: Part) -> &mut Place {
        match part {
            Part::Slot => &mut self.slots[rank],
            Part::Staging => &mut self.staging[rank],
        }
    }

    fn is_aborted(&self) -> bool {
        self.decisions.contains(&Decision::Abort)
    }

    fn decision(&self, wave: usize) -> Decision {
        let aborted = self.decisions[..wave].contains(&Decision::Abort);
        if aborted { Decision::Abort } else { self.decisions[wave] }
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let places = || {
            let place = || Place { holds: JUNK, ..Place::default() };
            std::iter::repeat_with(place).take(RANKS).collect()
        };
        Self(Mutex::new(State {
            slots: places(),
            staging: places(),
            prepared: [0; WAVES],
            committed: [0; WAVES],
            decisions: [Decision::Open; WAVES],
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an expert, which takes its time.
    pub(crate) fn write(&self, rank: usize, part: Part, expert: u64) {
        {
            let mut state = self.state();
            let aborted = state.is_aborted();
            let place = state.place(rank, part);
            assert!(!place.is_written, "rank {rank}: {part:?} is written twice at a time");
            // For a wave that was given up others may still read; nobody uses what they get.
            assert!(place.readers == 0 || aborted, "rank {rank}: {part:?} is written while it is read");
            (place.is_written, place.holds) = (true, JUNK);
            place.writes += 1;
        }
        yield_now();
        let mut state = self.state();
        let place = state.place(rank, part);
        (place.is_written, place.holds) = (false, expert);
    }

    /// Reads an expert, which takes its time; junk if it was written meanwhile.
    pub(crate) fn read(&self, rank: usize, part: Part) -> u64 {
        let before = {
            let mut state = self.state();
            let place = state.place(rank, part);
            place.readers += 1;
            (place.is_written, place.writes)
        };
        yield_now();
        let mut state = self.state();
        let place = state.place(rank, part);
        place.readers -= 1;
        if before == (false, place.writes) { place.holds } else { JUNK }
    }

    /// Says that a rank is prepared for a wave; the last to say so decides, if nobody has.
    pub(crate) fn prepare(&self, wave: usize) {
        let mut state = self.state();
        state.prepared[wave] += 1;
        if state.prepared[wave] == RANKS && state.decisions[wave] == Decision::Open {
            state.decisions[wave] = Decision::Commit;
        }
    }

    /// Tries to abort whatever is open; nothing is decided after an abort.
    pub(crate) fn abort(&self) {
        let mut state = self.state();
        if let Some(open) = state.decisions.iter_mut().find(|decision| **decision == Decision::Open) {
            *open = Decision::Abort;
        }
    }

    pub(crate) fn decision(&self, wave: usize) -> Decision {
        self.state().decision(wave)
    }

    pub(crate) fn commit(&self, wave: usize) {
        self.state().committed[wave] += 1;
    }

    /// Whether all ranks have committed a wave, or none of it will ever be used.
    pub(crate) fn is_over(&self, wave: usize) -> bool {
        let state = self.state();
        state.committed[wave] == RANKS || state.is_aborted()
    }

    /// Whatever is decided holds for all: a wave is committed by every rank or by none.
    pub(crate) fn is_settled(&self) -> bool {
        let state = self.state();
        (0..WAVES).all(|wave| {
            let all = if state.decision(wave) == Decision::Commit { RANKS } else { 0 };
            state.committed[wave] == all
        })
    }
}
