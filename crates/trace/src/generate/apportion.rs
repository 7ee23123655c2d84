//! Whole tokens from popularities.

use std::cmp::Ordering;

/// Splits `total` tokens over experts in proportion to their weights, at most `cap` each: what an expert cannot take
/// goes to the others, again in proportion. Fractions go by largest remainder, equal ones to the lower expert, so
/// the counts add up to `total` exactly.
///
/// Experts of weight 0 get nothing. The others must be able to take the total: `cap` times their number.
pub(super) fn apportion(weights: &[f64], total: u64, cap: u64) -> Vec<u64> {
    let mut counts = vec![0; weights.len()];
    let mut open: Vec<usize> = (0..weights.len()).filter(|&e| weights[e] > 0.0).collect();
    let mut left = total;
    // Those whose part is above the cap are set to it; that raises the part of the rest, so look again.
    loop {
        let sum: f64 = open.iter().map(|&e| weights[e]).sum();
        let part = |e: usize| weights[e] / sum * left as f64;
        let (full, rest): (Vec<usize>, Vec<usize>) = open.iter().partition(|&&e| part(e) >= cap as f64);
        if full.is_empty() {
            round(&mut counts, &open, part, left, cap);
            return counts;
        }
        for &e in &full {
            counts[e] = cap.min(left);
            left -= counts[e];
        }
        open = rest;
    }
}

/// Whole numbers below or at `cap` that add up to `left`, nearest to the parts.
fn round(counts: &mut [u64], open: &[usize], part: impl Fn(usize) -> f64, left: u64, cap: u64) {
    let mut order: Vec<(f64, usize)> = Vec::with_capacity(open.len());
    let mut given = 0;
    for &e in open {
        counts[e] = (part(e) as u64).min(left - given);
        given += counts[e];
        order.push((part(e) - counts[e] as f64, e));
    }
    order.sort_by(|a, b| match b.0.total_cmp(&a.0) {
        Ordering::Equal => a.1.cmp(&b.1),
        other => other,
    });
    // One round hands out all remainders; rounding of the parts themselves may need a second.
    while given < left {
        let before = given;
        for &(_, e) in &order {
            if given < left && counts[e] < cap {
                counts[e] += 1;
                given += 1;
            }
        }
        if given == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn remainders_go_to_the_largest_and_then_to_the_lowest() {
        assert_eq!(apportion(&[1.0, 1.0, 1.0], 8, 8), [3, 3, 2]);
        assert_eq!(apportion(&[2.0, 1.0, 0.0, 3.0], 7, 7), [2, 1, 0, 4]);
    }

    #[test]
    fn what_is_above_the_cap_goes_to_the_others() {
        assert_eq!(apportion(&[98.0, 1.0, 1.0], 20, 10), [10, 5, 5]);
        assert_eq!(apportion(&[1000.0, 10.0, 1.0, 0.0], 24, 10), [10, 10, 4, 0]);
        assert_eq!(apportion(&[1e300, 1e-300], 20, 10), [10, 10]);
    }

    #[test]
    fn nobody_gets_nothing() {
        assert_eq!(apportion(&[0.0, 0.0], 5, 5), [0, 0]);
        assert_eq!(apportion(&[], 5, 5), []);
        assert_eq!(apportion(&[3.0], 0, 5), [0]);
    }

    proptest! {
        #[test]
        fn totals_are_exact(
            weights in prop::collection::vec(prop_oneof![Just(0.0), 1e-9..1e9f64], 1..40),
            tokens in 1u64..100_000,
            most in 1u64..9,
        ) {
            // A token goes to experts that differ.
            let top_k = most.min(weights.iter().filter(|&&w| w > 0.0).count() as u64);
            let counts = apportion(&weights, tokens * top_k, tokens);
            prop_assert_eq!(counts.iter().sum::<u64>(), tokens * top_k);
            for (e, &count) in counts.iter().enumerate() {
                prop_assert!(count <= tokens && (weights[e] > 0.0 || count == 0));
            }
            for (a, b) in (0..weights.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
                prop_assert!(weights[a] <= weights[b] || counts[a] >= counts[b]);
            }
        }
    }
}
