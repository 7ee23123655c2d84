//! Which stop each layer makes: moves are spent where they buy most.

use super::path::{Path, Point, Way};
use super::ranks::RankTable;
use crate::budget::Budget;
use crate::request::Request;

/// A target is met this far below it: sums of balancedness are rounded.
const ROUNDING: f64 = 1e-12;

/// The paths of all layers and what may be spent on them.
#[derive(Debug)]
pub(super) struct Market<'a> {
    request: &'a Request<'a>,
    ranks: &'a RankTable,
    paths: &'a [Path],
    /// Whether a layer is without load, `[L]`.
    idle: Vec<bool>,
    /// Stop that each layer has got to.
    chosen: Vec<usize>,
    /// Balancedness of the layers that are not idle, added up, and how many they are.
    sum: f64,
    busy: usize,
    spent: Spent,
}

/// Moves and bytes so far.
#[derive(Debug, Clone, Default)]
struct Spent {
    moves: usize,
    bytes: u64,
    /// The same for each rank; kept only if single ranks are limited.
    rank: Vec<(usize, u64)>,
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
    /// `write` writes the row (`[P]`) of a layer's stop.
    pub(super) fn open(
        request: &'a Request<'a>,
        ranks: &'a RankTable,
        paths: &'a [Path],
        mut write: impl FnMut(usize, Way, &mut [i32]),
    ) -> Self {
        let idle: Vec<bool> =
            (0..paths.len()).map(|layer| request.layer_loads(layer).iter().all(|&w| w == 0.0)).collect();
        let mut market = Self {
            request,
            ranks,
            paths,
            chosen: vec![0; paths.len()],
            sum: paths
                .iter()
                .zip(&idle)
                .filter(|(_, idle)| !**idle)
                .map(|(path, _)| path.points[0].value)
                .sum(),
            busy: idle.iter().filter(|&&idle| !idle).count(),
            idle,
            spent: Spent::default(),
        };
        for (layer, path) in paths.iter().enumerate() {
            let moves = path.points[0].moves as usize;
            market.spent.moves += moves;
            market.spent.bytes += moves as u64 * request.expert_bytes(layer).unwrap_or(0);
        }
        if request.options.budget.counts_ranks() {
            market.spent.rank = vec![(0, 0); ranks.len()];
            let (mut before, mut after) = (Vec::new(), Vec::new());
            for (layer, path) in paths.iter().enumerate().filter(|(_, path)| path.points[0].moves > 0) {
                for (row, way) in [(&mut before, Way::Stay), (&mut after, path.points[0].way)] {
                    row.resize(request.topology.slots(), -1);
                    write(layer, way, row);
                }
                market.count_arrivals(layer, &before, &after, 1);
            }
        }
        market
    }

    /// Mean balancedness over the layers that are not idle.
    pub(super) fn balancedness(&self) -> f64 {
        if self.busy == 0 { 1.0 } else { self.sum / self.busy as f64 }
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
    /// the wanted balancedness is reached or the budget leaves nothing to buy. `write` as in [`Market::open`]; `each` is
    /// called after every purchase.
    pub(super) fn spend(
        &mut self,
        mut write: impl FnMut(usize, Way, &mut [i32]),
        mut each: impl FnMut(&Self),
    ) {
        let target = self.request.options.target.map(|target| target * self.busy as f64 - ROUNDING);
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
                .find(|&to| self.net_seconds(layer, to) > 0.0 && self.buy(layer, to, &mut write));
            closed[layer] = bought != Some(stop);
            if bought.is_some() {
                each(self);
            }
        }
    }

    /// Segments of the upper envelope of a layer's stops, as far as they pay: each has a lower rate than the one before.
    fn envelope(&self, layer: usize, segments: &mut Vec<Segment>) {
        let points = &self.paths[layer].points[..=self.worthwhile(layer)];
        let price = self.request.expert_bytes(layer).unwrap_or(1).max(1) as f64;
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
    fn worthwhile(&self, layer: usize) -> usize {
        let stops = self.paths[layer].points.len();
        if self.request.options.worth.is_none() {
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
    fn net_seconds(&self, layer: usize, stop: usize) -> f64 {
        let Some(worth) = self.request.options.worth else { return f64::INFINITY };
        let points = &self.paths[layer].points;
        let bytes = self.request.expert_bytes(layer).unwrap_or(0);
        let moves = (points[stop].moves - points[0].moves) as usize;
        worth.saved_seconds(points[0].value, points[stop].value)
            - worth.link_seconds(moves, bytes, self.ranks.live().len())
    }

    /// Takes a layer to a stop if the budget allows that.
    fn buy(&mut self, layer: usize, stop: usize, write: &mut impl FnMut(usize, Way, &mut [i32])) -> bool {
        let Budget { moves, bytes, moves_per_rank, bytes_per_rank } = self.request.options.budget;
        let path = &self.paths[layer];
        let (from, to) = (path.points[self.chosen[layer]], path.points[stop]);
        let price = self.request.expert_bytes(layer).unwrap_or(0);
        let more = (to.moves - from.moves) as usize;
        let (all_moves, all_bytes) = (self.spent.moves + more, self.spent.bytes + more as u64 * price);
        if moves.is_some_and(|most| all_moves > most) || bytes.is_some_and(|most| all_bytes > most) {
            return false;
        }
        if self.request.options.budget.counts_ranks() {
            let mut rows = [const { Vec::new() }; 3];
            for (row, way) in rows.iter_mut().zip([Way::Stay, from.way, to.way]) {
                row.resize(self.request.topology.slots(), -1);
                write(layer, way, row);
            }
            let [before, old, new] = &rows;
            let was = self.spent.rank.clone();
            self.count_arrivals(layer, before, old, -1);
            self.count_arrivals(layer, before, new, 1);
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

    /// Adds (1) or takes off (-1) what each rank receives in a layer between two rows.
    fn count_arrivals(&mut self, layer: usize, before: &[i32], after: &[i32], sign: isize) {
        let price = self.request.expert_bytes(layer).unwrap_or(0);
        for &rank in self.ranks.live() {
            let slots = self.ranks.slots(rank as usize);
            let had = &before[slots.clone()];
            let arrived = after[slots].iter().filter(|&&e| e >= 0 && !had.contains(&e)).count();
            let (moves, bytes) = &mut self.spent.rank[rank as usize];
            *moves = moves.saturating_add_signed(sign * arrived as isize);
            *bytes = bytes.saturating_add_signed(sign as i64 * (arrived as u64 * price) as i64);
        }
    }
}
