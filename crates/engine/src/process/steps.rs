//! Numbers of steps that ranks agree on without talking: from clocks that were started together.

use std::time::{Duration, Instant};

/// Counts steps of a fixed length from a moment at which all ranks left a barrier. Their ids are then as far apart as the barrier
/// let them go, a step or two; a rank that was held up skips ids, as the protocol allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepClock {
    start: Instant,
    first: u64,
    length: Duration,
}

impl StepClock {
    /// Steps of `length` from now on, the first with id `first`.
    pub(crate) fn start(first: u64, length: Duration) -> Self {
        Self { start: Instant::now(), first, length: length.max(Duration::from_micros(1)) }
    }

    /// The step that is due at `now`.
    pub(crate) fn at(&self, now: Instant) -> u64 {
        let steps = now.saturating_duration_since(self.start).as_nanos() / self.length.as_nanos();
        self.first + u64::try_from(steps).unwrap_or(u64::MAX - self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_clock() {
        let clock = StepClock::start(7, Duration::from_millis(2));
        let at = |ms| clock.at(clock.start + Duration::from_millis(ms));
        assert_eq!([at(0), at(1), at(2), at(5), at(2000)], [7, 7, 8, 9, 1007]);
    }
}
