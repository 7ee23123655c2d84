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
        raise(time * self.unit, self.doublings)
    }

    #[inline]
    pub(super) fn root(self, sum: f64) -> f64 {
        (0..self.doublings).fold(sum.max(0.0), |root, _| root.sqrt()) * self.scale
    }
}

/// `base` to the power of 2^`doublings`. In a straight line for the powers in use: this is what changes are weighed by.
#[inline]
pub(super) fn raise(base: f64, doublings: u32) -> f64 {
    match doublings {
        3 => squared::<3>(base),
        5 => squared::<5>(base),
        6 => squared::<6>(base),
        9 => squared::<9>(base),
        _ => (0..doublings).fold(base, |power, _| power * power),
    }
}

#[inline]
fn squared<const TIMES: usize>(base: f64) -> f64 {
    (0..TIMES).fold(base, |power, _| power * power)
}
