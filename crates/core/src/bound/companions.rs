//! Third proof: who sits beside the large pieces.
//!
//! A rank that holds a piece near `T` must fill its other slots with experts next to nothing, and there are only so
//! many of those. Fix `s, D >= 0` and weigh a piece of `x` tokens `h(x) = max(min(x, s), x - D)`. A rank with `S`
//! slots and speed `v` that is loaded `T` at most holds pieces of at most `min(T v, max(S s, T v - D))` in
//! weight: pieces up to `D + s` weigh `s` at most, and of `m >= 1` pieces above that each gives up `D` of the
//! tokens `T v`. An expert of `w` tokens cut into `c` pieces in any way weighs at least
//! - `w - c D` while `c (D + s) <= w`, and
//! - `k s + min(w - k (D + s), s)` from there on, with `k = floor(w / (D + s))`,
//!
//! convex in `c`: the least total over all ways to hand out the slots is found by giving each spare slot where it
//! takes away most. If that total exceeds what the ranks can hold, `T` is too small. As `s` falls to 0 this becomes
//! the slot count, with `D = 0` the mean. `h` is a dual feasible function (Fekete and Schepers, "New classes of fast
//! lower bounds for bin packing problems", 2001), here for bins with a cardinality and items that may be split.

use super::ranks::Ranks;
use super::sorted::SortedLoads;

/// Classes of ranks tried for `D`.
const CLASSES: usize = 6;
/// How often a proof that carried is followed by a search for a better one.
const ROUNDS: usize = 12;

/// The proof with its scratch memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Companions {
    /// Weight that one more replica takes from an expert's remainder, and the pieces of `D + s` beside it.
    remainders: Vec<(f64, f64)>,
}

/// By how much experts outweigh what the ranks can hold, in tokens, and how fast that falls as rank load grows.
#[derive(Debug, Clone, Copy)]
struct Excess {
    tokens: f64,
    slope: f64,
}

/// A choice of the proof's parameters: `s`, and the class for which `D = T v - S s`.
#[derive(Debug, Clone, Copy)]
struct Weights {
    small: f64,
    class: usize,
}

impl Companions {
    /// Raises `known`, a rank load that is proved already, as far as the argument carries.
    pub(super) fn prove(&mut self, loads: &SortedLoads, ranks: &Ranks, known: f64) -> f64 {
        let (mut proved, mut near) = (known, None);
        for _ in 0..ROUNDS {
            // A step off the point where the proof before this one ends, as the need for replicas changes there.
            let start = proved * (1.0 + 1e-9);
            // More than additions of this size can be wrong by: an excess below it proves nothing.
            let margin = (4 * loads.len() + 64) as f64 * f64::EPSILON * start * ranks.speed;
            let Some((index, class)) = self.search(loads, ranks, start, near, margin) else {
                if near.take().is_some() {
                    continue;
                }
                break;
            };
            let raised =
                self.raise(loads, ranks, start, Weights { small: loads.desc()[index], class }, margin);
            let gain = raised / proved - 1.0;
            proved = raised;
            if gain < 1e-6 && near.is_none() {
                break;
            }
            // Where the best `s` lies changes little from here on, until nothing is gained there any more.
            near = (gain > 1e-5).then_some(index);
        }
        proved
    }

    /// The expert whose load as `s`, and the class, that promise most at `rank_load`; `None` if no weights tried show an
    /// excess. The best `s` is nearly always the load of an expert: a grid over their order, or the place `near`
    /// which the last search ended, is refined around its best point.
    fn search(
        &mut self,
        loads: &SortedLoads,
        ranks: &Ranks,
        rank_load: f64,
        near: Option<usize>,
        margin: f64,
    ) -> Option<(usize, usize)> {
        let most = ranks.classes.iter().map(|c| rank_load * c.speed / c.slots).fold(0.0, f64::max);
        let (first, last) = (loads.above(most).len(), loads.above(0.0).len());
        if first >= last {
            return None;
        }
        let (mut best, mut best_rise) = (None, f64::NEG_INFINITY);
        let tried = ranks.classes.len().min(CLASSES);
        let consider = |index: usize| {
            let before = best_rise;
            for pick in 0..tried {
                let class = pick * (ranks.classes.len() - 1) / (tried - 1).max(1);
                let weights = Weights { small: loads.desc()[index], class };
                let excess = self.excess(loads, ranks, rank_load, weights);
                let rise = excess.tokens / excess.slope.max(1e-3 * ranks.top_speed);
                if rise > best_rise {
                    best = (excess.tokens > margin).then_some((index, class));
                    best_rise = rise;
                }
            }
            best_rise > before
        };
        loads.search(first..last, near, consider);
        best
    }

    /// Largest rank load found at which `weights` still show an excess, starting from one at which they do.
    fn raise(
        &mut self,
        loads: &SortedLoads,
        ranks: &Ranks,
        start: f64,
        weights: Weights,
        margin: f64,
    ) -> f64 {
        let (mut proved, mut open) = (start, f64::INFINITY);
        let mut excess = self.excess(loads, ranks, start, weights);
        for _ in 0..32 {
            // Aims at a small excess, not at none: the excess is linear in pieces, and this lands on the provable side.
            let newton = proved + (excess.tokens - 2.0 * margin) / excess.slope.max(f64::MIN_POSITIVE);
            let next = if newton < open {
                newton
            } else if open.is_finite() {
                0.5 * (proved + open)
            } else {
                2.0 * proved
            };
            if next <= proved * (1.0 + 1e-9) {
                break;
            }
            let found = self.excess(loads, ranks, next, weights);
            if found.tokens > margin {
                (proved, excess) = (next, found);
            } else {
                open = next;
            }
        }
        proved
    }

    fn excess(&mut self, loads: &SortedLoads, ranks: &Ranks, rank_load: f64, weights: Weights) -> Excess {
        let small = weights.small;
        let class = ranks.classes[weights.class];
        let discount = (rank_load * class.speed - class.slots * small).max(0.0);
        // Change of `D` per unit of rank load.
        let per_load = if discount > 0.0 { class.speed } else { 0.0 };
        let large = discount + small;
        // Experts above `large` once, but not twice, that need no second replica: all but a few, and sums tell all.
        let hot = loads.above(large).len();
        let hottest = loads.above((2.0 * large).min(rank_load * ranks.top_speed).max(large)).len();
        let once = (hot - hottest) as f64;
        let mut tokens = loads.sum_capped(hot, small) + loads.sum(hottest, hot) - once * discount;
        let mut slope = once * per_load;
        let mut spare = (ranks.slots - (loads.len() - hottest)) as f64;
        // Remainders are what a further replica takes away.
        let remainders =
            if ranks.max_replicas > 1.0 { loads.above(large + small).len().max(hottest) } else { hottest };
        let (mut remainder_count, mut steps) = (remainders - hottest, 0.0);
        let mut remainder_tokens = loads.sum(hottest, remainders) - remainder_count as f64 * (large + small);
        let mut remainder_pieces = remainder_count as f64;
        self.remainders.clear();
        for &load in &loads.desc()[..hottest] {
            let least = ranks.replicas(load, rank_load);
            let full = f64::from((load / large) as u32);
            let rest = load - full * large;
            spare -= least;
            if least > full {
                tokens += full * small + rest.min(small);
                slope += if rest < small { full * per_load } else { 0.0 };
                continue;
            }
            tokens += load - least * discount;
            slope += least * per_load;
            steps += full.min(ranks.max_replicas) - least;
            if rest > small && full < ranks.max_replicas {
                self.remainders.push((rest - small, full));
                remainder_count += 1;
                remainder_tokens += rest - small;
                remainder_pieces += full;
            }
        }
        // Spare slots take `D` each where an expert exceeds another piece of `D + s`, then what remains.
        let taken = steps.min(spare);
        tokens -= taken * discount;
        slope += taken * per_load;
        let left = (spare - taken).max(0.0) as usize;
        if left < remainder_count {
            let once = &loads.desc()[hottest..remainders];
            self.remainders.extend(once.iter().take(left).map(|load| (load - large - small, 1.0)));
            self.remainders.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
            let largest = &self.remainders[..left];
            remainder_tokens = largest.iter().map(|r| r.0).sum();
            remainder_pieces = largest.iter().map(|r| r.1).sum();
        }
        tokens -= remainder_tokens;
        slope -= remainder_pieces * per_load;
        for class in &ranks.classes {
            let (reach, by_slots) = (rank_load * class.speed, class.slots * small);
            if reach - discount > by_slots {
                tokens -= class.ranks * (reach - discount);
                slope += class.ranks * (class.speed - per_load);
            } else if reach > by_slots {
                tokens -= class.ranks * by_slots;
            } else {
                tokens -= class.ranks * reach;
                slope += class.ranks * class.speed;
            }
        }
        Excess { tokens, slope }
    }
}
