//! The bound against the truth: every placement of small cases, planted plans of real size, and what must not matter.

mod exhaustive;
mod planted;
mod properties;

/// A random number generator that gives the same cases on every machine (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// About normal: mean 0, deviation 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// Loads of one of the kinds seen in practice, or small whole numbers, where ties and perfect fits abound.
    fn loads(&mut self, experts: usize) -> Vec<f64> {
        let kind = self.below(4);
        let exponent = 0.6 + 1.2 * self.unit();
        (0..experts)
            .map(|e| match kind {
                0 => self.below(8) as f64,
                1 => ((e + 1) as f64).powf(-exponent) * 1000.0,
                2 => self.normal().exp(),
                _ => self.unit() + 0.1,
            })
            .collect()
    }
}
