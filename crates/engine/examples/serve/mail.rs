//! What ranks send each other in a layer, and where they wait for all: between threads here, between processes in `wire.rs`.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::model::State;

/// Longest wait for a rank.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// A token's state on its way to a slot, and back.
#[derive(Debug, Clone, Copy, PartialEq)]
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

/// Carries letters between all ranks, turn by turn.
pub(crate) trait Post: Debug + Send + Sync {
    /// Sends a rank's letters, one pile for each rank, and waits for those that the others send it in the same turn.
    fn turn(&self, rank: usize, out: Vec<Vec<Letter>>) -> Result<Vec<Letter>, String>;

    /// Waits until all ranks have come. An error if one has left for good, or does not come.
    fn meet(&self, rank: usize) -> Result<(), String>;

    /// Lets all others go: this rank does not come any more.
    fn leave(&self);
}

/// Boxes of ranks that are threads, and their meeting point.
#[derive(Debug)]
pub(crate) struct Mail {
    /// Of each rank: its turns so far, and a box for even and one for odd turns, since one rank may begin a turn before another has read what
    /// came in the last.
    boxes: Vec<(AtomicU64, [Mutex<Vec<Letter>>; 2])>,
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
    pub(crate) fn boxed(ranks: usize) -> Box<Self> {
        let boxes = (0..ranks).map(|_| Default::default()).collect();
        Box::new(Self { boxes, meeting: Mutex::default(), changed: Condvar::new() })
    }
}

impl Post for Mail {
    fn turn(&self, rank: usize, out: Vec<Vec<Letter>>) -> Result<Vec<Letter>, String> {
        // All ranks take turns alike.
        let parity = (self.boxes[rank].0.fetch_add(1, Ordering::Relaxed) % 2) as usize;
        for ((_, boxes), letters) in self.boxes.iter().zip(out) {
            lock(&boxes[parity]).extend(letters);
        }
        self.meet(rank)?;
        Ok(std::mem::take(&mut lock(&self.boxes[rank].1[parity])))
    }

    fn meet(&self, _: usize) -> Result<(), String> {
        let mut meeting = lock(&self.meeting);
        let turn = meeting.turn;
        meeting.came += 1;
        if meeting.came == self.boxes.len() {
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

    fn leave(&self) {
        lock(&self.meeting).broken = true;
        self.changed.notify_all();
    }
}
