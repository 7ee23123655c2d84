//! Refinement: lowers the cost of the worst rank, one small change after another.
//!
//! The worst rank gives load to a lighter one; a change is the better, the closer it brings the two to the same cost.
//! Neighbourhoods, the cheapest first: exchange of one replica for one, of two for two, replacing a replica of one
//! expert by a replica of another, and chains over three ranks. At first only the lightest ranks are asked for an
//! exchange: they have the most to take, and mostly one of them is enough. Where they are not, more and more ranks are
//! asked until one helps. A refinement ends next to the mean, or where nothing in any of these neighbourhoods lowers the
//! worst rank.

use super::chain::{ChainScratch, chain};
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

/// Most changes of a layer, for each of its ranks: far more than any takes.
const MOST_STEPS: usize = 256;

/// Memory of the refinement.
#[derive(Debug, Default)]
pub(super) struct RefineScratch {
    exchange: ExchangeScratch,
    pub(super) replace: ReplaceScratch,
    pub(super) chain: ChainScratch,
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
    /// Chains that were looked for, and those that were found.
    pub(super) chains: u64,
    pub(super) chained: u64,
    /// How refinements ended: next to the mean, where no change helps, and with more changes than a layer may take.
    pub(super) at_mean: u64,
    pub(super) at_optimum: u64,
    pub(super) at_limit: u64,
}

/// Changes the placement until its worst rank is next to the mean or no change helps.
pub(super) fn refine(state: &mut State, ranks: &Ranks, limit: usize, scratch: &mut RefineScratch) {
    let RefineScratch { exchange, replace: memory, chain: links, counts } = scratch;
    counts.refined += 1;
    let mean = state.load.iter().sum::<f64>() / ranks.speed;
    let target = mean * (1.0 + TOLERANCE);
    // Less than the least gain above the target is at it.
    let done = target + mean * LEAST_GAIN;
    let all = state.ranks();
    let near = NEAR.min(all);
    memory.holders.clear();
    let mut pause = Pause::default();
    // Every step lowers a rank by a part of the mean and raises none as high, so that this ends.
    for _ in 0..MOST_STEPS * all {
        let worst = state.worst();
        let cost = state.cost(worst);
        if cost <= done {
            counts.at_mean += 1;
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
            let aim = [highest, cost - (cost - goal) * REPLACED];
            let due = pause.is_over();
            if due {
                counts.searches += 1;
                let replaced = replace(state, worst, limit, aim, memory);
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
                counts.asked += (to - from) as u64;
                from = to;
            }
            counts.helped += u64::from(best.is_some());
            if !best.is_some() {
                if !due {
                    counts.searches += 1;
                    if replace(state, worst, limit, aim, memory) {
                        continue;
                    }
                }
                counts.chains += 1;
                if !chain(state, worst, [highest, goal], &mut memory.holders, links, exchange) {
                    counts.at_optimum += 1;
                    return;
                }
                counts.chained += 1;
                continue;
            }
        }
        best.apply(state, worst, &mut memory.holders);
    }
    counts.at_limit += 1;
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
