//! Whether numbers that are sampled over a run grow.

/// Slope of the line through samples `(round, value)` that the fewest outliers can bend: the median of the slopes between all pairs (Theil 1950,
/// Sen 1968), per round.
pub(crate) fn slope(samples: &[(f64, f64)]) -> f64 {
    let mut slopes = Vec::new();
    for (at, &(x, y)) in samples.iter().enumerate() {
        slopes.extend(samples[..at].iter().map(|&(x0, y0)| (y - y0) / (x - x0)));
    }
    slopes.sort_unstable_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0)
}
