//! How long reads take, by source: learned from those that have ended.

use std::time::Duration;

/// How much longer than expected the next read may be expected to take than the one before. What shares a link for once is no measure of the link.
const SLOWER: f64 = 1.02;
/// The same for shorter: a thread that looks late sees a short read.
const FASTER: f64 = 0.9;

/// Nanoseconds that a byte takes from each source.
#[derive(Debug)]
pub(crate) struct Speeds(Vec<Option<f64>>);

impl Speeds {
    /// Nothing is known of any of so many sources.
    pub(crate) fn new(sources: usize) -> Self {
        Self(vec![None; sources])
    }

    /// A read of so many bytes took so long.
    pub(crate) fn learn(&mut self, source: usize, bytes: u64, took: Duration) {
        let seen = took.as_nanos() as f64 / bytes as f64;
        let Some(known) = self.0.get_mut(source).filter(|_| seen.is_finite() && seen > 0.0) else { return };
        *known = Some(known.map_or(seen, |known| seen.clamp(known * FASTER, known * SLOWER)));
    }

    /// How long a read is going to take.
    pub(crate) fn expect(&self, source: usize, bytes: u64) -> Option<Duration> {
        let known = self.0.get(source).copied().flatten()?;
        Some(Duration::from_nanos((known * bytes as f64) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn what_was_seen_is_expected_again_of_the_same_source() {
        let mut speeds = Speeds::new(2);
        assert_eq!(speeds.expect(1, MB), None);
        speeds.learn(1, 40 * MB, us(120));
        assert_eq!((speeds.expect(0, 80 * MB), speeds.expect(1, 80 * MB)), (None, Some(us(240))));
        assert_eq!(speeds.expect(2, MB), None, "there is no such source");
        speeds.learn(2, MB, us(1));
    }

    #[test]
    fn one_odd_read_changes_little_and_many_change_all() {
        let mut speeds = Speeds::new(1);
        speeds.learn(0, 40 * MB, us(100));
        for (odd, least, most) in [(us(300), 101, 103), (us(1), 91, 93), (Duration::ZERO, 91, 93)] {
            speeds.learn(0, 40 * MB, odd);
            let expected = speeds.expect(0, 40 * MB).unwrap();
            assert!((us(least)..us(most)).contains(&expected), "{expected:?}");
        }
        // Nothing was read: nothing is learned.
        speeds.learn(0, 0, us(5));
        assert!(speeds.expect(0, 40 * MB).unwrap() > us(91));
        (0..200).for_each(|_| speeds.learn(0, 40 * MB, us(400)));
        assert_eq!(speeds.expect(0, 40 * MB), Some(us(400)));
    }
}
