//! Scenarios of a layer: the steps of the window, each a sample of what a step to come may look like.

use eplb_core::LoadMatrix;

use super::drift::carry_on;
use crate::options::Window;

/// Scenarios that are computed side by side.
pub(super) const LANES: usize = 4;

/// One number for each of some scenarios.
pub(super) type Lane = [f32; LANES];

/// Steps older than so many half-lives weigh less than a sixty-fourth of the newest and are left out.
const HALF_LIVES: f64 = 6.0;

/// What each step of a window weighs, and which steps make up a scenario; the same for all layers.
#[derive(Debug)]
pub(super) struct Recency {
    /// First step that counts.
    first: usize,
    /// Consecutive steps whose mean is one scenario.
    block: usize,
    /// Weight of each step from `first` on; the newest has 1.
    weight: Vec<f64>,
    /// Part of the measured drift that is expected to go on.
    drift: f64,
}

impl Recency {
    /// Weights of a window of `steps` steps.
    pub(super) fn new(steps: usize, window: &Window) -> Self {
        let reach = window.half_life * HALF_LIVES;
        let first = if reach < steps as f64 { steps - (reach as usize).max(1) } else { 0 };
        let used = steps - first;
        // `libm`, not the host's library: weights are equal on every machine.
        let weight = (0..used).map(|at| libm::exp2(-((used - 1 - at) as f64) / window.half_life)).collect();
        Self { first, block: used.div_ceil(window.scenarios), weight, drift: window.drift }
    }
}

/// A step of a window, or the mean of some.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    pub(super) weight: f64,
    /// Steps before the newest.
    pub(super) age: f64,
    /// Load of each expert, `[E]`.
    pub(super) row: Vec<f64>,
}

/// Loads of a layer under each scenario, scaled so that the ideal load of a rank is 1.
#[derive(Debug, Default)]
pub(super) struct Scenarios {
    groups: usize,
    load: Vec<Lane>,
    weight: Vec<Lane>,
    worth: f32,
    row: Vec<f64>,
    scenarios: Vec<Sample>,
}

impl Scenarios {
    /// Fills in the steps of `layer`; steps in which it is idle say nothing about it. False if all are: then there is one
    /// scenario, in which all experts are alike.
    pub(super) fn fill(&mut self, loads: &LoadMatrix, layer: usize, recency: &Recency, ranks: usize) -> bool {
        let experts = loads.experts();
        self.row.clear();
        self.row.resize(experts, 0.0);
        let mut used = 0;
        let (mut sum, mut squares) = (0.0, 0.0);
        for (block, weights) in recency.weight.chunks(recency.block).enumerate() {
            self.row.fill(0.0);
            let (mut weighed, mut age) = (0.0, 0.0);
            for (at, &weight) in weights.iter().enumerate() {
                let step = loads.step(recency.first + block * recency.block + at);
                let row = step.row(layer);
                let total = row.sum();
                if total > 0.0 {
                    let part = weight * (ranks as f64 / total);
                    // A load times a part may overflow or vanish where the load over the total does not.
                    if part.is_normal() {
                        self.row.iter_mut().zip(row).for_each(|(sum, &load)| *sum += load * part);
                    } else {
                        let scale = weight * ranks as f64;
                        self.row.iter_mut().zip(row).for_each(|(sum, &load)| *sum += load / total * scale);
                    }
                    weighed += weight;
                    age += weight * (recency.weight.len() - 1 - block * recency.block - at) as f64;
                    sum += weight;
                    squares += weight * weight;
                }
            }
            if weighed > 0.0 {
                if used == self.scenarios.len() {
                    self.scenarios.push(Sample { weight: 0.0, age: 0.0, row: Vec::new() });
                }
                let sample = &mut self.scenarios[used];
                (sample.weight, sample.age) = (weighed, age / weighed);
                sample.row.clear();
                sample.row.extend(self.row.iter().map(|&load| load / weighed));
                used += 1;
            }
        }
        let busy = used > 0;
        if !busy {
            self.scenarios.truncate(0);
            let row = vec![ranks as f64 / experts as f64; experts];
            self.scenarios.push(Sample { weight: 1.0, age: 0.0, row });
            (used, sum, squares) = (1, 1.0, 1.0);
        }
        self.worth = (sum * sum / squares) as f32;
        carry_on(&mut self.scenarios[..used], recency.drift, sum * sum / squares);
        self.pack(used, experts, sum);
        busy
    }

    /// Turns rows of experts into lanes of scenarios. What fills up the last lane has no weight.
    fn pack(&mut self, used: usize, experts: usize, sum: f64) {
        self.groups = used.div_ceil(LANES);
        self.load.clear();
        self.load.resize(experts * self.groups, [0.0; LANES]);
        self.weight.clear();
        self.weight.resize(self.groups, [0.0; LANES]);
        for at in 0..self.groups * LANES {
            let Sample { weight, row, .. } = &self.scenarios[at.min(used - 1)];
            if at < used {
                self.weight[at / LANES][at % LANES] = (weight / sum) as f32;
            }
            for (lanes, &load) in self.load.chunks_exact_mut(self.groups).zip(row) {
                lanes[at / LANES][at % LANES] = load as f32;
            }
        }
    }

    /// Lanes of each expert.
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    /// Loads of an expert, `[groups]`.
    pub(super) fn of(&self, expert: usize) -> &[Lane] {
        &self.load[expert * self.groups..][..self.groups]
    }

    /// Weight of each scenario, `[groups]`, summing to 1.
    pub(super) fn weight(&self) -> &[Lane] {
        &self.weight
    }

    /// Number of steps of equal weight that say as much as these.
    pub(super) fn worth(&self) -> f32 {
        self.worth
    }

    /// Mean load of an expert over the scenarios.
    pub(super) fn mean(&self, expert: usize) -> f32 {
        dot(self.of(expert), &self.weight)
    }
}

/// Sum of the products. The order of additions is fixed.
#[inline]
pub(super) fn dot(a: &[Lane], b: &[Lane]) -> f32 {
    let mut sum = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sum[i] += a[i] * b[i];
        }
    }
    total(sum)
}

/// Sum of a lane.
#[inline]
pub(super) fn total(lane: Lane) -> f32 {
    (lane[0] + lane[2]) + (lane[1] + lane[3])
}
