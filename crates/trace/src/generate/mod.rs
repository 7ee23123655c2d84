//! Made-up traces: seeded, and the same bit for bit on every host.
//!
//! A layer's experts get popularities by [`Skew`]. From step to step they drift (a random walk of their logarithms),
//! and each step has noise of its own. Several domains, kinds of traffic under which other experts are popular,
//! follow each other at fixed intervals. Tokens are then given out in proportion, in whole numbers that add up.
//!
//! ```
//! use eplb_trace::generate::{Skew, Spec};
//!
//! let spec = Spec { steps: 40, domains: 2, switch_every: 20, skew: Skew::Zipf { low: 0.8, high: 1.0 }, ..Spec::default() };
//! let trace = spec.generate()?;
//! assert_eq!(trace.step(0)?.row(3).sum(), (spec.tokens * spec.top_k) as f64);
//! # Ok::<(), eplb_trace::TraceError>(())
//! ```

mod apportion;
mod popularity;
mod presets;
mod rng;
mod spec;

pub use presets::PRESETS;
pub use spec::{Skew, Spec};

use crate::counts::Counts;
use crate::error::TraceError;
use crate::npy::{Dtype, NpyArray, Scalar};
use crate::trace::Trace;
use apportion::apportion;
use popularity::Popularity;
use rng::Rng;

/// Purpose of the random numbers that choose idle layers.
const IDLE_LAYERS: u64 = 0;

impl Spec {
    /// Makes the trace. Counts are stored as uint16 where no count can exceed it, else as uint32.
    ///
    /// # Errors
    /// [`TraceError::Spec`] naming a setting that cannot be.
    pub fn generate(&self) -> Result<Trace, TraceError> {
        self.check()?;
        let (cap, total) = self.cap_and_total();
        let scalar = if cap <= u64::from(u16::MAX) { Scalar::U16 } else { Scalar::U32 };
        let mut bytes = self.room(scalar.size())?;
        let mut idle = vec![false; self.layers];
        idle[..self.idle_layers].fill(true);
        Rng::keyed(self.seed, &[IDLE_LAYERS]).shuffle(&mut idle);

        let row_bytes = self.experts * scalar.size();
        for layer in (0..self.layers).filter(|&layer| !idle[layer]) {
            let mut popularity = Popularity::new(self, layer);
            for step in 0..self.steps {
                let in_stream = self.step_in_stream(step).1;
                popularity.advance(in_stream == 0);
                let counts = apportion(&popularity.weights(self.domain(in_stream)), total, cap);
                let start = (step * self.layers + layer) * row_bytes;
                let row = &mut bytes[start..start + row_bytes];
                for (place, &count) in row.chunks_exact_mut(scalar.size()).zip(&counts) {
                    place.copy_from_slice(&count.to_le_bytes()[..scalar.size()]);
                }
            }
        }
        let shape = vec![self.steps, self.layers, self.experts];
        let name = format!("generated with seed {}", self.seed);
        let array = NpyArray::in_c_order(name.clone(), Dtype::little(scalar), shape, bytes);
        let stream = (self.streams > 1)
            .then(|| (0..self.steps).map(|step| self.step_in_stream(step).0 as i64).collect());
        Trace::assemble(name, Counts::new(array)?, stream)
    }

    /// Most tokens of one expert, and tokens of all experts, per step and layer.
    fn cap_and_total(&self) -> (u64, u64) {
        let total = self.tokens as u64 * self.top_k as u64;
        (if self.distinct { self.tokens as u64 } else { total }, total)
    }

    /// Zeroed memory for all counts.
    fn room(&self, size: usize) -> Result<Vec<u8>, TraceError> {
        let too_large = || TraceError::Spec {
            field: "steps",
            reason: format!(
                "{} steps of {} layers and {} experts do not fit in memory",
                self.steps, self.layers, self.experts
            ),
        };
        let bytes = [self.layers, self.experts, size]
            .into_iter()
            .try_fold(self.steps, usize::checked_mul)
            .ok_or_else(too_large)?;
        let mut room = Vec::new();
        room.try_reserve_exact(bytes).map_err(|_| too_large())?;
        room.resize(bytes, 0);
        Ok(room)
    }

    /// Stream of a step, and how many steps of the stream come before it.
    fn step_in_stream(&self, step: usize) -> (usize, usize) {
        // The first `long` streams have one step more.
        let (short, long) = (self.steps / self.streams, self.steps % self.streams);
        let in_long = long * (short + 1);
        if step < in_long {
            (step / (short + 1), step % (short + 1))
        } else {
            (long + (step - in_long) / short, (step - in_long) % short)
        }
    }

    /// Domain of a step of a stream.
    fn domain(&self, step_in_stream: usize) -> usize {
        if self.domains == 1 { 0 } else { step_in_stream / self.switch_every % self.domains }
    }

    /// Experts of a layer that get tokens.
    fn active_experts(&self) -> usize {
        self.experts - rounded(self.idle_experts, self.experts)
    }
}

/// A fraction of a number, in whole ones. The fraction must be 0..=1.
fn rounded(fraction: f64, of: usize) -> usize {
    // The product is not negative and not above `of`, so the cast is exact.
    ((fraction * of as f64 + 0.5) as usize).min(of)
}
