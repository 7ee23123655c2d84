//! The settings of the generator and what they must satisfy.

use crate::error::TraceError;

/// How unequally popular the experts of a layer are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Skew {
    /// All alike.
    Even,
    /// A power law over a random order of the experts: the n-th is `n^-a` as popular as the first, with `a` uniform
    /// in `low..=high`, drawn for each layer.
    Zipf {
        /// Least exponent.
        low: f64,
        /// Largest exponent.
        high: f64,
    },
    /// `exp(sigma N(0,1))`. Sigma 1 is closest to what is published of DeepSeek-R1.
    Lognormal {
        /// Standard deviation of the logarithm.
        sigma: f64,
    },
}

/// Settings of a generated trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Number of steps `T`.
    pub steps: usize,
    /// Number of MoE layers `L`.
    pub layers: usize,
    /// Number of logical experts `E`.
    pub experts: usize,
    /// Tokens per step.
    pub tokens: usize,
    /// Experts that each token goes to: the counts of a layer that is not idle add up to `tokens * top_k` per step.
    pub top_k: usize,
    /// How unequal the experts are.
    pub skew: Skew,
    /// Drift: each step multiplies each expert's popularity by `exp(drift N(0,1))`, for good.
    pub drift: f64,
    /// Noise: each step multiplies each expert's popularity by `exp(noise N(0,1))`, for that step alone.
    pub noise: f64,
    /// Kinds of traffic that follow each other; each favours other experts.
    pub domains: usize,
    /// Steps from one domain to the next. Means nothing with one domain.
    pub switch_every: usize,
    /// Part of the experts, 0..=1, that have another's popularity in a domain other than the first.
    pub domain_shift: f64,
    /// Layers without any tokens, chosen at random.
    pub idle_layers: usize,
    /// Part of each layer's experts, 0 or more and below 1, that never get a token, chosen at random per layer.
    pub idle_experts: f64,
    /// Streams that the steps are divided into, one after another, as evenly as can be. Each starts anew, without
    /// drift and in the first domain.
    pub streams: usize,
    /// Whether a token goes to `top_k` different experts, so that no count exceeds `tokens`. Without it the counts
    /// are like totals over many steps, where one expert may have more.
    pub distinct: bool,
    /// Same settings and seed, same trace.
    pub seed: u64,
}

/// 26 layers of 64 experts, top-6, 400 steps of 8,192 tokens: one kind of traffic, skewed and restless as a small
/// model's prefill is.
impl Default for Spec {
    fn default() -> Self {
        Self {
            steps: 400,
            layers: 26,
            experts: 64,
            tokens: 8192,
            top_k: 6,
            skew: Skew::Lognormal { sigma: 0.6 },
            drift: 0.015,
            noise: 0.15,
            domains: 1,
            switch_every: 100,
            domain_shift: 0.5,
            idle_layers: 0,
            idle_experts: 0.0,
            streams: 1,
            distinct: true,
            seed: 0,
        }
    }
}

impl Spec {
    /// Checks every setting.
    pub(super) fn check(&self) -> Result<(), TraceError> {
        let fail = |field, reason: String| Err(TraceError::Spec { field, reason });
        for (field, value) in [
            ("steps", self.steps),
            ("layers", self.layers),
            ("experts", self.experts),
            ("tokens", self.tokens),
            ("top_k", self.top_k),
            ("domains", self.domains),
            ("streams", self.streams),
        ] {
            if value == 0 || value > i32::MAX as usize {
                return fail(field, format!("{value}, expected 1 to 2^31 - 1"));
            }
        }
        if self.tokens as u64 * self.top_k as u64 > u64::from(u32::MAX) {
            return fail("tokens", format!("{} times top-{} is more than 2^32 - 1", self.tokens, self.top_k));
        }
        let (low, high) = match self.skew {
            Skew::Even => (0.0, 0.0),
            Skew::Zipf { low, high } => (low, high),
            Skew::Lognormal { sigma } => (sigma, sigma),
        };
        // Beyond this the popularities of two experts differ by more than a float64 can hold.
        let sane = 0.0..=100.0;
        if !(sane.contains(&low) && sane.contains(&high) && low <= high) {
            return fail("skew", format!("{:?}, expected numbers from 0 to 100, the lower first", self.skew));
        }
        for (field, value) in [("drift", self.drift), ("noise", self.noise)] {
            if !sane.contains(&value) {
                return fail(field, format!("{value}, expected 0 to 100"));
            }
        }
        if self.domains > 1 && self.switch_every == 0 {
            return fail("switch_every", format!("0 with {} domains, expected 1 step or more", self.domains));
        }
        if !(0.0..=1.0).contains(&self.domain_shift) {
            return fail("domain_shift", format!("{}, expected 0 to 1", self.domain_shift));
        }
        if self.streams > self.steps {
            return fail("streams", format!("{} for {} steps", self.streams, self.steps));
        }
        if self.idle_layers > self.layers {
            return fail("idle_layers", format!("{} of {} layers", self.idle_layers, self.layers));
        }
        if !(0.0..1.0).contains(&self.idle_experts) {
            return fail("idle_experts", format!("{}, expected 0 or more, below 1", self.idle_experts));
        }
        let (active, needed) = (self.active_experts(), if self.distinct { self.top_k } else { 1 });
        if active < needed {
            return fail(
                "top_k",
                format!("a token needs {needed} experts, but {active} of {} get tokens", self.experts),
            );
        }
        Ok(())
    }
}
