//! Sums of a few unit fractions: what fits beside a large piece when experts are cut evenly.

use std::sync::OnceLock;

/// Unit fractions down to `1 / FINEST` are told apart; smaller ones count as if they came in any size, which gives more
/// room than there is.
const FINEST: u32 = 12;
/// Sums of up to this many fractions are tabulated.
pub(super) const MOST: usize = 4;

/// The largest sum of at most `count` unit fractions that does not exceed `room`, or somewhat more, never above `room`.
/// For more than [`MOST`] fractions the answer is `room` itself, at most `count`.
pub(super) fn largest_sum(count: usize, room: f64) -> f64 {
    if room >= count as f64 {
        return count as f64;
    }
    if count == 0 || count > MOST {
        return room.min(count as f64);
    }
    // Sums that differ from `room` by rounding alone fit.
    let room = room * (1.0 + 1e-12);
    let intervals = &table()[count - 1];
    // The first interval starts at 0, so there is one before any room.
    let (_, end) = intervals[intervals.partition_point(|&(start, _)| start <= room).saturating_sub(1)];
    room.min(end)
}

/// For 1 to `MOST` fractions, the intervals `(start, end)`, ascending and apart, that contain all sums.
fn table() -> &'static [Vec<(f64, f64)>; MOST] {
    static TABLE: OnceLock<[Vec<(f64, f64)>; MOST]> = OnceLock::new();
    TABLE.get_or_init(|| std::array::from_fn(|index| intervals(index + 1)))
}

fn intervals(count: usize) -> Vec<(f64, f64)> {
    let mut all = Vec::new();
    extend(&mut all, 0.0, 1, count);
    all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut merged: Vec<(f64, f64)> = Vec::new();
    for (start, end) in all {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

/// All sums that continue `sum` with up to `left` fractions `1 / first` or smaller.
fn extend(all: &mut Vec<(f64, f64)>, sum: f64, first: u32, left: usize) {
    all.push((sum, sum + left as f64 / f64::from(FINEST + 1)));
    if left > 0 {
        for part in first..=FINEST {
            extend(all, sum + 1.0 / f64::from(part), part, left - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_between_sums_are_found() {
        assert_eq!(largest_sum(1, 0.99).to_bits(), 0.5f64.to_bits());
        assert_eq!(largest_sum(1, 0.5).to_bits(), 0.5f64.to_bits());
        assert!((largest_sum(2, 1.4) - (1.0 + 1.0 / 3.0)).abs() < 1e-12);
        assert!((largest_sum(2, 0.99) - (0.5 + 1.0 / 3.0)).max(0.0) < 0.17);
        assert!((largest_sum(3, 2.49) - (2.0 + 1.0 / 3.0)).abs() < 1e-12);
        assert_eq!(largest_sum(2, 7.0), 2.0);
        assert_eq!(largest_sum(9, 7.5), 7.5);
    }

    #[test]
    fn no_sum_is_missed() {
        for count in 1..=MOST {
            for seed in 0..2000u64 {
                let mut state = seed;
                let sum: f64 = (0..count)
                    .map(|_| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        1.0 / (1 + (state >> 33) % 40) as f64
                    })
                    .sum();
                for above in [0.0, 1e-3] {
                    assert!(largest_sum(count, sum + above) >= sum * (1.0 - 1e-12), "{count} {sum}");
                }
            }
        }
    }
}
