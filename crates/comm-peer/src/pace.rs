//! A limit on how fast a rank pulls.

use std::time::Duration;

/// How far a rank that looked late may catch up.
const SLACK: Duration = Duration::from_millis(2);

/// Says when the next pull may be enqueued, so that no more than a number of bytes per second go into a rank, by what was enqueued against a
/// clock. A pull goes whole; the next waits until it would have ended at that speed.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Bytes per nanosecond; `None`: as fast as it goes.
    speed: Option<f64>,
    /// When the next pull may go, on the clock of the caller.
    next: Duration,
}

impl Pace {
    /// No limit for `None`; else 10^9 bytes per second, above 0.
    pub fn new(max_gbps: Option<f64>) -> Self {
        let speed = max_gbps.filter(|gbps| gbps.is_finite() && *gbps > 0.0);
        Self { speed, next: Duration::ZERO }
    }

    /// How long the next pull has to wait from `now` on; zero if it may go.
    pub fn wait(&self, now: Duration) -> Duration {
        if self.speed.is_none() { Duration::ZERO } else { self.next.saturating_sub(now) }
    }

    /// A pull of so many bytes is enqueued.
    pub fn take(&mut self, bytes: u64, now: Duration) {
        if let Some(speed) = self.speed {
            let time = Duration::from_nanos((bytes as f64 / speed) as u64);
            self.next = self.next.max(now.saturating_sub(SLACK)) + time;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes enqueued in `time` by one that looks every `look`, and the bytes that the limit allows.
    fn run(max_gbps: f64, bytes: u64, look: Duration, time: Duration) -> (f64, f64) {
        let mut pace = Pace::new(Some(max_gbps));
        // Not from the beginning of the clock: a start is no reserve.
        let begin = Duration::from_secs(7);
        let (mut now, mut sent) = (begin, 0);
        while now < begin + time {
            while pace.wait(now).is_zero() {
                pace.take(bytes, now);
                sent += bytes;
            }
            now += look;
        }
        (sent as f64, max_gbps * time.as_nanos() as f64)
    }

    #[test]
    fn the_limit_holds_within_a_tenth() {
        for (gbps, bytes, look_us) in [
            (50.0, 44_000_000, 5),
            (50.0, 44_000_000, 1500),
            (10.0, 1 << 20, 40),
            (200.0, 1 << 20, 100),
            (0.5, 4096, 7),
        ] {
            let time = Duration::from_millis(200);
            let (sent, allowed) = run(gbps, bytes, Duration::from_micros(look_us), time);
            let share = sent / allowed;
            assert!(
                (0.9..=1.1).contains(&share),
                "{gbps} GB/s, {bytes} bytes, looks every {look_us} us: {share}"
            );
        }
    }

    #[test]
    fn a_rest_is_no_reserve() {
        let mut pace = Pace::new(Some(1.0));
        pace.take(1_000_000, Duration::from_secs(1));
        // A minute later, no more than the slack may be made up for.
        let now = Duration::from_secs(61);
        let mut sent = 0;
        while pace.wait(now).is_zero() {
            pace.take(1_000_000, now);
            sent += 1;
        }
        assert_eq!(sent, 3, "the slack of 2 ms, and one that goes whole");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        for none in [None, Some(0.0), Some(f64::NAN)] {
            let mut pace = Pace::new(none);
            pace.take(u64::MAX, Duration::ZERO);
            assert_eq!(pace.wait(Duration::ZERO), Duration::ZERO);
        }
    }
}
