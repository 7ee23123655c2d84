//! Refinement: lowers the cost of the worst rank, one small change after another.
//!
//! The worst rank `a` gives load to a lighter rank `b`; a change is the better, the closer it brings the two to the same
//! cost. Neighbourhoods, from cheap to dear: exchange of one replica for one, of two for two, replacing a replica of
//! one expert by a replica of another. At first only the lightest ranks are asked, they have the most to take; all
//! are asked before a layer is given up.

use super::exchange::{Exchange, ExchangeScratch, Kind};
use super::replace::{ReplaceScratch, replace};
use super::state::State;
use crate::layer::Ranks;

/// A layer is done when its worst rank is this close to the mean.
const TOLERANCE: f64 = 1.6e-4;

/// A change must lower the worst rank by this part of the mean...
const LEAST_GAIN: f64 = 1e-6;
/// ...and by this part of what it is above the mean.
const LEAST_PART: f64 = 1.0 / 512.0;

const SHORT: f64 = 1.0 / 8.0;

/// How many of the lightest ranks are asked at first, for exchanges of one and of two replicas.
const NEAR: [usize; 2] = [8, 4];

/// Memory of the refinement.
#[derive(Debug, Default)]
pub(super) struct RefineScratch {
    exchange: ExchangeScratch,
    replace: ReplaceScratch,
}

/// Changes the placement until its worst rank is next to the mean or no change helps.
pub(super) fn refine(state: &mut State, ranks: &Ranks, limit: usize, scratch: &mut RefineScratch) {
    let mean = state.load.iter().sum::<f64>() / ranks.speed;
    let target = mean * (1.0 + TOLERANCE);
    let all = state.ranks();
    for _ in 0..4 * all + 64 {
        let worst = state.worst();
        let cost = state.cost(worst);
        if cost <= target {
            break;
        }
        let gain = (mean * LEAST_GAIN).max((cost - mean) * LEAST_PART);
        let search = &mut scratch.exchange;
        let goal =
            target.max(super::exchange::level(state, worst, state.ranked(0)) * (1.0 - SHORT) + cost * SHORT);
        let mut best = Exchange::none(cost - gain);
        let found = best.search(state, worst, 0..NEAR[0].min(all), Kind::One, goal, search)
            || best.search(state, worst, 0..NEAR[1].min(all), Kind::Two, goal, search);
        if !(found || best.is_some()) {
            if replace(state, worst, limit, cost - gain, &mut scratch.replace) {
                continue;
            }
            let _ = best.search(state, worst, NEAR[0].min(all)..all, Kind::One, goal, search)
                || best.search(state, worst, NEAR[1].min(all)..all, Kind::Two, goal, search);
        }
        if !best.apply(state) {
            break;
        }
    }
}
