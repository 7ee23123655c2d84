//! When a thread that waits for messages looks again at once instead of sleeping.
//!
//! To wake a sleeping thread takes tens of microseconds, and on a virtual machine now and then most of a millisecond. A decision that ranks
//! wait for passes three such threads; so while messages come close behind each other, these look again without a pause, where
//! there are processors to spare. A store that is asked now and then never does.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Messages no further apart than this are close behind each other.
const NEAR: Duration = Duration::from_millis(3);
/// How long after the last of them a thread looks without a pause.
const LOOKING: Duration = Duration::from_millis(3);
/// Processors from which on some are to spare.
const ENOUGH: usize = 8;

/// Whether this machine has processors to spare for threads that look without a pause.
pub fn has_spare_processors() -> bool {
    static SPARE: OnceLock<bool> = OnceLock::new();
    *SPARE.get_or_init(|| std::thread::available_parallelism().is_ok_and(|count| count.get() >= ENOUGH))
}

/// How eagerly one thread looks for messages.
#[derive(Debug, Clone)]
pub struct Eager {
    spare: bool,
    last: Option<Instant>,
    until: Option<Instant>,
}

impl Default for Eager {
    fn default() -> Self {
        Self::new()
    }
}

impl Eager {
    /// One that sleeps, until messages come close behind each other; always, on a machine with few processors.
    pub fn new() -> Self {
        Self { spare: has_spare_processors(), last: None, until: None }
    }

    /// A message came or goes.
    pub fn hear(&mut self, now: Instant) {
        let near = self.last.replace(now).is_some_and(|last| now.saturating_duration_since(last) <= NEAR);
        if self.spare && near {
            self.until = Some(now + LOOKING);
        }
    }

    /// Whether to look again at once. Then the thread lets others run in between.
    pub fn looks(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_only_behind_messages_close_to_each_other() {
        let begin = Instant::now();
        let at = |us: u64| begin + Duration::from_micros(us);
        let mut eager = Eager { spare: true, last: None, until: None };
        eager.hear(at(0));
        assert!(!eager.looks(at(1)), "one message is no burst");
        eager.hear(at(900));
        assert!(eager.looks(at(901)) && eager.looks(at(3_899)) && !eager.looks(at(3_900)));
        eager.hear(at(200_000));
        assert!(!eager.looks(at(200_001)), "what comes now and then never does");
        let mut few = Eager { spare: false, last: None, until: None };
        few.hear(at(0));
        few.hear(at(1));
        assert!(!few.looks(at(2)));
    }
}
