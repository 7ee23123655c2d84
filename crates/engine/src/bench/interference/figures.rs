//! From samples to a report.

use super::exchanges::Moved;
use super::passes::Samples;
use super::{BesideCopies, InterferenceReport};

/// What a byte may cost a product, as a multiple of its share of the memory's bandwidth.
const ALLOWED: f64 = 1.2;

fn median(series: &[f64]) -> f64 {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn mean(series: &[f64]) -> f64 {
    series.iter().sum::<f64>() / series.len().max(1) as f64
}

/// What moved, and what memory carries.
pub(super) struct Rates<'a> {
    /// Exchanges with no product beside.
    pub(super) quiet: &'a Moved,
    pub(super) moved: &'a Moved,
    /// Plain copies, at full speed and as slow as the exchanges.
    pub(super) copied: [Option<Moved>; 2],
    pub(super) copy_gbps: f64,
}

pub(super) fn report(samples: &[Samples], rates: &Rates<'_>, wrong: u64) -> InterferenceReport {
    let Rates { quiet, moved, copied, copy_gbps } = *rates;
    let largest = |of: &dyn Fn(&Samples) -> f64| samples.iter().map(of).fold(0.0, f64::max);
    let ratio = |of: fn(&[f64]) -> f64, alone: fn(&Samples) -> &[f64], beside: fn(&Samples) -> &[f64]| {
        largest(&|rank| {
            let alone = of(alone(rank));
            if alone > 0.0 { of(beside(rank)) / alone } else { 0.0 }
        })
    };
    let stall = largest(&|rank| {
        (mean(&rank.beside) - median(&rank.beside)) * rank.beside.len() as f64 / moved.waves.max(1) as f64
    });
    let memory_gbps = moved.memory_gbps();
    let copies = |copied: Option<Moved>, beside: fn(&Samples) -> &[f64]| {
        let copied = copied.filter(|_| samples.iter().all(|rank| !beside(rank).is_empty()))?;
        let slowdown = ratio(median, |rank| &rank.after, beside);
        Some(BesideCopies { slowdown, gbps: copied.gbps(), memory_gbps: copied.memory_gbps() })
    };
    InterferenceReport {
        alone_us: largest(&|rank| median(&rank.before)),
        alone_again_us: largest(&|rank| median(&rank.after)),
        beside_us: largest(&|rank| median(&rank.beside)),
        slowdown: ratio(median, |rank| &rank.before, |rank| &rank.beside),
        slowdown_with_commits: ratio(mean, |rank| &rank.before, |rank| &rank.beside),
        stall_us_per_wave: stall,
        replays: samples.iter().map(|rank| rank.beside.len()).min().unwrap_or(0),
        exchanges: moved.exchanges,
        waves: moved.waves,
        gbps: moved.gbps(),
        gbps_alone: quiet.gbps(),
        memory_gbps,
        copy_gbps,
        allowed: 1.0 + ALLOWED * memory_gbps / copy_gbps,
        copies: copies(copied[0], |rank| &rank.copies),
        paced: copies(copied[1], |rank| &rank.paced),
        verified: wrong == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(gigabytes: f64, waves: usize) -> Moved {
        Moved::of(1.0, (gigabytes * 1e9) as u64, waves)
    }

    #[test]
    fn a_slowdown_is_against_the_passes_between_and_a_commit_shows_in_the_mean_alone() {
        let rank = |before: f64| Samples {
            before: vec![before; 9],
            beside: [vec![1.2 * before; 8], vec![2.1 * before]].concat(),
            after: vec![2.0 * before; 9],
            copies: vec![3.0 * before; 9],
            paced: Vec::new(),
        };
        let (quiet, slow) = (moved(200.0, 9), moved(100.0, 3));
        let rates =
            Rates { quiet: &quiet, moved: &slow, copied: [Some(quiet), Some(slow)], copy_gbps: 1200.0 };
        let report = report(&[rank(100.0), rank(10.0)], &rates, 0);
        assert!((report.slowdown - 1.2).abs() < 1e-9, "{report:?}");
        // One replay of nine took 0.9 of one longer.
        assert!((report.slowdown_with_commits - 1.3).abs() < 1e-9, "{report:?}");
        assert!((report.stall_us_per_wave - 90.0 / 3.0).abs() < 1e-6, "{report:?}");
        assert!((report.allowed - 1.1).abs() < 1e-9 && report.verified);
        assert_eq!(report.copies.map(|copies| copies.slowdown), Some(1.5));
        assert_eq!(report.paced, None, "no replay beside them");
    }
}
