//! What a trace is like: skew, drift, idle layers, streams, and a picture of it for a terminal.
//!
//! ```
//! use std::num::NonZeroUsize;
//! use eplb_trace::generate::Spec;
//! use eplb_trace::info::{HeatMap, Info};
//!
//! let trace = Spec { steps: 40, ..Spec::default() }.generate()?;
//! let info = Info::of(&trace, NonZeroUsize::new(10).unwrap())?;
//! println!("max/mean {:.2}, {} idle layers", info.max_over_mean.unwrap_or(1.0), info.idle_layers.len());
//! println!("{}", HeatMap::default().render(trace.sum(0..40)?.view()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod drift;
mod heat;
mod skew;

use std::num::NonZeroUsize;

use serde::Serialize;

pub use drift::{Drift, total_variation};
pub use heat::{Glyphs, HeatMap};
pub use skew::{LayerSkew, gini, max_over_mean};

use crate::error::TraceError;
use crate::trace::Trace;
use skew::SkewSums;

/// Shape, skew, drift, idle layers and streams of a trace. Means leave idle layers out; they are `None` if there is
/// nothing to take a mean of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Info {
    /// The file, with the array that the counts came from.
    pub source: String,
    /// How the counts are stored, as numpy writes it.
    pub dtype: String,
    /// Number of steps `T`.
    pub steps: usize,
    /// Number of MoE layers `L`.
    pub layers: usize,
    /// Number of logical experts `E`.
    pub experts: usize,
    /// Sum of all counts.
    pub total: f64,
    /// Tokens per step and layer, mean over steps and over layers that are not idle.
    pub tokens_per_step: Option<f64>,
    /// Load of the hottest expert over the mean expert's, summed over all steps; mean over layers.
    pub max_over_mean: Option<f64>,
    /// The same ratio step by step; mean over steps and layers that are not idle in them.
    pub max_over_mean_per_step: Option<f64>,
    /// Gini coefficient of the experts' loads summed over all steps, 0 (equal) to 1; mean over layers.
    pub gini: Option<f64>,
    /// Layers without any load.
    pub idle_layers: Vec<usize>,
    /// Experts, over all layers that are not idle, without any load.
    pub idle_experts: usize,
    /// How far neighbouring windows are apart.
    pub drift: Drift,
    /// Runs of steps with one stream number.
    pub streams: Vec<StreamRun>,
    /// Skew of each layer, `[L]`.
    pub per_layer: Vec<LayerSkew>,
}

/// Consecutive steps of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StreamRun {
    /// Stream number; 0 if the trace has no streams.
    pub stream: i64,
    /// First step.
    pub start: usize,
    /// Step after the last.
    pub end: usize,
}

impl Info {
    /// Reads a trace through once, `window` steps at a time; drift is between neighbouring windows.
    ///
    /// # Errors
    /// [`TraceError::Load`] if a mapped file was changed since it was opened.
    pub fn of(trace: &Trace, window: NonZeroUsize) -> Result<Self, TraceError> {
        let mut skew = SkewSums::new(trace.layers(), trace.experts());
        let mut drift = drift::Windows::new(window.get());
        for steps in trace.windows(window) {
            let loads = trace.loads(steps.clone())?;
            for step in 0..loads.steps() {
                skew.add(loads.step(step));
            }
            let starts_stream = trace.segments().iter().any(|segment| segment.start == steps.start);
            drift.add(steps.start, starts_stream, loads.sum().clone());
        }
        let per_layer = skew.layers();
        let busy = || per_layer.iter().filter(|layer| !layer.idle);
        let streams = trace.segments().iter().map(|segment| StreamRun {
            stream: trace.stream().map_or(0, |stream| stream[segment.start]),
            start: segment.start,
            end: segment.end,
        });
        Ok(Self {
            source: trace.array().to_owned(),
            dtype: trace.dtype().to_string(),
            steps: trace.steps(),
            layers: trace.layers(),
            experts: trace.experts(),
            total: per_layer.iter().map(|layer| layer.tokens_per_step).sum::<f64>() * trace.steps() as f64,
            tokens_per_step: mean(busy().map(|layer| layer.tokens_per_step)),
            max_over_mean: mean(busy().filter_map(|layer| layer.max_over_mean)),
            max_over_mean_per_step: skew.per_step(),
            gini: mean(busy().filter_map(|layer| layer.gini)),
            idle_layers: (0..per_layer.len()).filter(|&layer| per_layer[layer].idle).collect(),
            idle_experts: busy().map(|layer| layer.idle_experts).sum(),
            drift: drift.finish(),
            streams: streams.collect(),
            per_layer,
        })
    }
}

/// Mean of some values; `None` of none.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in values {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}
