//! Which stop each layer makes: moves are spent where they buy most.

use super::layer::{Rows, Task};
use super::path::{Path, Point, Way};
use crate::budget::Budget;

/// A target is met this far below it: sums of balancedness are rounded.
const ROUNDING: f64 = 1e-12;

/// The paths of all layers and what may be spent on them.
#[derive(Debug)]
pub(super) struct Market<'a> {
    pub(super) task: Task<'a>,
    pub(super) paths: Vec<Path>,
    rows: Rows,
    /// Whether a layer is without load, `[L]`.
    pub(super) idle: Vec<bool>,
    /// Stop that each layer has got to.
    pub(super) chosen: Vec<usize>,
    /// Balancedness of the layers that are not idle, added up, and how many they are.
    pub(super) sum: f64,
    busy: usize,
    pub(super) spent: Spent,
}

/// Moves and bytes so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Spent {
    pub(super) moves: usize,
    pub(super) bytes: u64,
    /// The same for each rank; kept only if single ranks are limited.
    pub(super) rank: Vec<(usize, u64)>,
}

/// From a stop of a layer to a later one.
#[derive(Debug, Clone, Copy)]
struct Segment {
    /// Balancedness per byte, or per move.
    rate: f64,
    layer: usize,
    stop: usize,
}

impl<'a> Market<'a> {
    /// Every layer at its start. Experts that no live rank held have been put back there, whatever that costs.
    pub(super) fn open(task: Task<'a>, paths: Vec<Path>) -> Self {
        let request = task.request;
        let idle: Vec<bool> =
            (0..paths.len()).map(|layer| request.layer_loads(layer).iter().all(|&w| w == 0.0)).collect();
        let busy = paths.iter().zip(&idle).filter(|(_, idle)| !**idle);
        let mut market = Self {
            sum: busy.clone().map(|(path, _)| path.points[0].value).sum(),
            busy: busy.count(),
            task,
            rows: Rows::default(),
            chosen: vec![0; paths.len()],
            paths,
            idle,
            spent: Spent::default(),
        };
        for (layer, path) in market.paths.iter().enumerate() {
            let moves = path.points[0].moves as usize;
            market.spent.moves += moves;
            market.spent.bytes += moves as u64 * request.expert_bytes(layer).unwrap_or(0);
        }
        if request.options.budget.counts_ranks() {
            market.spent.rank = vec![(0, 0); task.ranks.len()];
            for layer in 0..market.paths.len() {
                let arrivals = market.arrivals(layer, market.paths[layer].points[0].way);
                market.count(layer, &arrivals, 1);
            }
        }
        market
    }

    /// Writes the row (`[P]`) of a layer's stop.
    pub(super) fn write(&mut self, layer: usize, way: Way, row: &mut [i32]) {
        self.task.write(layer, &self.paths[layer], way, &mut self.rows, row);
    }

    /// What each rank receives in a layer on the way to a stop, `[ranks]`.
    pub(super) fn arrivals(&mut self, layer: usize, way: Way) -> Vec<u32> {
        let Task { request, ranks, .. } = self.task;
        let mut rows = [const { Vec::new() }; 2];
        for (row, way) in rows.iter_mut().zip([Way::Stay, way]) {
            row.resize(request.topology.slots(), -1);
            self.write(layer, way, row);
        }
        let [before, after] = rows;
        let arrived = |rank: usize| {
            let had = &before[ranks.slots(rank)];
            after[ranks.slots(rank)].iter().filter(|&e| *e >= 0 && !had.contains(e)).count() as u32
        };
        (0..ranks.len()).map(arrived).collect()
    }

    /// Adds (1) or takes off (-1) what ranks receive in a layer.
    pub(super) fn count(&mut self, layer: usize, arrivals: &[u32], sign: i64) {
        let price = self.task.request.expert_bytes(layer).unwrap_or(0);
        for ((moves, bytes), &arrived) in self.spent.rank.iter_mut().zip(arrivals) {
            *moves = moves.saturating_add_signed(sign as isize * arrived as isize);
            *bytes = bytes.saturating_add_signed(sign * (u64::from(arrived) * price) as i64);
        }
    }

    /// Mean balancedness over the layers that are not idle.
    pub(super) fn balancedness(&self) -> f64 {
        if self.busy == 0 { 1.0 } else { self.sum / self.busy as f64 }
    }

    /// Balancedness that is wanted, added up over the layers that are not idle.
    pub(super) fn wanted(&self) -> Option<f64> {
        self.task.request.options.target.map(|target| target * self.busy as f64 - ROUNDING)
    }

    /// Moves and bytes so far.
    pub(super) fn spent(&self) -> (usize, u64) {
        (self.spent.moves, self.spent.bytes)
    }

    /// The stop that a layer has got to.
    pub(super) fn point(&self, layer: usize) -> Point {
        self.paths[layer].points[self.chosen[layer]]
    }

    /// Takes layers from stop to stop, those first where a move (or a byte, where bytes are known) buys most, until
    /// the wanted balancedness is reached or the budget leaves nothing to buy. `each` is called after every purchase.
    pub(super) fn spend(&mut self, mut each: impl FnMut(&Self)) {
        let target = self.wanted();
        let mut segments: Vec<Segment> = Vec::new();
        for layer in (0..self.paths.len()).filter(|&layer| !self.idle[layer]) {
            self.envelope(layer, &mut segments);
        }
        segments.sort_unstable_by(|a, b| {
            b.rate.total_cmp(&a.rate).then(a.layer.cmp(&b.layer)).then(a.stop.cmp(&b.stop))
        });
        // A layer whose segment did not fit is done: later ones build on it.
        let mut closed = vec![false; self.paths.len()];
        for Segment { layer, stop, .. } in segments {
            if target.is_some_and(|target| self.sum >= target) {
                return;
            }
            if closed[layer] {
                continue;
            }
            let points = &self.paths[layer].points;
            let from = self.chosen[layer];
            // The first stop that is enough, if one before the end is; else the last one that the budget allows.
            let enough = target.and_then(|target| {
                let short = target - self.sum + points[from].value;
                (from + 1..stop).find(|&to| points[to].value >= short && self.net_seconds(layer, to) > 0.0)
            });
            let wanted = enough.unwrap_or(stop);
            let bought = (from + 1..=wanted)
                .rev()
                .find(|&to| self.net_seconds(layer, to) > 0.0 && self.buy(layer, to));
            closed[layer] = bought != Some(stop);
            if bought.is_some() {
                each(self);
            }
        }
    }

    /// Segments of the upper envelope of a layer's stops, as far as they pay: each has a lower rate than the one before.
    fn envelope(&self, layer: usize, segments: &mut Vec<Segment>) {
        let points = &self.paths[layer].points[..=self.worthwhile(layer)];
        let price = self.task.request.expert_bytes(layer).unwrap_or(1).max(1) as f64;
        let mut at = 0;
        while at + 1 < points.len() {
            let mut best = Segment { rate: f64::NEG_INFINITY, layer, stop: at + 1 };
            for (stop, point) in points.iter().enumerate().skip(at + 1) {
                let cost = f64::from(point.moves - points[at].moves) * price;
                let rate = (point.value - points[at].value) / cost;
                if rate >= best.rate {
                    best = Segment { rate, layer, stop };
                }
            }
            at = best.stop;
            segments.push(best);
        }
    }

    /// The stop at which a layer saves most beyond its cost; the start if no stop pays, the end if every gain is
    /// worth its moves.
    pub(super) fn worthwhile(&self, layer: usize) -> usize {
        let stops = self.paths[layer].points.len();
        if self.task.request.options.worth.is_none() {
            return stops - 1;
        }
        let mut best = (0, 0.0);
        for stop in 1..stops {
            let net = self.net_seconds(layer, stop);
            if net > best.1 {
                best = (stop, net);
            }
        }
        best.0
    }

    /// Seconds that a stop saves beyond what its moves cost, see [`Worth`](crate::Worth); without end if every gain
    /// is worth its moves.
    pub(super) fn net_seconds(&self, layer: usize, stop: usize) -> f64 {
        let Some(worth) = self.task.request.options.worth else { return f64::INFINITY };
        let points = &self.paths[layer].points;
        let bytes = self.task.request.expert_bytes(layer).unwrap_or(0);
        let moves = (points[stop].moves - points[0].moves) as usize;
        worth.saved_seconds(points[0].value, points[stop].value)
            - worth.link_seconds(moves, bytes, self.task.ranks.live().len())
    }

    /// Takes a layer to a stop if the budget allows that.
    fn buy(&mut self, layer: usize, stop: usize) -> bool {
        let Budget { moves, bytes, moves_per_rank, bytes_per_rank } = self.task.request.options.budget;
        let path = &self.paths[layer];
        let (from, to) = (path.points[self.chosen[layer]], path.points[stop]);
        let price = self.task.request.expert_bytes(layer).unwrap_or(0);
        let more = (to.moves - from.moves) as usize;
        let (all_moves, all_bytes) = (self.spent.moves + more, self.spent.bytes + more as u64 * price);
        if moves.is_some_and(|most| all_moves > most) || bytes.is_some_and(|most| all_bytes > most) {
            return false;
        }
        if !self.spent.rank.is_empty() {
            let was = self.spent.rank.clone();
            let (old, new) = (self.arrivals(layer, from.way), self.arrivals(layer, to.way));
            self.count(layer, &old, -1);
            self.count(layer, &new, 1);
            // A rank may be beyond its budget already, from experts put back there.
            let fits = self.spent.rank.iter().zip(&was).all(|(&(moves, bytes), &(moves_before, _))| {
                moves <= moves_before
                    || moves_per_rank.is_none_or(|most| moves <= most)
                        && bytes_per_rank.is_none_or(|most| bytes <= most)
            });
            if !fits {
                self.spent.rank = was;
                return false;
            }
        }
        (self.spent.moves, self.spent.bytes) = (all_moves, all_bytes);
        self.sum += to.value - from.value;
        self.chosen[layer] = stop;
        true
    }
}
