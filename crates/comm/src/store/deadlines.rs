//! The one table of default deadlines and intervals, and arithmetic on deadlines.
//!
//! | field | default | meaning |
//! |---|---|---|
//! | `connect` | 60 s | reaching a store that another rank may still be starting |
//! | `operation` | 5 s | one store operation that waits for nobody |
//! | `join` | 60 s | all ranks of a group forming an epoch |
//! | `accept` | 2 s | a rank accepting an epoch that lists it, before the epoch forms without it |
//! | `collective` | 30 s | a barrier, broadcast, all-gather or agreement of a group |
//! | `renew` | 200 ms | interval in which a rank renews its liveness counter |
//! | `peer_timeout` | 5 s | a counter that stands still this long, by the observer's clock: the rank is dead |
//! | `keepalive` | 500 ms | interval in which a TCP store server shows signs of life to its clients |
//! | `silence` | 5 s | a TCP store server that shows none for this long is lost |
//! | `handshake` | 5 s | a new connection to a TCP store server proving itself |
//! | `frame` | 10 s | a client of a TCP store server completing a message it has begun |
//! | `reply_grace` | 100 ms | how far past its deadline a TCP client waits for the server to say which keys are missing |

use std::time::{Duration, Instant};

/// Defaults of every deadline and interval; see the table of the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Reaching a store that another rank may still be starting.
    pub connect: Duration,
    /// One store operation that waits for nobody.
    pub operation: Duration,
    /// All ranks of a group forming an epoch.
    pub join: Duration,
    /// A rank accepting an epoch that lists it, before the epoch forms without it.
    pub accept: Duration,
    /// A barrier, broadcast, all-gather or agreement of a group.
    pub collective: Duration,
    /// Interval in which a rank renews its liveness counter.
    pub renew: Duration,
    /// A counter that stands still this long, by the observer's clock, belongs to a dead rank.
    pub peer_timeout: Duration,
    /// Interval in which a TCP store server shows signs of life.
    pub keepalive: Duration,
    /// A TCP store server that shows no sign of life for this long is lost.
    pub silence: Duration,
    /// A new connection to a TCP store server proving itself.
    pub handshake: Duration,
    /// A client completing a message that it has begun.
    pub frame: Duration,
    /// How far past its deadline a TCP client waits for the server to say which keys are missing.
    pub reply_grace: Duration,
}

impl Deadlines {
    /// The defaults.
    pub const DEFAULT: Self = Self {
        connect: Duration::from_secs(60),
        operation: Duration::from_secs(5),
        join: Duration::from_secs(60),
        accept: Duration::from_secs(2),
        collective: Duration::from_secs(30),
        renew: Duration::from_millis(200),
        peer_timeout: Duration::from_secs(5),
        keepalive: Duration::from_millis(500),
        silence: Duration::from_secs(5),
        handshake: Duration::from_secs(5),
        frame: Duration::from_secs(10),
        reply_grace: Duration::from_millis(100),
    };
}

impl Default for Deadlines {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The deadline that lies `timeout` ahead. A timeout beyond what the clock can say means a year.
pub fn after(timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    let now = Instant::now();
    // The clock counts from the start of the machine in 64-bit seconds: one year ahead always exists.
    now.checked_add(timeout.min(YEAR)).unwrap_or(now)
}

/// Time left until a deadline, zero when it has passed.
pub fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Polling interval that starts short, for what is about to happen, and grows to a bound, for what takes its time.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(shortest: Duration, longest: Duration) -> Self {
        Self { next: shortest, longest }
    }

    /// Sleeps for the interval, at most until the deadline. False when the deadline has passed.
    pub(crate) fn pause(&mut self, deadline: Instant) -> bool {
        let left = left(deadline);
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(self.next.min(left));
        self.next = (self.next * 2).min(self.longest);
        true
    }

    /// Looks, with pauses between, until there is something. `None`: a look that began behind the deadline found nothing, so that what came
    /// while this thread was kept from looking is found; or the deadline had passed already, and nobody looked.
    pub(crate) fn find<T, E>(
        mut self,
        deadline: Instant,
        mut look: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        if left(deadline).is_zero() {
            return Ok(None);
        }
        loop {
            let is_last = left(deadline).is_zero();
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            if is_last {
                return Ok(None);
            }
            self.pause(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_while_nobody_looks_is_found_by_the_last_look() {
        // How the look numbered `from`, which alone finds something, ends, and how many there were. The first stands still until the deadline is over.
        let find = |from: usize| {
            let (mut looks, deadline) = (0, after(Duration::from_secs(2)));
            let found =
                Backoff::new(Duration::from_millis(1), Duration::from_millis(1)).find(deadline, || {
                    looks += 1;
                    std::thread::sleep(left(deadline) + Duration::from_millis(1));
                    Ok::<_, ()>((looks >= from).then_some(looks))
                });
            (found, looks)
        };
        std::thread::scope(|scope| {
            let found = [1, 2, 3].map(|from| scope.spawn(move || find(from)));
            let found = found.map(|thread| thread.join().unwrap());
            assert_eq!(found, [(Ok(Some(1)), 1), (Ok(Some(2)), 2), (Ok(None), 2)]);
        });
        // Nobody looks for what is to be there by a moment that is over.
        let over = Backoff::new(Duration::ZERO, Duration::ZERO)
            .find(Instant::now(), || Err::<Option<()>, _>("a look"));
        assert_eq!(over, Ok(None));
    }
}
