//! What the ranks of a layer should carry.

use super::ranks::RankTable;

/// Steps of the search for the bound; each halves what is left of the interval.
const STEPS: usize = 40;

/// The load per unit of speed that no placement can bring the busiest rank below, for loads `weight` (`[E]`) and at
/// most `limit` replicas each: the mean, or more where heavy experts need more slots than there are. It is the
/// bound of [`eplb_core::bound`], found over the heavy experts alone, which are listed in `heavy`.
pub(super) fn aim(weight: &[f64], ranks: &RankTable, limit: u32, heavy: &mut Vec<f64>) -> f64 {
    let total: f64 = weight.iter().sum();
    let mean = total / ranks.total_speed();
    let (fastest, limit) = (ranks.fastest(), f64::from(limit));
    let full = mean * fastest;
    heavy.clear();
    heavy.extend(weight.iter().copied().filter(|&w| w > full));
    // Slots beyond the first one of each expert.
    let spare = ranks.live_slots() as f64 - weight.len() as f64;
    let fits = |load: f64| {
        let further = heavy.iter().map(|w| (w / (load * fastest) * (1.0 - 1e-12)).ceil().max(1.0) - 1.0);
        further.sum::<f64>() <= spare
    };
    let heaviest = heavy.iter().copied().fold(0.0, f64::max) / fastest;
    let least = if heaviest > mean * limit { heaviest / limit } else { mean };
    if spare < 0.0 || fits(least) {
        return least;
    }
    let (mut low, mut high) = (least, heaviest);
    for _ in 0..STEPS {
        let middle = 0.5 * (low + high);
        *(if fits(middle) { &mut high } else { &mut low }) = middle;
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use eplb_core::Topology;

    #[test]
    fn heavy_experts_raise_the_aim() {
        let ranks = RankTable::new(&Topology::uniform(4, 8).unwrap());
        let mut heavy = Vec::new();
        // The mean is 4; the first expert alone can be split over both spare slots.
        assert_eq!(aim(&[6.0, 3.0, 2.0, 2.0, 2.0, 1.0], &ranks, u32::MAX, &mut heavy), 4.0);
        // No slot to spare: what the heaviest carries.
        let aimed = aim(&[20.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], &ranks, u32::MAX, &mut heavy);
        assert!((aimed - 20.0).abs() < 1e-9, "{aimed}");
        // Two replicas allowed, slots for more.
        assert_eq!(aim(&[20.0, 1.0, 1.0], &ranks, 2, &mut heavy), 10.0);
    }
}
