//! The loads that plans are made on.

use std::collections::VecDeque;

use ndarray::{Array2, Array3, Axis};

/// Samples of loads, `[L, E]` each, the newest last.
#[derive(Debug, Clone)]
pub(super) struct Window {
    samples: VecDeque<Array2<f64>>,
    most: usize,
}

impl Window {
    /// Nothing yet; `most` samples are kept.
    pub(super) fn new(most: usize) -> Self {
        Self { samples: VecDeque::new(), most: most.max(1) }
    }

    /// Takes in a sample and forgets the oldest beyond the most.
    pub(super) fn push(&mut self, sample: Array2<f64>) {
        self.samples.push_back(sample);
        while self.samples.len() > self.most {
            self.samples.pop_front();
        }
    }

    /// All of them, oldest first, `[T, L, E]`; `None` if there is none.
    pub(super) fn stacked(&self) -> Option<Array3<f64>> {
        let views: Vec<_> = self.samples.iter().map(|sample| sample.view()).collect();
        ndarray::stack(Axis(0), &views).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_samples_are_kept_in_order() {
        let mut window = Window::new(2);
        assert_eq!(window.stacked(), None);
        for n in 0..4 {
            window.push(Array2::from_elem((1, 2), f64::from(n)));
        }
        assert_eq!(window.stacked(), Some(ndarray::array![[[2.0, 2.0]], [[3.0, 3.0]]]));
    }
}
