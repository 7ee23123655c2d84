//! The run that a rank has its turn with: named in its word while it is read, given up near its end. [`Turns`] choose it.

use std::collections::VecDeque;
use std::time::Duration;

use eplb_comm::{CommError, Fence};

use crate::speed::Speeds;
use crate::turns::{Candidate, LEAD, Turns};
use crate::words::Signals;

/// A run on its way. One begins when the one before it has ended, or when it was enqueued.
#[derive(Debug)]
struct Run {
    source: usize,
    bytes: u64,
    begun: Option<Duration>,
    behind: Fence,
}

/// What a rank reads in its turn.
#[derive(Debug)]
pub(crate) struct Reading {
    turns: Turns,
    speeds: Speeds,
    /// Of the run that has its turn, until it is enqueued: the last pull, as (wave, number), and the bytes of all.
    last: Option<(u64, usize)>,
    bytes: u64,
    /// Runs that have not ended. The turn is the last one's, if there is one.
    runs: VecDeque<Run>,
}

impl Reading {
    /// Of rank `me` of `ranks`.
    pub(crate) fn new(me: usize, ranks: usize) -> Self {
        let (turns, speeds) = (Turns::new(me, ranks), Speeds::new(ranks));
        Self { turns, speeds, last: None, bytes: 0, runs: VecDeque::new() }
    }

    /// Gives the source up that is held, and says so.
    pub(crate) fn release(&mut self, words: &dyn Signals) {
        self.last = None;
        self.turns.release();
        words.read(None);
    }

    /// Sees which runs have ended, and gives the source up if the last one is near its end.
    pub(crate) fn look(&mut self, words: &dyn Signals, now: Duration) -> Result<(), CommError> {
        let mut ended = false;
        while let Some(run) = self.runs.front()
            && run.behind.poll()?
        {
            // One that is seen to begin and to end at once says nothing of its speed.
            if let Some(begun) = run.begun {
                self.speeds.learn(run.source, run.bytes, now.saturating_sub(begun));
            }
            self.runs.pop_front();
            ended = true;
        }
        if let Some(next) = self.runs.front_mut().filter(|_| ended) {
            next.begun.get_or_insert(now);
        }
        let is_over = |run: &Run| {
            let expected = self.speeds.expect(run.source, run.bytes);
            run.begun.zip(expected).is_some_and(|(begun, expected)| now + LEAD >= begun + expected)
        };
        if self.turns.holds().is_some() && self.last.is_none() && self.runs.back().is_none_or(is_over) {
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
            let of_run =
                could.iter().filter(|candidate| run.pulls.contains(&(candidate.wave, candidate.pull)));
            self.bytes = of_run.map(|candidate| candidate.bytes).sum();
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

    /// Whether a fence is wanted behind a pull that is about to be enqueued.
    pub(crate) fn ends_with(&self, wave: u64, pull: usize) -> bool {
        self.last == Some((wave, pull))
    }

    /// The run's last pull was enqueued, with a fence behind it.
    pub(crate) fn enqueued(&mut self, behind: Fence, now: Duration) {
        self.last = None;
        if let Some(source) = self.turns.holds() {
            let begun = self.runs.is_empty().then_some(now);
            self.runs.push_back(Run { source, bytes: self.bytes, begun, behind });
        }
    }
}
