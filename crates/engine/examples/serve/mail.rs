//! What ranks on threads send each other in a layer, and where they wait for all.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::model::State;

/// Longest wait for a rank.
const LONGEST: Duration = Duration::from_secs(60);

/// A token's state on its way to a slot, and back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Letter {
    /// Rank that sent it.
    pub(crate) from: usize,
    /// Which token of that rank, and which of its choices.
    pub(crate) place: (usize, usize),
    /// The slot, as the sender's maps name it.
    pub(crate) slot: usize,
    /// The state; on the way back, what the expert made of it.
    pub(crate) state: State,
}

/// Boxes of all ranks, and their meeting point.
#[derive(Debug)]
pub(crate) struct Mail {
    questions: Vec<Mutex<Vec<Letter>>>,
    answers: Vec<Mutex<Vec<Letter>>>,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Meeting {
    came: usize,
    turn: u64,
    broken: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mail {
    /// Empty boxes.
    pub(crate) fn new(ranks: usize) -> Self {
        let boxes = || (0..ranks).map(|_| Mutex::default()).collect();
        Self { questions: boxes(), answers: boxes(), meeting: Mutex::default(), changed: Condvar::new() }
    }

    /// Asks a rank.
    pub(crate) fn ask(&self, to: usize, letters: &[Letter]) {
        lock(&self.questions[to]).extend_from_slice(letters);
    }

    /// Answers a letter.
    pub(crate) fn answer(&self, letter: Letter) {
        lock(&self.answers[letter.from]).push(letter);
    }

    /// Takes what a rank was asked.
    pub(crate) fn questions(&self, rank: usize) -> Vec<Letter> {
        std::mem::take(&mut lock(&self.questions[rank]))
    }

    /// Takes what a rank was answered.
    pub(crate) fn answers(&self, rank: usize) -> Vec<Letter> {
        std::mem::take(&mut lock(&self.answers[rank]))
    }

    /// Waits until all ranks have come. An error if one has left for good, or does not come.
    pub(crate) fn meet(&self) -> Result<(), String> {
        let mut meeting = lock(&self.meeting);
        let turn = meeting.turn;
        meeting.came += 1;
        if meeting.came == self.questions.len() {
            meeting.came = 0;
            meeting.turn += 1;
            self.changed.notify_all();
        }
        while meeting.turn == turn && !meeting.broken {
            let (next, timeout) =
                self.changed.wait_timeout(meeting, LONGEST).unwrap_or_else(PoisonError::into_inner);
            meeting = next;
            meeting.broken |= timeout.timed_out() && meeting.turn == turn;
        }
        if meeting.turn == turn { Err("another rank has left the loop".into()) } else { Ok(()) }
    }

    /// Lets all others go: this rank does not come any more.
    pub(crate) fn leave(&self) {
        lock(&self.meeting).broken = true;
        self.changed.notify_all();
    }
}
