//! Settings with names.

use super::{Skew, Spec};

/// Names of the settings that [`Spec::preset`] knows, each with what it makes.
pub const PRESETS: [(&str, &str); 10] = [
    ("dsv3-zipf", "58 x 256, 2 steps: power laws, exponent 0.6 to 1.2 by layer, then drift exp(0.3 N(0,1))"),
    ("dsv3-lognormal", "58 x 256, 2 steps: lognormal, sigma 1, then the same drift"),
    ("dsv3-zeros", "dsv3-lognormal with 30% of the experts and one layer idle"),
    ("k2-zipf", "61 x 384, otherwise as dsv3-zipf"),
    ("k2-lognormal", "61 x 384, otherwise as dsv3-lognormal"),
    ("k2-zeros", "61 x 384, otherwise as dsv3-zeros"),
    ("qwen3-zipf", "94 x 128, otherwise as dsv3-zipf"),
    ("qwen3-lognormal", "94 x 128, otherwise as dsv3-lognormal"),
    ("qwen3-zeros", "94 x 128, otherwise as dsv3-zeros"),
    (
        "day",
        "26 x 64, 400 steps of 8,192 tokens: four kinds of traffic in turn, 60 steps each, noise and slow drift",
    ),
];

impl Spec {
    /// The settings of a name in [`PRESETS`], with seed 0.
    ///
    /// Those of two steps are loads as planners are tested on: totals over 65,536 tokens (so one expert may count
    /// more than that), and a second step that has drifted as far as a window of traffic does.
    pub fn preset(name: &str) -> Option<Self> {
        if name == "day" {
            return Some(Self { domains: 4, switch_every: 60, ..Self::default() });
        }
        let (model, skew) = name.split_once('-')?;
        let (layers, experts) = match model {
            "dsv3" => (58, 256),
            "k2" => (61, 384),
            "qwen3" => (94, 128),
            _ => return None,
        };
        let (skew, idle_layers, idle_experts) = match skew {
            "zipf" => (Skew::Zipf { low: 0.6, high: 1.2 }, 0, 0.0),
            "lognormal" => (Skew::Lognormal { sigma: 1.0 }, 0, 0.0),
            "zeros" => (Skew::Lognormal { sigma: 1.0 }, 1, 0.3),
            _ => return None,
        };
        Some(Self {
            steps: 2,
            layers,
            experts,
            tokens: 65_536,
            top_k: 8,
            skew,
            drift: 0.3,
            noise: 0.0,
            idle_layers,
            idle_experts,
            distinct: false,
            ..Self::default()
        })
    }
}
