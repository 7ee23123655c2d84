//! How unequal the experts of a layer are.

use ndarray::{Array2, ArrayView1, ArrayView2};
use serde::Serialize;

use super::mean;

/// Skew of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerSkew {
    /// Whether the layer has no load at all.
    pub idle: bool,
    /// Tokens per step, all experts together.
    pub tokens_per_step: f64,
    /// The expert with the largest load; the lowest of equals.
    pub hottest: usize,
    /// Experts without any load.
    pub idle_experts: usize,
    /// Load of the hottest expert over the mean expert's, summed over the steps. `None` if the layer is idle.
    pub max_over_mean: Option<f64>,
    /// The same ratio step by step, mean over the steps in which the layer is not idle.
    pub max_over_mean_per_step: Option<f64>,
    /// Gini coefficient of the experts' loads, summed over the steps.
    pub gini: Option<f64>,
}

/// Largest load over the mean load, 1 or more; `None` if there is no load.
pub fn max_over_mean(loads: ArrayView1<'_, f64>) -> Option<f64> {
    let sum = loads.sum();
    let max = loads.iter().copied().fold(0.0, f64::max);
    (sum > 0.0).then(|| max * loads.len() as f64 / sum)
}

/// Gini coefficient of loads: 0 if all are equal, `1 - 1/n` if one has everything; `None` if there is no load.
pub fn gini(loads: ArrayView1<'_, f64>) -> Option<f64> {
    let mut sorted = loads.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let sum: f64 = sorted.iter().sum();
    let weighted: f64 =
        sorted.iter().enumerate().map(|(i, load)| (2.0 * (i as f64 + 1.0) - n - 1.0) * load).sum();
    (sum > 0.0).then(|| (weighted / (n * sum)).max(0.0))
}

/// Sums over steps that the skew is computed from.
#[derive(Debug)]
pub(super) struct SkewSums {
    steps: usize,
    /// `[L, E]`.
    sum: Array2<f64>,
    /// Per layer: sum of the steps' ratios, and the number of steps that have one.
    ratios: Vec<(f64, usize)>,
}

impl SkewSums {
    pub(super) fn new(layers: usize, experts: usize) -> Self {
        Self { steps: 0, sum: Array2::zeros((layers, experts)), ratios: vec![(0.0, 0); layers] }
    }

    /// Adds the loads of one step, `[L, E]`.
    pub(super) fn add(&mut self, loads: ArrayView2<'_, f64>) {
        self.steps += 1;
        self.sum += &loads;
        for (layer, ratios) in loads.rows().into_iter().zip(&mut self.ratios) {
            if let Some(ratio) = max_over_mean(layer) {
                *ratios = (ratios.0 + ratio, ratios.1 + 1);
            }
        }
    }

    /// Mean ratio over steps and layers.
    pub(super) fn per_step(&self) -> Option<f64> {
        let (sum, count) = self.ratios.iter().fold((0.0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        (count > 0).then(|| sum / count as f64)
    }

    pub(super) fn layers(&self) -> Vec<LayerSkew> {
        let rows = self.sum.rows().into_iter().zip(&self.ratios);
        rows.map(|(row, &(ratios, count))| {
            let hottest = (0..row.len()).fold(0, |best, e| if row[e] > row[best] { e } else { best });
            LayerSkew {
                idle: row[hottest] <= 0.0,
                tokens_per_step: row.sum() / self.steps.max(1) as f64,
                hottest,
                idle_experts: row.iter().filter(|&&load| load <= 0.0).count(),
                max_over_mean: max_over_mean(row),
                max_over_mean_per_step: mean(std::iter::once(ratios / count as f64).filter(|_| count > 0)),
                gini: gini(row),
            }
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn known_values() {
        assert_eq!(max_over_mean(array![1.0, 2.0, 3.0].view()), Some(1.5));
        assert_eq!(gini(array![5.0, 5.0, 5.0, 5.0].view()), Some(0.0));
        assert_eq!(gini(array![0.0, 8.0, 0.0, 0.0].view()), Some(0.75));
        // Mean absolute difference 4/3 x 1/2 over the mean 2.
        assert!((gini(array![3.0, 1.0, 2.0].view()).unwrap() - 2.0 / 9.0).abs() < 1e-15);
        assert_eq!((max_over_mean(array![0.0].view()), gini(array![0.0].view())), (None, None));
    }

    #[test]
    fn steps_are_judged_alone_and_together() {
        let mut sums = SkewSums::new(2, 2);
        sums.add(array![[3.0, 1.0], [0.0, 0.0]].view());
        sums.add(array![[1.0, 3.0], [0.0, 0.0]].view());
        sums.add(array![[0.0, 0.0], [0.0, 0.0]].view());
        let layers = sums.layers();
        assert_eq!(layers[0].max_over_mean, Some(1.0));
        assert_eq!(layers[0].max_over_mean_per_step, Some(1.5));
        assert_eq!((layers[0].hottest, layers[0].tokens_per_step), (0, 8.0 / 3.0));
        assert!(layers[1].idle && layers[1].max_over_mean_per_step.is_none());
        assert_eq!(layers[1].idle_experts, 2);
        assert_eq!(sums.per_step(), Some(1.5));
    }
}
