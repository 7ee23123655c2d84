//! Tokens routed to logical experts.

use std::ops::Range;

use ndarray::{Array2, Array3, ArrayView1, ArrayView2, Axis, Slice};

use crate::error::CoreError;
use crate::ids::{ExpertId, LayerId};

/// Tokens routed to each logical expert: a window of steps `[T, L, E]` and its sum over steps `[L, E]`.
///
/// Invariant: at least one step, layer and expert; every value is finite and 0 or more. A matrix `[L, E]`
/// is a window of one step. Loads are scale-free: only ratios matter to planning.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadMatrix {
    window: Array3<f64>,
    sum: Array2<f64>,
}

impl LoadMatrix {
    /// Loads `[L, E]` already summed over their window.
    ///
    /// # Errors
    /// As [`LoadMatrix::from_window`].
    pub fn from_sum(sum: Array2<f64>) -> Result<Self, CoreError> {
        Self::from_window(sum.insert_axis(Axis(0)))
    }

    /// Loads per step, `[T, L, E]`.
    ///
    /// # Errors
    /// An empty axis, or a value (or a sum over steps) that is NaN, infinite or negative.
    pub fn from_window(window: Array3<f64>) -> Result<Self, CoreError> {
        if window.is_empty() || window.shape().iter().any(|&n| n > i32::MAX as usize) {
            return Err(CoreError::Shape {
                what: "loads",
                found: window.shape().to_vec(),
                expected: "[steps, layers, experts], each 1 or more".into(),
            });
        }
        let bad = |step: usize, layer: usize, expert: usize, value: f64| CoreError::Load {
            step,
            layer: LayerId::at(layer),
            expert: ExpertId::at(expert),
            value,
        };
        for ((step, layer, expert), &value) in window.indexed_iter() {
            if !(value.is_finite() && value >= 0.0) {
                return Err(bad(step, layer, expert, value));
            }
        }
        let window =
            if window.is_standard_layout() { window } else { window.as_standard_layout().to_owned() };
        // Step order fixes the order of additions, so that two machines get the same sum bit for bit.
        let mut sum = window.index_axis(Axis(0), 0).to_owned();
        for step in window.axis_iter(Axis(0)).skip(1) {
            sum += &step;
        }
        for layer in 0..sum.nrows() {
            let row: f64 = sum.row(layer).sum();
            if !row.is_finite() {
                return Err(bad(window.shape()[0] - 1, layer, 0, row));
            }
        }
        Ok(Self { window, sum })
    }

    /// Number of steps `T`.
    pub fn steps(&self) -> usize {
        self.window.shape()[0]
    }

    /// Number of layers `L`.
    pub fn layers(&self) -> usize {
        self.sum.nrows()
    }

    /// Number of logical experts `E`.
    pub fn experts(&self) -> usize {
        self.sum.ncols()
    }

    /// Loads per step, `[T, L, E]`, in C order.
    pub fn window(&self) -> &Array3<f64> {
        &self.window
    }

    /// Loads of one step, `[L, E]`.
    pub fn step(&self, step: usize) -> ArrayView2<'_, f64> {
        self.window.index_axis(Axis(0), step)
    }

    /// Loads summed over the window, `[L, E]`, in C order.
    pub fn sum(&self) -> &Array2<f64> {
        &self.sum
    }

    /// Loads of one layer summed over the window, `[E]`.
    pub fn layer(&self, layer: LayerId) -> ArrayView1<'_, f64> {
        self.sum.row(layer.index())
    }

    /// The same loads over some of the steps.
    ///
    /// # Errors
    /// A range that is empty or ends after the last step.
    pub fn select_steps(&self, steps: Range<usize>) -> Result<Self, CoreError> {
        if steps.is_empty() || steps.end > self.steps() {
            return Err(CoreError::Shape {
                what: "step range",
                found: vec![steps.start, steps.end],
                expected: format!("A:B with 0 <= A < B <= {}", self.steps()),
            });
        }
        Self::from_window(self.window.slice_axis(Axis(0), Slice::from(steps)).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn window_is_summed_over_steps() {
        let loads = LoadMatrix::from_window(array![[[1.0, 2.0]], [[3.0, 5.0]]]).unwrap();
        assert_eq!(loads.sum(), &array![[4.0, 7.0]]);
        assert_eq!((loads.steps(), loads.layers(), loads.experts()), (2, 1, 2));
        assert_eq!(loads.select_steps(1..2).unwrap().sum(), &array![[3.0, 5.0]]);
        assert!(loads.select_steps(1..1).is_err());
        assert!(loads.select_steps(0..3).is_err());
    }

    #[test]
    fn bad_values_are_named() {
        for value in [f64::NAN, f64::INFINITY, -1.0] {
            let error = LoadMatrix::from_sum(array![[1.0, 1.0], [1.0, value]]).unwrap_err();
            let CoreError::Load { step: 0, layer: LayerId(1), expert: ExpertId(1), .. } = error else {
                panic!("{error}")
            };
        }
        assert!(LoadMatrix::from_sum(array![[f64::MAX, f64::MAX]]).is_err());
        assert!(LoadMatrix::from_sum(Array2::zeros((0, 4))).is_err());
    }
}
