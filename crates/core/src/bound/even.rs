//! Fourth proof, at even split only: what fits beside a large piece comes in unit fractions.
//!
//! At even split all `c` replicas of an expert of `w` tokens are pieces of `w / c`, so the gap beside a large piece cannot
//! be filled with crumbs. Fix `m <= s` and weigh a piece of `y` tokens
//! - `g(y) = min(y, s / ceil(m / y))` if it is small, so that an expert of `w >= m` tokens weighs `min(w, s)` or more
//!   however often it is cut: `c g(w / c) = min(w, c s / ceil(c m / w))` and `ceil(c m / w) <= c`;
//! - `S s - G(T - y)` if `y > T - (S - 1) s`, where `G(z)` is the most that `S - 1` small pieces of together `z` tokens
//!   weigh. A small piece may shrink to the next `s / k` at no loss, so `G(z) = min(z, s q)` with `q` the largest sum of
//!   `S - 1` unit fractions that is `z / m` at most.
//!
//! A rank loaded `T` at most that holds `S` pieces then holds `S s` at most in weight, as long as two large pieces do not
//! fit (`2 (S - 1) s <= T`). If the experts, each cut as suits it best with the slots that there are, weigh more
//! than all ranks can hold, `T` is too small.

use super::fractions::{MOST, largest_sum};
use super::ranks::{Ranks, round_up};
use super::sorted::SortedLoads;

/// How often a proof that carried is followed by a search for a better one.
const ROUNDS: usize = 8;

/// The proof with its scratch memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Even {
    /// Weight of one expert by number of replicas.
    weights: Vec<f64>,
    /// Weight that replicas take away, per slot, and how many slots go at that rate.
    offers: Vec<(f64, f64)>,
}

/// A choice of the proof's parameters: `s`, `m`, and the slots `S` of the ranks it is made for.
#[derive(Debug, Clone, Copy)]
struct Weights {
    small: f64,
    smallest: f64,
    slots: f64,
}

impl Even {
    /// Raises `known`, a rank load that is proved already, as far as the argument carries. Of ranks that are not equally
    /// fast, or where nothing is proved yet, it says nothing.
    pub(super) fn prove(&mut self, loads: &SortedLoads, ranks: &Ranks, known: f64) -> f64 {
        if known <= 0.0 || ranks.classes[0].speed != ranks.top_speed {
            return known;
        }
        let mut proved = known;
        for _ in 0..ROUNDS {
            // A step off the point where the proof before this one ends, as the need for replicas changes there.
            let start = proved * (1.0 + 1e-9);
            let Some(weights) = self.search(loads, ranks, start) else { break };
            let raised = self.raise(loads, ranks, start, weights);
            let gain = raised / proved - 1.0;
            proved = raised;
            if gain < 1e-6 {
                break;
            }
        }
        proved
    }

    /// The weights that promise most at `rank_load`, `None` if no weights tried show an excess.
    fn search(&mut self, loads: &SortedLoads, ranks: &Ranks, rank_load: f64) -> Option<Weights> {
        let last = loads.above(0.0).len();
        let (mut best, mut most) = (None, 0.0);
        let (few, many) = ranks.classes.iter().fold((f64::INFINITY, 0.0f64), |(few, many), class| {
            (few.min(class.slots), many.max(class.slots))
        });
        let reach = rank_load * ranks.top_speed;
        for slots in [few, many].into_iter().take(if few == many { 1 } else { 2 }) {
            // With one slot nothing sits beside a piece; with many, gaps between sums of fractions are not told apart.
            if slots < 2.0 || slots > (MOST + 1) as f64 {
                continue;
            }
            let first = loads.above(reach / (2.0 * (slots - 1.0))).len();
            if first >= last {
                continue;
            }
            let smallest = loads.desc()[last - 1];
            let consider = |index: usize| {
                let (small, before) = (loads.desc()[index], most);
                for smallest in [smallest, small] {
                    let weights = Weights { small, smallest, slots };
                    let excess = self.excess(loads, ranks, rank_load, weights) / small;
                    if excess > most {
                        (best, most) = (Some(weights), excess);
                    }
                }
                most > before
            };
            loads.search(first..last, None, consider);
        }
        best
    }

    /// Largest rank load found at which `weights` still show an excess, starting from one at which they do.
    fn raise(&mut self, loads: &SortedLoads, ranks: &Ranks, start: f64, weights: Weights) -> f64 {
        let (mut proved, mut step) = (start, 1e-4);
        while step > 1e-8 {
            let next = proved * (1.0 + step);
            if self.excess(loads, ranks, next, weights) > 0.0 {
                proved = next;
                step *= 2.0;
            } else {
                step *= 0.25;
            }
        }
        proved
    }

    /// Tokens of weight by which the experts exceed what the ranks can hold, 0 or less if they do not for certain.
    fn excess(&mut self, loads: &SortedLoads, ranks: &Ranks, rank_load: f64, weights: Weights) -> f64 {
        let Weights { small, smallest, slots } = weights;
        let reach = rank_load * ranks.top_speed;
        let large = reach - (slots - 1.0) * small;
        if large < (slots - 1.0) * small {
            return 0.0;
        }
        let hot = loads.above(large);
        let others = (ranks.slots - (loads.len() - hot.len())) as f64;
        if hot.iter().map(|load| round_up(load / large)).sum::<f64>() <= others {
            // Slots enough to leave no large piece, and then no rank holds too much.
            return 0.0;
        }
        let cold = loads.count_from(smallest).max(hot.len());
        // Below `m` an expert cut in many pieces loses up to half of `s / m`.
        let crumbs = (small / (2.0 * smallest)).min(1.0);
        let mut tokens = loads.sum_capped(hot.len(), small) - loads.sum_capped(cold, small)
            + crumbs * loads.sum_capped(cold, small);
        let (mut spare, mut offered) = (others, 0.0);
        self.offers.clear();
        for &load in hot {
            let least = round_up(load * (1.0 - 1e-12) / reach).max(1.0);
            let enough = round_up(load / large).max(least);
            spare -= least;
            self.weights.clear();
            let mut count = least;
            while count < enough && count <= ranks.max_copies {
                // A gap that is too small by rounding alone still takes what fits.
                let gap = (reach * (1.0 + 1e-12) - load / count).max(0.0);
                let beside = gap.min(small * largest_sum(slots as usize - 1, gap / smallest));
                self.weights.push(count * (slots * small - beside));
                count += 1.0;
            }
            if enough <= ranks.max_copies {
                self.weights.push((enough * small).min(load * crumbs));
            }
            let Some(&weight) = self.weights.first() else { return f64::INFINITY };
            tokens += weight;
            let mut from = 0;
            while let Some((to, rate)) = steepest(&self.weights, from) {
                self.offers.push((rate, (to - from) as f64));
                offered += (to - from) as f64;
                from = to;
            }
        }
        if spare < 0.0 {
            return f64::INFINITY;
        }
        if offered > spare {
            self.offers.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
        }
        for &(rate, count) in &self.offers {
            let count = count.min(spare);
            tokens -= rate * count;
            spare -= count;
        }
        let held: f64 = ranks.classes.iter().map(|class| class.ranks * class.slots.max(slots) * small).sum();
        let margin = (4 * loads.len() + 64) as f64 * f64::EPSILON * rank_load * ranks.speed;
        let excess = tokens - held;
        if excess > margin { excess } else { 0.0 }
    }
}

/// The later entry to which `weights` fall fastest from entry `from`, and the fall per entry; `None` if none is lower.
fn steepest(weights: &[f64], from: usize) -> Option<(usize, f64)> {
    let mut best = None;
    for (to, weight) in weights.iter().enumerate().skip(from + 1) {
        let rate = (weights[from] - weight) / (to - from) as f64;
        if rate > best.map_or(0.0, |(_, rate)| rate) {
            best = Some((to, rate));
        }
    }
    best
}
