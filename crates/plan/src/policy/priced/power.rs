//! A smooth stand-in for the worst rank.

/// A power mean of the ranks' times stands for the worst of them, so that it is worth something to relieve one of several
/// ranks that are equally late. The power is 2^`doublings`: products and square roots alone, equal on every machine.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Power {
    doublings: u32,
    /// Times are divided by this one first.
    scale: f64,
    unit: f64,
}

impl Power {
    pub(super) fn new(doublings: u32, scale: f64) -> Self {
        let scale = if scale > 0.0 { scale } else { 1.0 };
        Self { doublings, scale, unit: 1.0 / scale }
    }

    #[inline]
    pub(super) fn of(self, time: f64) -> f64 {
        (0..self.doublings).fold(time * self.unit, |power, _| power * power)
    }

    #[inline]
    pub(super) fn root(self, sum: f64) -> f64 {
        (0..self.doublings).fold(sum.max(0.0), |root, _| root.sqrt()) * self.scale
    }
}
