//! The turn of a rank under way: what has it, and when it is over.

use std::time::Duration;

use eplb_comm::{CommError, Fence};

use crate::turns::{Candidate, TAIL, Turns};
use crate::words::Signals;

/// The turns of a rank, and the run that has its turn.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    /// The last pull of the run, as (wave, number), until it is enqueued.
    last: Option<(u64, usize)>,
    /// Before the run's last bytes.
    tail: Option<Fence>,
}

impl Turn {
    /// Of rank `me` of `ranks`.
    pub(crate) fn new(me: usize, ranks: usize) -> Self {
        Self { turns: Turns::new(me, ranks), last: None, tail: None }
    }

    /// Gives the source up that is held, and says so.
    pub(crate) fn release(&mut self, words: &dyn Signals) {
        (self.last, self.tail) = (None, None);
        self.turns.release();
        words.read(None);
    }

    /// Gives the source up if the run is near its end.
    pub(crate) fn look(&mut self, words: &dyn Signals) -> Result<(), CommError> {
        if let Some(tail) = &self.tail
            && tail.poll()?
        {
            self.release(words);
        }
        Ok(())
    }

    /// The pulls (wave, number) of those that could go whose turn it is.
    pub(crate) fn choose(
        &mut self,
        could: &[Candidate],
        words: &dyn Signals,
        now: Duration,
    ) -> Vec<(u64, usize)> {
        let reading = |rank: usize| words.reading(rank);
        let Some(run) = self.turns.choose(could, reading, now) else { return Vec::new() };
        if run.source.is_some() {
            words.read(run.source);
            if self.turns.gives_way(&run, reading) {
                self.release(words);
                return Vec::new();
            }
            self.last = run.pulls.last().copied();
        }
        run.pulls
    }

    /// So many of the chosen pulls, of which these are in order, are going to be enqueued: a source that gave up meanwhile takes its own with it.
    pub(crate) fn settle(&mut self, going: Option<(u64, usize)>, words: &dyn Signals) {
        if self.last.is_some() {
            self.last = going;
            if going.is_none() {
                self.release(words);
            }
        }
    }

    /// Before which of its last bytes a fence is wanted in a pull that is about to be enqueued.
    pub(crate) fn wanted(&self, wave: u64, pull: usize) -> Option<u64> {
        (self.last == Some((wave, pull))).then_some(TAIL)
    }

    /// The run's last pull was enqueued.
    pub(crate) fn enqueued(&mut self, tail: Fence) {
        (self.last, self.tail) = (None, Some(tail));
    }
}
