//! The word that guards a slot: many readers or one writer, never waiting.

use crate::atomics::{AtomicU32, Ordering};

/// Value of the word while a writer is in.
const WRITER: u32 = u32::MAX;

/// A reader-writer lock that refuses instead of waiting.
///
/// The word is 0 when free, the number of readers, or [`WRITER`].
///
/// Ordering: entering is an acquire, leaving a release. What a writer wrote happens-before every later reader and
/// writer: they acquire the word that it released. What a reader read happens-before the next writer: readers leave
/// by read-modify-writes, which continue each other's release sequence, so that the writer that finds 0 acquires
/// from all of them. `tests/orders` tries the orders of readers and writers.
#[derive(Debug)]
pub(crate) struct SlotLock(AtomicU32);

impl SlotLock {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Enters as a reader, or says who is in the way.
    pub(crate) fn try_read(&self) -> Result<(), String> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if word == WRITER {
                return Err("it is being written".into());
            }
            if word == WRITER - 1 {
                return Err("it has too many readers".into());
            }
            match self.0.compare_exchange_weak(word, word + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Enters as the writer, or says who is in the way.
    pub(crate) fn try_write(&self) -> Result<(), String> {
        match self.0.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(WRITER) => Err("it is being written".into()),
            Err(1) => Err("it has a reader".into()),
            Err(readers) => Err(format!("it has {readers} readers")),
        }
    }

    /// Leaves after a successful [`SlotLock::try_read`].
    pub(crate) fn leave_read(&self) {
        let before = self.0.fetch_sub(1, Ordering::Release);
        debug_assert!(before != 0 && before != WRITER);
    }

    /// Leaves after a successful [`SlotLock::try_write`].
    pub(crate) fn leave_write(&self) {
        debug_assert_eq!(self.0.load(Ordering::Relaxed), WRITER);
        self.0.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_readers_or_one_writer() {
        let lock = SlotLock::new();
        lock.try_read().unwrap();
        lock.try_read().unwrap();
        assert_eq!(lock.try_write().unwrap_err(), "it has 2 readers");
        lock.leave_read();
        assert_eq!(lock.try_write().unwrap_err(), "it has a reader");
        lock.leave_read();
        lock.try_write().unwrap();
        assert_eq!(lock.try_write().unwrap_err(), "it is being written");
        assert_eq!(lock.try_read().unwrap_err(), "it is being written");
        lock.leave_write();
        lock.try_read().unwrap();
    }
}
