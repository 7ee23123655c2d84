//! What a placement is worth under the scenarios, and what a change would add.
//!
//! In a scenario, with rank times `x` in units of the ideal, balancedness is `1 / max x`. The largest is taken as the
//! `p`-norm with `p` = 16: it counts ranks that are nearly the worst, which in the next step will be the worst, and it
//! has a slope. The worth of a placement is the mean over scenarios of one over that norm.

use super::holding::{EMPTY, Effect, Holding, Places};
use super::scenarios::{LANES, Lane, Scenarios, dot, total};

/// `p` is 2 to this power, 16: of 8, 16 and 32 the one with the best balance for its moves on mixtures of
/// recorded traffic (docs/benchmarks/windows.md).
pub(super) const DOUBLINGS: usize = 4;

/// Below any sum of powers that is not rounding.
const TINY: f32 = 1e-12;

#[inline]
fn power(mut y: f32) -> f32 {
    for _ in 0..DOUBLINGS {
        y *= y;
    }
    y
}

#[inline]
fn root(mut sum: f32) -> f32 {
    for _ in 0..DOUBLINGS {
        sum = sum.sqrt();
    }
    sum
}

/// Rank times of a placement under every scenario, and what follows from them. Arrays are `[ranks, groups]` or `[groups]`.
#[derive(Debug, Default)]
pub(super) struct Objective {
    groups: usize,
    time: Vec<Lane>,
    power: Vec<Lane>,
    slope: Vec<Lane>,
    /// One over the largest time: powers are taken of times relative to it, so that they do not overflow.
    scale: Vec<Lane>,
    sum: Vec<Lane>,
    /// Weight of a scenario times `scale`: worth is this over the root of the sum of powers.
    weight: Vec<Lane>,
    worth_by: Vec<Lane>,
    worth: f32,
}

impl Objective {
    /// Takes over a placement.
    pub(super) fn fit(&mut self, holding: &Holding, places: &Places, scenarios: &Scenarios) {
        let (groups, ranks) = (scenarios.groups(), places.ranks());
        self.groups = groups;
        for rows in [&mut self.time, &mut self.power, &mut self.slope] {
            rows.clear();
            rows.resize(ranks * groups, [0.0; LANES]);
        }
        for rows in [&mut self.scale, &mut self.sum, &mut self.weight, &mut self.worth_by] {
            rows.clear();
            rows.resize(groups, [0.0; LANES]);
        }
        for (&expert, &rank) in holding.row.iter().zip(&places.rank) {
            if expert == EMPTY {
                continue;
            }
            let part = places.slow[rank as usize] / holding.count[expert as usize] as f32;
            let times = &mut self.time[rank as usize * groups..][..groups];
            for (time, load) in times.iter_mut().zip(scenarios.of(expert as usize)) {
                for i in 0..LANES {
                    time[i] += load[i] * part;
                }
            }
        }
        self.weigh(scenarios);
        self.slopes(ranks);
    }

    fn weigh(&mut self, scenarios: &Scenarios) {
        for times in self.time.chunks_exact(self.groups) {
            for (most, time) in self.scale.iter_mut().zip(times) {
                for i in 0..LANES {
                    most[i] = most[i].max(time[i]);
                }
            }
        }
        self.scale.iter_mut().flatten().for_each(|most| *most = if *most > 0.0 { 1.0 / *most } else { 1.0 });
        for (times, powers) in
            self.time.chunks_exact(self.groups).zip(self.power.chunks_exact_mut(self.groups))
        {
            for (at, (time, out)) in times.iter().zip(powers).enumerate() {
                for i in 0..LANES {
                    out[i] = power(time[i] * self.scale[at][i]);
                    self.sum[at][i] += out[i];
                }
            }
        }
        let mut worth = [0.0; LANES];
        for at in 0..self.groups {
            for i in 0..LANES {
                let sum = self.sum[at][i].max(TINY);
                let weight = scenarios.weight()[at][i] * self.scale[at][i];
                let by = weight / root(sum);
                self.weight[at][i] = weight;
                self.worth_by[at][i] = by;
                worth[i] += by;
            }
        }
        self.worth = total(worth);
    }

    /// Worth lost per unit of time of each rank: the derivative.
    fn slopes(&mut self, ranks: usize) {
        for rank in 0..ranks {
            for at in 0..self.groups {
                let place = rank * self.groups + at;
                for i in 0..LANES {
                    // Worth is `weight / sum^(1/p)`, and the sum rises by `p power / time`.
                    let time = self.time[place][i];
                    let per_time = if time > 0.0 { self.power[place][i] / time } else { 0.0 };
                    self.slope[place][i] = self.worth_by[at][i] / self.sum[at][i].max(TINY) * per_time;
                }
            }
        }
    }

    /// What the placement is worth: below the mean balancedness over the scenarios, as the norm is above the largest.
    pub(super) fn worth(&self) -> f32 {
        self.worth
    }

    /// Worth lost per unit of time of a rank, by scenario, `[groups]`.
    pub(super) fn slope(&self, rank: usize) -> &[Lane] {
        &self.slope[rank * self.groups..][..self.groups]
    }

    /// To first order, what all load of a rank costs.
    pub(super) fn heat(&self, rank: usize) -> f32 {
        dot(self.slope(rank), &self.time[rank * self.groups..][..self.groups])
    }

    /// What effects add to the worth. Where they halve the largest time, small differences of large sums make this inexact.
    pub(super) fn gain(&self, effects: &[Effect], places: &Places, scenarios: &Scenarios) -> f32 {
        let mut gain = [0.0; LANES];
        for at in 0..self.groups {
            let (mut sum, mut new) = (self.sum[at], [0.0; LANES]);
            for effect in effects {
                let slow = places.slow[effect.rank as usize];
                let (a, b) = (effect.one.0 * slow, effect.two.0 * slow);
                let one = &scenarios.of(effect.one.1 as usize)[at];
                let two = &scenarios.of(effect.two.1 as usize)[at];
                let place = effect.rank as usize * self.groups + at;
                let (time, before, scale) = (&self.time[place], &self.power[place], &self.scale[at]);
                for i in 0..LANES {
                    let y = ((time[i] + a * one[i] + b * two[i]) * scale[i]).max(0.0);
                    new[i] += power(y);
                    sum[i] -= before[i];
                }
            }
            for i in 0..LANES {
                let sum = (sum[i].max(0.0) + new[i]).max(TINY);
                gain[i] += self.weight[at][i] / root(sum) - self.worth_by[at][i];
            }
        }
        total(gain)
    }
}
