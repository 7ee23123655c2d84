//! The loads of one layer in the order in which proofs look at them.

use std::ops::Range;

use ndarray::ArrayView1;

/// Places of the order that [`SortedLoads::search`] looks at first.
const GRID: usize = 16;

/// Loads of one layer, largest first.
#[derive(Debug, Clone, Default)]
pub(super) struct SortedLoads {
    desc: Vec<f64>,
    /// Bits of the loads: they sort as the loads do, as no load is below 0, and faster.
    bits: Vec<u64>,
    /// Sum of the loads from index `i` on, added up from the smallest; one entry more than there are loads.
    tail: Vec<f64>,
}

impl SortedLoads {
    /// Takes over the loads of a layer, `[E]`.
    pub(super) fn fill(&mut self, row: ArrayView1<'_, f64>) {
        self.bits.clear();
        // Adding 0 makes a negative zero positive.
        self.bits.extend(row.iter().map(|load| (load + 0.0).to_bits()));
        self.bits.sort_unstable();
        self.desc.clear();
        self.desc.extend(self.bits.iter().rev().map(|&bits| f64::from_bits(bits)));
        self.tail.clear();
        self.tail.resize(self.desc.len() + 1, 0.0);
        let mut sum = 0.0;
        for (tail, load) in self.tail.iter_mut().zip(&self.desc).rev() {
            sum += load;
            *tail = sum;
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.desc.len()
    }

    #[inline]
    pub(super) fn desc(&self) -> &[f64] {
        &self.desc
    }

    #[inline]
    pub(super) fn total(&self) -> f64 {
        self.tail[0]
    }

    /// The loads above `limit`.
    #[inline]
    pub(super) fn above(&self, limit: f64) -> &[f64] {
        &self.desc[..self.desc.partition_point(|&load| load > limit)]
    }

    /// How many loads are `limit` or more.
    #[inline]
    pub(super) fn count_from(&self, limit: f64) -> usize {
        self.desc.partition_point(|&load| load >= limit)
    }

    /// Sum of the loads from index `from` up to, but without, index `to`.
    #[inline]
    pub(super) fn sum(&self, from: usize, to: usize) -> f64 {
        self.tail[from] - self.tail[to]
    }

    /// Sum of `min(load, limit)` over the loads from index `from` on.
    #[inline]
    pub(super) fn sum_capped(&self, from: usize, limit: f64) -> f64 {
        let capped = self.desc[from..].partition_point(|&load| load > limit);
        capped as f64 * limit + self.tail[from + capped]
    }

    /// Shows `consider` places of the order within `range`, which has one at least: a grid over all of it, or the place `near` alone, then
    /// those around the best, closer and closer. `consider` tells whether a place is better than all that it has seen.
    #[inline]
    pub(super) fn search(
        &self,
        range: Range<usize>,
        near: Option<usize>,
        mut consider: impl FnMut(usize) -> bool,
    ) {
        debug_assert!(range.end <= self.len(), "the order ends before {}", range.end);
        let (first, last) = (range.start, range.end - 1);
        let mut at = first;
        let mut look = |index: usize, at: &mut usize| {
            if consider(index) {
                *at = index;
            }
        };
        if let Some(near) = near {
            look(near.clamp(first, last), &mut at);
        } else {
            let points = (last - first).min(GRID - 1);
            for point in 0..=points {
                look(first + point * (last - first) / points.max(1), &mut at);
            }
        }
        let mut step = (last - first) / GRID;
        while step > 0 {
            for index in [at.saturating_sub(step).max(first), (at + step).min(last)] {
                look(index, &mut at);
            }
            step /= 2;
        }
    }
}
