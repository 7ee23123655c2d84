//! How popular the experts of one layer are, and how that changes from step to step.

use super::rng::Rng;
use super::{Skew, Spec};

/// Purposes of random numbers: each draws from its own generator, so that, say, another drift leaves the skew as it
/// is. The numbers are part of the format: changing one changes every generated trace.
const SKEW: u64 = 1;
const IDLE: u64 = 2;
const DOMAIN: u64 = 3;
const DRIFT: u64 = 4;
const NOISE: u64 = 5;

/// Natural logarithms of the popularity of one layer's experts, up to a common constant; minus infinity for experts
/// that never get a token.
#[derive(Debug)]
pub(super) struct Popularity {
    /// Of each domain, `[domains, E]`.
    domains: Vec<Vec<f64>>,
    /// What the drift has added since the start of the stream, `[E]`.
    walked: Vec<f64>,
    drift: (f64, Rng),
    noise: (f64, Rng),
}

impl Popularity {
    /// The popularities of layer `layer` before the first step.
    pub(super) fn new(spec: &Spec, layer: usize) -> Self {
        let rng = |purpose: u64| Rng::keyed(spec.seed, &[purpose, layer as u64]);
        let mut first = skewed(spec.skew, spec.experts, &mut rng(SKEW));
        let mut experts: Vec<usize> = (0..spec.experts).collect();
        rng(IDLE).shuffle(&mut experts);
        for expert in experts.drain(spec.active_experts()..) {
            first[expert] = f64::NEG_INFINITY;
        }
        experts.sort_unstable();

        let mut domains = vec![first];
        let mut random = rng(DOMAIN);
        for _ in 1..spec.domains {
            domains.push(exchanged(&domains[0], experts.clone(), spec.domain_shift, &mut random));
        }
        Self {
            domains,
            walked: vec![0.0; spec.experts],
            drift: (spec.drift, rng(DRIFT)),
            noise: (spec.noise, rng(NOISE)),
        }
    }

    /// Goes on by one step, or back to the start of the drift for the first step of a stream.
    pub(super) fn advance(&mut self, first_of_stream: bool) {
        if first_of_stream {
            self.walked.fill(0.0);
            return;
        }
        let (sigma, rng) = &mut self.drift;
        if *sigma > 0.0 {
            for walked in &mut self.walked {
                *walked += *sigma * rng.normal();
            }
        }
    }

    /// Weights of this step under `domain`, `[E]`: at most 1, 0 for idle experts only.
    pub(super) fn weights(&mut self, domain: usize) -> Vec<f64> {
        let (sigma, rng) = &mut self.noise;
        let mut weights: Vec<f64> =
            self.domains[domain].iter().zip(&self.walked).map(|(base, walked)| base + walked).collect();
        if *sigma > 0.0 {
            for weight in &mut weights {
                *weight += *sigma * rng.normal();
            }
        }
        let largest = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for weight in &mut weights {
            if weight.is_finite() {
                // An expert may be all but idle; it is not idle, so it can still take what others cannot.
                *weight = libm::exp(*weight - largest).max(f64::MIN_POSITIVE);
            } else {
                *weight = 0.0;
            }
        }
        weights
    }
}

/// Log popularities of a layer, `[E]`.
fn skewed(skew: Skew, experts: usize, rng: &mut Rng) -> Vec<f64> {
    match skew {
        Skew::Even => vec![0.0; experts],
        Skew::Lognormal { sigma } => (0..experts).map(|_| sigma * rng.normal()).collect(),
        Skew::Zipf { low, high } => {
            let exponent = low + (high - low) * rng.unit();
            let mut weights: Vec<f64> =
                (1..=experts).map(|place| -exponent * libm::log(place as f64)).collect();
            rng.shuffle(&mut weights);
            weights
        }
    }
}

/// The popularities of another domain: part of the experts that are in use have exchanged theirs, so that the domain
/// is as skewed as the first one.
fn exchanged(first: &[f64], mut experts: Vec<usize>, part: f64, rng: &mut Rng) -> Vec<f64> {
    rng.shuffle(&mut experts);
    experts.truncate(super::rounded(part, experts.len()));
    let mut values: Vec<f64> = experts.iter().map(|&e| first[e]).collect();
    rng.shuffle(&mut values);
    let mut domain = first.to_vec();
    for (expert, value) in experts.into_iter().zip(values) {
        domain[expert] = value;
    }
    domain
}
