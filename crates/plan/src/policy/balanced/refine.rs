//! Refinement: lowers the cost of the worst rank, one small change after another.
//!
//! The worst rank gives load to a lighter one; a change is the better, the closer it brings the two to the same cost.
//! Neighbourhoods: exchange of one replica for one, of two for two, and replacing a replica of one expert by a replica
//! of another. At first only the lightest ranks are asked for an exchange: they have the most to take, and mostly one
//! of them is enough. Where they are not, more and more ranks are asked until one helps. How many are asked in all is
//! limited by the number of ranks, so that the work per layer grows as its slots do.

use super::exchange::{Exchange, ExchangeScratch, Kind, level};
use super::replace::{ReplaceScratch, replace};
use super::state::State;
use crate::layer::Ranks;

/// A layer is done when its worst rank is this close to the mean.
const TOLERANCE: f64 = 1.8e-4;

/// A change must lower the worst rank by this part of the mean...
const LEAST_GAIN: f64 = 1e-6;
/// ...and by this part of what it is above the mean.
const LEAST_PART: f64 = 1.0 / 256.0;

/// How far above the level where the worst rank meets the lightest an exchange is good enough to end the search, as a
/// part of the way up to the worst rank.
const GOOD_ENOUGH: f64 = 1.0 / 4.0;

/// The same for a replacement, as a part of the way down to that point: with few slots per rank it is one of many.
const REPLACED: f64 = 1.0 / 4.0;

/// How many of the lightest ranks are asked at first.
const NEAR: usize = 4;

/// How many times as many are asked when none of them helps.
const WIDER: usize = 2;

/// How many ranks beyond the nearest are asked in all, as a multiple of the ranks that there are.
pub(super) const MOST_ASKED: usize = 32;

/// Memory of the refinement.
#[derive(Debug, Default)]
pub(super) struct RefineScratch {
    exchange: ExchangeScratch,
    pub(super) replace: ReplaceScratch,
    /// Since the scratch was made.
    pub(super) counts: Counts,
}

/// What refinements did: how their cost grows with the number of ranks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Placements that were refined, and changes of the worst rank that were looked for.
    pub(super) refined: u64,
    pub(super) steps: u64,
    /// Ranks beyond the nearest that were asked for an exchange, and how often one of them helped.
    pub(super) asked: u64,
    pub(super) helped: u64,
    /// Replacements that were looked for.
    pub(super) searches: u64,
}

/// Changes the placement until its worst rank is next to the mean or no change helps.
pub(super) fn refine(state: &mut State, ranks: &Ranks, limit: usize, scratch: &mut RefineScratch) {
    let RefineScratch { exchange, replace: memory, counts } = scratch;
    counts.refined += 1;
    let mean = state.load.iter().sum::<f64>() / ranks.speed;
    let target = mean * (1.0 + TOLERANCE);
    let all = state.ranks();
    let (near, mut asked) = (NEAR.min(all), 0);
    memory.holders.clear();
    let mut pause = Pause::default();
    // Every step lowers a rank by a part of the mean, so that this ends; in practice far below the limit.
    for _ in 0..4 * all + 64 {
        let worst = state.worst();
        let cost = state.cost(worst);
        if cost <= target {
            return;
        }
        counts.steps += 1;
        let highest = cost - (mean * LEAST_GAIN).max((cost - mean) * LEAST_PART);
        let lowest = level(state, worst, state.ranked(0));
        let goal = target.max(lowest + (cost - lowest) * GOOD_ENOUGH);
        let mut best = Exchange::none(highest, goal);
        let found = best.search(state, worst, 0..near, Kind::One, exchange)
            || best.search(state, worst, 0..near, Kind::Two, exchange);
        if !found && !best.is_some() {
            if asked > MOST_ASKED * all {
                return;
            }
            let due = pause.is_over();
            if due {
                counts.searches += 1;
                let replaced =
                    replace(state, worst, limit, [highest, cost - (cost - goal) * REPLACED], memory);
                pause.after(replaced);
                if replaced {
                    continue;
                }
            }
            let mut from = near;
            while from < all && !best.is_some() {
                let to = (WIDER * from).min(all);
                let _ = best.search(state, worst, from..to, Kind::One, exchange)
                    || best.search(state, worst, from..to, Kind::Two, exchange);
                asked += to - from;
                counts.asked += (to - from) as u64;
                from = to;
            }
            counts.helped += u64::from(best.is_some());
            if !best.is_some() {
                if due {
                    return;
                }
                counts.searches += 1;
                if !replace(state, worst, limit, [highest, cost - (cost - goal) * REPLACED], memory) {
                    return;
                }
            }
        }
        best.apply(state, worst, &mut memory.holders);
    }
}

/// How long a search that keeps failing is left out: twice as long each time.
#[derive(Debug, Default)]
struct Pause {
    left: u32,
    length: u32,
}

impl Pause {
    /// Whether it is time to search again; counts.
    fn is_over(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    fn after(&mut self, success: bool) {
        self.length = if success { 0 } else { (2 * self.length).max(1) };
        self.left = self.length + 1;
    }
}
