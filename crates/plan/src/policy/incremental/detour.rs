//! Ways around ranks whose budget is spent.
//!
//! Layers climb without knowing of each other. With a budget per rank, [`Market::spend`] therefore comes to layers whose
//! next stop needs a rank that other layers have used up. Such a layer climbs again from its start, with what is left of
//! each rank's budget as a wall, and takes what it finds there if that is better. Layers go one after another, the worst
//! first, a part of the way at a time, so that the first does not take all that is left.

use super::climb::Goal;
use super::layer::Scratch;
use super::path::Path;
use super::spend::Market;

/// How far layers climb, as parts of the way from the mean of all to full balance.
const LEVELS: [f64; 3] = [0.0, 0.4, 1.0];

/// A gain below this is none.
const LEAST_GAIN: f64 = 1e-9;

impl Market<'_> {
    /// Takes layers further than [`Market::spend`] could with paths that go around ranks whose budget is spent. `each`
    /// is called after every purchase. Does nothing without a budget per rank.
    pub(super) fn detour(&mut self, mut each: impl FnMut(&Self)) {
        if !self.task.request.options.budget.counts_ranks() {
            return;
        }
        let mut scratch = Scratch::default();
        let mean = self.balancedness();
        for level in LEVELS.map(|part| mean + part * (1.0 - mean)) {
            let value = |market: &Self, layer: usize| market.point(layer).value;
            let mut layers: Vec<usize> =
                (0..self.paths.len()).filter(|&l| !self.idle[l] && value(self, l) < level).collect();
            layers.sort_unstable_by(|&a, &b| value(self, a).total_cmp(&value(self, b)).then(a.cmp(&b)));
            for layer in layers {
                if self.wanted().is_some_and(|wanted| self.sum >= wanted) {
                    return;
                }
                if self.go_around(layer, level, &mut scratch) {
                    each(self);
                }
            }
        }
    }

    /// Lets a layer climb again within what is left, and takes it to the best stop there; false if it stays.
    fn go_around(&mut self, layer: usize, level: f64, scratch: &mut Scratch) -> bool {
        let here = self.point(layer);
        let arrivals = self.arrivals(layer, here.way);
        let budget = self.task.request.options.budget;
        let price = self.task.request.expert_bytes(layer).unwrap_or(0);
        let affordable = |moves: Option<usize>, bytes: Option<u64>, spent: (usize, u64)| {
            let moves = moves.map_or(u64::MAX, |most| most.saturating_sub(spent.0) as u64);
            let bytes = bytes.map(|most| most.saturating_sub(spent.1).checked_div(price).unwrap_or(u64::MAX));
            u32::try_from(moves.min(bytes.unwrap_or(u64::MAX))).unwrap_or(u32::MAX)
        };
        let left = |&spent: &(usize, u64)| affordable(budget.moves_per_rank, budget.bytes_per_rank, spent);
        let ranks = self.spent.rank.iter().zip(&arrivals);
        let caps: Vec<u32> = ranks.map(|(spent, &here)| left(spent).saturating_add(here)).collect();
        let moves = here.moves.saturating_add(affordable(budget.moves, budget.bytes, self.spent()));

        let mut path = Path::default();
        self.task.climb(layer, &mut path, Goal { level, escapes: false, moves, caps: &caps }, scratch);
        let chosen = std::mem::replace(&mut self.chosen[layer], 0);
        let old = std::mem::replace(&mut self.paths[layer], path);
        let mut stops = self.paths[layer].points[..=self.worthwhile(layer)].iter();
        // Of the stops that fit, the last has the most balance.
        let best = stops.rposition(|point| {
            point.moves <= moves && point.value > here.value + LEAST_GAIN && point.worst <= here.worst
        });
        let fits = best.filter(|&stop| self.net_seconds(layer, stop) > 0.0);
        let Some(stop) = fits else {
            (self.paths[layer], self.chosen[layer]) = (old, chosen);
            return false;
        };
        self.chosen[layer] = stop;
        let to = self.point(layer);
        let new = self.arrivals(layer, to.way);
        self.count(layer, &arrivals, -1);
        self.count(layer, &new, 1);
        self.sum += to.value - here.value;
        let more = i64::from(to.moves) - i64::from(here.moves);
        self.spent.moves = self.spent.moves.saturating_add_signed(more as isize);
        self.spent.bytes = self.spent.bytes.saturating_add_signed(more * price as i64);
        true
    }
}
