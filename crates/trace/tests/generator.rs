//! What generated traces promise.

use std::num::NonZeroUsize;

use eplb_trace::generate::{PRESETS, Skew, Spec};
use eplb_trace::info::{Info, total_variation};
use eplb_trace::{Trace, TraceError};
use ndarray::Array2;
use proptest::prelude::*;

fn small() -> Spec {
    Spec { steps: 12, layers: 3, experts: 16, tokens: 500, top_k: 4, ..Spec::default() }
}

fn sum(trace: &Trace, steps: std::ops::Range<usize>) -> Array2<f64> {
    trace.loads(steps).unwrap().sum().clone()
}

/// Mean over layers of the distance between two sums of loads.
fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    let layers: Vec<f64> =
        a.rows().into_iter().zip(b.rows()).filter_map(|(a, b)| total_variation(a, b)).collect();
    layers.iter().sum::<f64>() / layers.len() as f64
}

fn skews() -> impl Strategy<Value = Skew> {
    prop_oneof![
        Just(Skew::Even),
        (0.0..1.5f64).prop_map(|low| Skew::Zipf { low, high: low + 0.5 }),
        (0.0..3.0f64).prop_map(|sigma| Skew::Lognormal { sigma }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn counts_add_up_and_none_exceeds_the_tokens(
        skew in skews(),
        (steps, layers, experts, tokens, top_k) in (1usize..8, 1usize..5, 4usize..40, 1usize..3000, 1usize..5),
        (drift, noise, domain_shift, idle_experts) in (0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64, 0.0..0.5f64),
        (domains, switch_every, streams, idle_layers) in (1usize..4, 1usize..4, 1usize..4, 0usize..3),
        (distinct, seed) in (any::<bool>(), any::<u64>()),
    ) {
        let spec = Spec {
            steps, layers, experts, tokens, top_k, skew, drift, noise, domains, switch_every, domain_shift,
            idle_layers, idle_experts, streams, distinct, seed,
        };
        let idle = experts - (experts as f64 - (idle_experts * experts as f64 + 0.5).floor()) as usize;
        let trace = match spec.generate() {
            Ok(trace) => trace,
            Err(TraceError::Spec { field: "streams", .. }) => { prop_assert!(streams > steps); return Ok(()); }
            Err(TraceError::Spec { field: "idle_layers", .. }) => {
                prop_assert!(idle_layers > layers);
                return Ok(());
            }
            Err(TraceError::Spec { field: "top_k", .. }) => {
                prop_assert!(distinct && experts - idle < top_k);
                return Ok(());
            }
            Err(error) => panic!("{error}"),
        };
        prop_assert_eq!((trace.steps(), trace.layers(), trace.experts()), (steps, layers, experts));
        let mut layers_without = vec![0; layers];
        for step in 0..steps {
            let loads = trace.step(step).unwrap();
            for (layer, row) in loads.rows().into_iter().enumerate() {
                if row.sum() == 0.0 {
                    layers_without[layer] += 1;
                    continue;
                }
                prop_assert_eq!(row.sum(), (tokens * top_k) as f64);
                prop_assert!(!distinct || row.iter().all(|&count| count <= tokens as f64));
                prop_assert!(row.iter().filter(|&&count| count == 0.0).count() >= idle);
            }
        }
        prop_assert_eq!(layers_without.iter().filter(|&&n| n == steps).count(), idle_layers);
        prop_assert!(layers_without.iter().all(|&n| n == steps || n == 0));
        prop_assert_eq!(trace.segments().len(), streams);
        let lengths: Vec<usize> = trace.segments().iter().map(|s| s.len()).collect();
        prop_assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1);

        let again = spec.generate().unwrap();
        prop_assert_eq!(again.loads(0..steps).unwrap(), trace.loads(0..steps).unwrap());
    }
}

#[test]
fn the_same_seed_gives_these_very_counts() {
    // Written down once; a change of any digit is a change of every generated trace.
    let row = |spec: Spec, step: usize, layer: usize| -> Vec<u32> {
        spec.generate().unwrap().step(step).unwrap().row(layer).iter().map(|&v| v as u32).collect()
    };
    let zipf = Spec { skew: Skew::Zipf { low: 0.6, high: 1.2 }, drift: 0.1, seed: 42, ..small() };
    assert_eq!(row(zipf.clone(), 0, 0), GOLDEN_ZIPF);
    let domains = Spec { domains: 3, switch_every: 4, idle_experts: 0.25, seed: 7, ..small() };
    assert_eq!(row(domains, 11, 2), GOLDEN_DOMAINS);
    assert_ne!(row(Spec { seed: 43, ..zipf }, 0, 0), GOLDEN_ZIPF);
}

const GOLDEN_ZIPF: [u32; 16] = [220, 69, 72, 62, 67, 59, 56, 451, 122, 97, 108, 144, 41, 206, 141, 85];
const GOLDEN_DOMAINS: [u32; 16] = [120, 86, 0, 151, 0, 88, 0, 92, 342, 427, 247, 0, 151, 52, 88, 156];

#[test]
fn drift_goes_on_and_noise_does_not() {
    let still = Spec { drift: 0.0, noise: 0.0, steps: 60, ..small() };
    let trace = still.generate().unwrap();
    assert_eq!(trace.step(0).unwrap(), trace.step(59).unwrap());
    // The base popularity has random numbers of its own: what moves later starts from the same place.
    let drifting = Spec { drift: 0.1, ..still.clone() }.generate().unwrap();
    assert_eq!(drifting.step(0).unwrap(), trace.step(0).unwrap());
    let far = |trace: &Trace, step: usize| distance(&trace.step(0).unwrap(), &trace.step(step).unwrap());
    assert!(far(&drifting, 59) > 2.5 * far(&drifting, 3), "{} {}", far(&drifting, 59), far(&drifting, 3));
    let noisy = Spec { noise: 0.2, ..still }.generate().unwrap();
    assert!(far(&noisy, 59) < 2.0 * far(&noisy, 3) && far(&noisy, 3) > 0.05);
}

#[test]
fn a_stream_starts_where_the_first_one_did() {
    let spec = Spec { drift: 0.3, noise: 0.0, streams: 3, domains: 2, switch_every: 2, ..small() };
    let trace = spec.generate().unwrap();
    assert_eq!(trace.segments(), [0..4, 4..8, 8..12]);
    assert_eq!(trace.step(0).unwrap(), trace.step(4).unwrap());
    assert_ne!(trace.step(1).unwrap(), trace.step(5).unwrap());
}

#[test]
fn domains_favour_other_experts_and_are_as_skewed() {
    let spec =
        Spec { domains: 2, switch_every: 5, domain_shift: 1.0, drift: 0.0, noise: 0.0, ..Spec::default() };
    let trace = Spec { steps: 20, ..spec }.generate().unwrap();
    let (a, b) = (sum(&trace, 0..5), sum(&trace, 5..10));
    assert!(distance(&a, &b) > 0.2, "{}", distance(&a, &b));
    assert_eq!(a, sum(&trace, 10..15));
    let sorted = |loads: &Array2<f64>| {
        let mut row = loads.row(3).to_vec();
        row.sort_by(f64::total_cmp);
        row
    };
    // Equal but for the order in which remainders are handed out.
    assert!(sorted(&a).iter().zip(sorted(&b)).all(|(a, b)| (a - b).abs() <= 5.0));
}

#[test]
fn presets_are_of_their_kind() {
    for (name, _) in PRESETS {
        let spec = Spec::preset(name).unwrap();
        let trace = spec.generate().unwrap();
        let info = Info::of(&trace, NonZeroUsize::MIN).unwrap();
        let skew = info.max_over_mean.unwrap();
        let (idle, low, high) = match name.split_once('-') {
            Some((_, "zipf")) => (0, 15.0, 60.0),
            Some((_, "lognormal")) => (0, 7.0, 15.0),
            Some((_, "zeros")) => (1, 8.0, 20.0),
            _ => (0, 2.0, 4.0),
        };
        assert!((low..high).contains(&skew), "{name}: {skew}");
        assert_eq!(info.idle_layers.len(), idle, "{name}");
        if trace.steps() == 2 {
            // Drift exp(0.3 N(0,1)): the logarithms of the ratios have that deviation.
            let (before, after) = (trace.step(0).unwrap(), trace.step(1).unwrap());
            let logs: Vec<f64> = before
                .iter()
                .zip(&after)
                .filter(|(a, b)| **a >= 100.0 && **b >= 100.0)
                .map(|(a, b)| (b / a).ln())
                .collect();
            let mean = logs.iter().sum::<f64>() / logs.len() as f64;
            let deviation = (logs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / logs.len() as f64).sqrt();
            assert!((deviation - 0.3).abs() < 0.02, "{name}: {deviation}");
        }
    }
    assert_eq!(Spec::preset("dsv3-other"), None);
    assert_eq!(Spec::preset("day-zipf"), None);
}

#[test]
fn settings_that_cannot_be_are_named() {
    for (spec, field) in [
        (Spec { steps: 0, ..small() }, "steps"),
        (Spec { experts: usize::MAX, ..small() }, "experts"),
        (Spec { tokens: 1 << 30, top_k: 4, ..small() }, "tokens"),
        (Spec { skew: Skew::Lognormal { sigma: f64::NAN }, ..small() }, "skew"),
        (Spec { skew: Skew::Zipf { low: 2.0, high: 1.0 }, ..small() }, "skew"),
        (Spec { drift: -0.1, ..small() }, "drift"),
        (Spec { noise: f64::INFINITY, ..small() }, "noise"),
        (Spec { domains: 2, switch_every: 0, ..small() }, "switch_every"),
        (Spec { domain_shift: 1.5, ..small() }, "domain_shift"),
        (Spec { streams: 13, ..small() }, "streams"),
        (Spec { idle_layers: 4, ..small() }, "idle_layers"),
        (Spec { idle_experts: 1.0, ..small() }, "idle_experts"),
        (Spec { top_k: 17, ..small() }, "top_k"),
        (Spec { idle_experts: 0.99, distinct: false, ..small() }, "top_k"),
        (Spec { steps: i32::MAX as usize, layers: i32::MAX as usize, experts: 4, ..small() }, "steps"),
    ] {
        match spec.generate() {
            Err(TraceError::Spec { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}
