//! How far the popularity of experts moves from one window to the next.

use ndarray::{Array2, ArrayView1};
use serde::Serialize;

use super::mean;

/// Total variation distance between neighbouring windows of a trace.
///
/// The distance of two windows is the mean over layers, of which both have load, of half the sum of the absolute
/// differences between the experts' parts: the part of the tokens that would have to go to other experts, 0 to 1.
/// Windows of different streams are not compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drift {
    /// Steps per window.
    pub window: usize,
    /// Mean over neighbouring windows; `None` if there are not two of one stream.
    pub mean: Option<f64>,
    /// Largest distance, and the first step of the later window.
    pub largest: Option<(f64, usize)>,
    /// First step of each window that has a predecessor, and its distance from that.
    pub distances: Vec<(usize, f64)>,
}

/// Total variation distance of two loads of one layer, each `[E]`; `None` if one of them is idle.
pub fn total_variation(a: ArrayView1<'_, f64>, b: ArrayView1<'_, f64>) -> Option<f64> {
    let (sum_a, sum_b) = (a.sum(), b.sum());
    (sum_a > 0.0 && sum_b > 0.0)
        .then(|| a.iter().zip(b).map(|(a, b)| (a / sum_a - b / sum_b).abs()).sum::<f64>() / 2.0)
}

/// Windows as they come.
#[derive(Debug)]
pub(super) struct Windows {
    window: usize,
    before: Option<Array2<f64>>,
    distances: Vec<(usize, f64)>,
}

impl Windows {
    pub(super) fn new(window: usize) -> Self {
        Self { window, before: None, distances: Vec::new() }
    }

    /// Adds the loads `[L, E]` of the window that starts at step `start`.
    pub(super) fn add(&mut self, start: usize, starts_stream: bool, loads: Array2<f64>) {
        let before = self.before.take().filter(|_| !starts_stream);
        let distance = before.and_then(|before| {
            let layers = before.rows().into_iter().zip(loads.rows());
            mean(layers.filter_map(|(a, b)| total_variation(a, b)))
        });
        self.distances.extend(distance.map(|distance| (start, distance)));
        self.before = Some(loads);
    }

    pub(super) fn finish(self) -> Drift {
        let largest =
            self.distances.iter().fold(None, |best: Option<(f64, usize)>, &(step, distance)| match best {
                Some((largest, _)) if distance <= largest => best,
                _ => Some((distance, step)),
            });
        let mean = mean(self.distances.iter().map(|(_, distance)| *distance));
        Drift { window: self.window, mean, largest, distances: self.distances }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn distances_are_between_neighbours_of_one_stream() {
        let mut windows = Windows::new(5);
        windows.add(0, true, array![[1.0, 0.0], [0.0, 0.0]]);
        windows.add(5, false, array![[0.0, 2.0], [3.0, 3.0]]);
        windows.add(8, true, array![[4.0, 4.0], [0.0, 5.0]]);
        windows.add(13, false, array![[2.0, 6.0], [0.0, 0.0]]);
        windows.add(18, false, array![[0.0, 0.0], [1.0, 0.0]]);
        let drift = windows.finish();
        assert_eq!(drift.distances, [(5, 1.0), (13, 0.25)]);
        assert_eq!((drift.mean, drift.largest), (Some(0.625), Some((1.0, 5))));
    }
}
