//! Random numbers that are the same on every host and in every version of this crate.

/// xoshiro256++ (Blackman and Vigna 2018), seeded through SplitMix64 as its authors advise.
#[derive(Debug, Clone)]
pub(super) struct Rng {
    state: [u64; 4],
    spare: Option<f64>,
}

impl Rng {
    /// The generator of one part of a trace: another `key` gives numbers that have nothing to do with these.
    pub(super) fn keyed(seed: u64, key: &[u64]) -> Self {
        let mut mixer = seed;
        for &word in key {
            mixer = split_mix(&mut mixer) ^ word;
        }
        Self { state: std::array::from_fn(|_| split_mix(&mut mixer)), spare: None }
    }

    pub(super) fn next(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let out = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        out
    }

    /// Uniform in 0..1, a multiple of 2^-53.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * f64::EPSILON / 2.0
    }

    /// Uniform in 0..n, without bias (Lemire 2019). `n` must not be 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        let mut product = u128::from(self.next()) * u128::from(n);
        if (product as u64) < n {
            let least = n.wrapping_neg() % n;
            while (product as u64) < least {
                product = u128::from(self.next()) * u128::from(n);
            }
        }
        (product >> 64) as usize
    }

    /// Standard normal, by Marsaglia's polar method. The logarithm is computed in software, so its last bit does
    /// not depend on the host's mathematics library.
    pub(super) fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (x, y) = (2.0 * self.unit() - 1.0, 2.0 * self.unit() - 1.0);
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                let factor = (-2.0 * libm::log(square) / square).sqrt();
                self.spare = Some(y * factor);
                return x * factor;
            }
        }
    }

    /// Puts the items in random order (Fisher and Yates).
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers() {
        // The first outputs of SplitMix64 from 0 and of xoshiro256++ from the state 1, 2, 3, 4, as published.
        let mut state = 0;
        assert_eq!(split_mix(&mut state), 0xe220_a839_7b1d_cdaf);
        assert_eq!(split_mix(&mut state), 0x6e78_9e6a_a1b9_65f4);
        let mut rng = Rng { state: [1, 2, 3, 4], spare: None };
        let first: Vec<u64> = (0..4).map(|_| rng.next()).collect();
        assert_eq!(first, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
    }

    #[test]
    fn moments_are_right() {
        let mut rng = Rng::keyed(1, &[2]);
        let n = 100_000;
        let (mut sum, mut squares, mut units) = (0.0, 0.0, 0.0);
        let mut below = [0; 3];
        for _ in 0..n {
            let x = rng.normal();
            sum += x;
            squares += x * x;
            let unit = rng.unit();
            assert!((0.0..1.0).contains(&unit));
            units += unit;
            below[rng.below(3)] += 1;
        }
        let n = f64::from(n);
        assert!((sum / n).abs() < 0.02 && (squares / n - 1.0).abs() < 0.02 && (units / n - 0.5).abs() < 0.01);
        assert!(below.iter().all(|&b| (f64::from(b) / n - 1.0 / 3.0).abs() < 0.01), "{below:?}");
    }

    #[test]
    fn keys_and_shuffles() {
        assert_ne!(Rng::keyed(1, &[1, 2]).next(), Rng::keyed(1, &[2, 1]).next());
        assert_ne!(Rng::keyed(1, &[0]).next(), Rng::keyed(2, &[0]).next());
        let mut items: Vec<u32> = (0..50).collect();
        Rng::keyed(3, &[]).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
