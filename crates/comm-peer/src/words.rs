//! The words in which ranks say how far they are.

use std::sync::Arc;

use crate::sync::{AtomicU64, Ordering};

/// Which waves may start at a rank: all before one, and some of the [`Ready::WINDOW`] from there on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready(u64);

impl Ready {
    /// Waves that can be told apart beyond the first that may not start.
    pub const WINDOW: u64 = 32;

    #[cfg(target_os = "linux")]
    pub(crate) fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn word(self) -> u64 {
        self.0
    }

    /// Whether a wave may start.
    pub fn has(self, wave: u64) -> bool {
        let (first, mask) = (self.0 >> 32, self.0 & 0xFFFF_FFFF);
        wave < first || (wave - first < Self::WINDOW && mask >> (wave - first) & 1 == 1)
    }

    /// The same and one more wave; `None` if it lies beyond the window, until earlier ones may start.
    #[must_use]
    pub fn with(self, wave: u64) -> Option<Self> {
        let (mut first, mut mask) = (self.0 >> 32, self.0 & 0xFFFF_FFFF);
        if wave >= first {
            if wave - first >= Self::WINDOW {
                return None;
            }
            mask |= 1 << (wave - first);
            let done = u64::from(mask.trailing_ones());
            (first, mask) = (first + done, mask >> done);
        }
        Some(Self(first << 32 | mask))
    }
}

/// The words as one rank uses them.
pub(crate) trait Signals: std::fmt::Debug + Send + Sync {
    /// Waves that may start at `rank`; `None` if it gave up, or is known to be gone.
    fn ready(&self, rank: usize) -> Option<Ready>;

    /// Says which waves may start at this rank. After [`Signals::give_up`] it says nothing any more.
    fn announce(&self, ready: Ready);

    /// Says that this rank gave up.
    fn give_up(&self);

    /// The source that `rank` says it reads from: a hint.
    fn reading(&self, rank: usize) -> Option<usize>;

    /// Says which source this rank reads from.
    fn read(&self, source: Option<usize>);
}

/// A source in a word.
pub(crate) fn source_word(source: Option<usize>) -> u64 {
    source.map_or(0, |source| source as u64 + 1)
}

/// What [`source_word`] wrote.
pub(crate) fn source_of(word: u64) -> Option<usize> {
    usize::try_from(word).ok()?.checked_sub(1)
}

/// The words of threads of one process, as one of them uses them.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) words: Words,
    pub(crate) rank: usize,
}

impl Signals for Own {
    fn ready(&self, rank: usize) -> Option<Ready> {
        self.words.ready(rank)
    }

    fn announce(&self, ready: Ready) {
        self.words.announce(self.rank, ready);
    }

    fn give_up(&self) {
        self.words.give_up(self.rank);
    }

    fn reading(&self, rank: usize) -> Option<usize> {
        self.words.reading(rank)
    }

    fn read(&self, source: Option<usize>) {
        self.words.read(self.rank, source);
    }
}

/// One word per rank: which waves may start there, as far as that rank is concerned; or that it gave up.
///
/// Each word is written by its rank's progress thread only. Ordering: what a rank's memory held before it wrote its word
/// (release) is what a pull reads that was enqueued after the word was seen (acquire): the writes before it were complete
/// on its device, because the rank waited for its own fence first.
#[derive(Debug, Clone)]
pub struct Words(Arc<[Line]>);

/// A rank's words: which waves may start there, and which source it reads from. They share their cache line with no other rank's.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64, AtomicU64);

/// A word that says that the rank gave up; no [`Ready`] has it, as that would take all waves of 32 bits.
pub(crate) const GONE: u64 = u64::MAX;

impl Words {
    /// The words of so many ranks; no wave may start yet.
    pub fn new(ranks: usize) -> Self {
        Self((0..ranks).map(|_| Line::default()).collect())
    }

    /// Waves that may start at `rank`; `None` if it gave up.
    pub fn ready(&self, rank: usize) -> Option<Ready> {
        Some(self.0[rank].0.load(Ordering::Acquire)).filter(|&word| word != GONE).map(Ready)
    }

    /// Says which waves may start at `rank`. A rank that gave up stays so.
    pub fn announce(&self, rank: usize, ready: Ready) {
        let word = &self.0[rank].0;
        if word.load(Ordering::Relaxed) != GONE {
            word.store(ready.0, Ordering::Release);
        }
    }

    /// Says that `rank` gave up.
    pub fn give_up(&self, rank: usize) {
        self.0[rank].0.store(GONE, Ordering::Release);
    }

    /// The source that `rank` says it reads from: a hint, which orders nothing.
    pub fn reading(&self, rank: usize) -> Option<usize> {
        source_of(self.0[rank].1.load(Ordering::Relaxed))
    }

    /// Says which source `rank` reads from.
    pub fn read(&self, rank: usize, source: Option<usize>) {
        self.0[rank].1.store(source_word(source), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_announced_in_any_order_within_the_window() {
        let mut ready = Ready::default();
        assert!((0..40).all(|wave| !ready.has(wave)));
        for wave in [1, 31, 0] {
            ready = ready.with(wave).unwrap();
        }
        assert_eq!((0..70).filter(|&wave| ready.has(wave)).collect::<Vec<_>>(), [0, 1, 31]);
        assert_eq!(ready.with(34), None, "2 may not start yet, and 34 lies 32 beyond it");
        for wave in 2..31 {
            ready = ready.with(wave).unwrap();
        }
        assert!((0..32).all(|wave| ready.has(wave)) && !ready.has(32));
        assert_eq!(ready.with(3), Some(ready));
        assert!(ready.with(34).unwrap().has(34));
    }

    #[test]
    fn a_rank_that_gave_up_stays_so() {
        let words = Words::new(2);
        words.announce(0, Ready::default().with(0).unwrap());
        assert!(words.ready(0).unwrap().has(0) && !words.ready(1).unwrap().has(0));
        words.give_up(0);
        words.announce(0, Ready::default());
        assert_eq!((words.ready(0), words.ready(1)), (None, Some(Ready::default())));
    }
}
