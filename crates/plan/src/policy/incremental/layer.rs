//! The start of a layer: what live ranks hold, what is missing, and the loads it is judged by.

use super::aim::aim;
use super::climb::{Climb, Goal};
use super::path::{Path, Point, Way};
use super::ranks::RankTable;
use super::scan::largest;
use super::state::{Change, EMPTY, State};
use crate::request::Request;

/// How far above the bound ranks may stay when the best balance is wanted.
const TOLERANCE: f64 = 2e-4;

/// Slots of a layer for each search that ways out of local optima may make.
const SLOTS_PER_SEARCH: usize = 4;

/// No rank.
const NOBODY: u32 = u32::MAX;

/// Memory of a thread.
#[derive(Debug, Default)]
pub(in crate::policy) struct Scratch {
    climb: Climb,
    rows: Rows,
    heavy: Vec<f64>,
}

/// Memory for rows of `phy2log`.
#[derive(Debug, Default)]
pub(super) struct Rows {
    start: Vec<i32>,
    row: Vec<i32>,
    seen: Vec<u32>,
    count: Vec<u32>,
}

/// What is the same for all layers of a plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) ranks: &'a RankTable,
    /// Most replicas of an expert.
    pub(super) limit: u32,
}

impl Task<'_> {
    /// Writes what live ranks hold: no expert twice on a rank, none more often than allowed.
    fn start_row(&self, layer: usize, rows: &mut Rows, start: &mut [i32]) {
        let Rows { seen, count, .. } = rows;
        let current = self.request.current_row(layer).unwrap_or_default();
        seen.clear();
        seen.resize(self.request.loads.experts(), NOBODY);
        count.clear();
        count.resize(seen.len(), 0);
        start.fill(EMPTY);
        for &rank in self.ranks.live() {
            let slots = self.ranks.slots(rank as usize);
            for (start, &held) in start[slots.clone()].iter_mut().zip(&current[slots]) {
                let Ok(expert) = usize::try_from(held) else { continue };
                let (seen, count) = (&mut seen[expert], &mut count[expert]);
                if *seen != rank && *count < self.limit {
                    *seen = rank;
                    *count += 1;
                    *start = held;
                }
            }
        }
    }

    /// The same for a layer whose path has been begun.
    fn write_start(&self, layer: usize, path: &Path, rows: &mut Rows, start: &mut [i32]) {
        if path.starts_as_is {
            self.write_kept(layer, start);
        } else {
            self.start_row(layer, rows, start);
        }
    }

    /// Writes exactly what live ranks hold.
    pub(super) fn write_kept(&self, layer: usize, kept: &mut [i32]) {
        let current = self.request.current_row(layer).unwrap_or_default();
        if self.ranks.live().len() == self.ranks.len() {
            kept.copy_from_slice(current);
            return;
        }
        kept.fill(EMPTY);
        for &rank in self.ranks.live() {
            let slots = self.ranks.slots(rank as usize);
            kept[slots.clone()].copy_from_slice(&current[slots]);
        }
    }

    /// Writes the row of a stop.
    pub(super) fn write(&self, layer: usize, path: &Path, way: Way, rows: &mut Rows, row: &mut [i32]) {
        match way {
            Way::Stay => self.write_kept(layer, row),
            _ => {
                self.write_start(layer, path, rows, row);
                path.write(way, row);
            }
        }
    }

    /// Where second copies have been taken off the start and nothing else, staying as it is is a stop too.
    fn stay(&self, layer: usize, state: &State, path: &mut Path, kept: &mut [i32]) {
        self.write_kept(layer, kept);
        let mut count = vec![0u32; state.weight.len()];
        kept.iter().filter_map(|&e| usize::try_from(e).ok()).for_each(|e| count[e] += 1);
        if count.iter().any(|&count| count == 0 || count > self.limit) {
            return;
        }
        let part = |&e: &i32| usize::try_from(e).map_or(0.0, |e| state.part_of(e, count[e]));
        let (mut sum, mut most) = (0.0, 0.0);
        for &rank in self.ranks.live() {
            let rank = rank as usize;
            let load = kept[self.ranks.slots(rank)].iter().map(part).sum::<f64>() / self.ranks.speed(rank);
            sum += load;
            most = f64::max(most, load);
        }
        let value = if most > 0.0 { (sum / self.ranks.live().len() as f64 / most).min(1.0) } else { 1.0 };
        path.points.push(Point { moves: 0, value, worst: most, way: Way::Stay });
    }

    /// Takes the path of a layer further, or begins it.
    pub(super) fn climb(&self, layer: usize, path: &mut Path, goal: Goal<'_>, scratch: &mut Scratch) {
        let Scratch { climb, rows, heavy } = scratch;
        let loads = self.request.layer_loads(layer);
        let heaviest = loads.iter().copied().fold(0.0, f64::max);
        let scale = power_of_two(heaviest);
        let state = &mut climb.state;
        state.weight.clear();
        state.weight.extend(loads.iter().map(|load| load * scale));
        state.limit = self.limit;
        let slack = TOLERANCE.min(0.5 * (1.0 - goal.level));
        state.aim = aim(&state.weight, self.ranks, self.limit, heavy) * (1.0 + slack);
        let mut start = std::mem::take(&mut rows.start);
        start.resize(self.request.topology.slots(), EMPTY);
        if path.points.is_empty() {
            self.start_row(layer, rows, &mut start);
            rows.row.resize(start.len(), EMPTY);
            self.write_kept(layer, &mut rows.row);
            path.starts_as_is = rows.row == start;
            state.start(self.ranks, &start, &start);
            path.patience = start.len().div_ceil(SLOTS_PER_SEARCH);
            path.ended = heaviest == 0.0;
            if !path.starts_as_is {
                self.stay(layer, state, path, &mut rows.row);
            }
            self.restore(climb, path);
            path.stop(&climb.state, climb.state.value(self.ranks));
        } else {
            self.write_start(layer, path, rows, &mut start);
            rows.row.clone_from(&start);
            path.write_all(&mut rows.row);
            state.start(self.ranks, &rows.row, &start);
        }
        rows.start = start;
        climb.further(self.ranks, path, goal);
    }

    /// Puts back experts that no live rank holds, the heaviest first: in an empty slot of the least loaded rank, else
    /// in place of the smallest replica. An expert that finds no slot is left out.
    fn restore(&self, climb: &mut Climb, path: &mut Path) {
        let state = &mut climb.state;
        if !state.count.contains(&0) {
            return;
        }
        let mut lost: Vec<u32> =
            (0..state.count.len() as u32).filter(|&e| state.count[e as usize] == 0).collect();
        let weight = |e: u32| state.weight[e as usize];
        lost.sort_unstable_by(|&a, &b| weight(b).total_cmp(&weight(a)).then(a.cmp(&b)));
        for expert in lost {
            let key = |slot: u32| {
                let held = &state.slot[slot as usize];
                (held.expert >= 0, held.part, state.load[held.rank as usize], slot)
            };
            let best = state.spare.iter().map(|&slot| key(slot)).min_by(|a, b| {
                a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.total_cmp(&b.2)).then(a.3.cmp(&b.3))
            });
            let Some((_, _, _, slot)) = best else { return };
            let change = Change::Replace { slot, expert: expert as i32 };
            state.apply(self.ranks, change);
            path.changes.push(change);
        }
    }
}

/// What a fresh plan, a row of `phy2log` (`[P]`), is worth for `loads` (`[E]`), and its moves from the start.
pub(super) fn score(loads: &[f64], ranks: &RankTable, row: &[i32], start: &[i32]) -> Point {
    let scale = power_of_two(loads.iter().copied().fold(0.0, f64::max));
    let weight = loads.iter().map(|load| load * scale).collect();
    let mut state = State { weight, aim: f64::MAX, limit: u32::MAX, ..State::default() };
    state.start(ranks, row, start);
    let worst = largest(&state.load);
    Point { moves: state.moves(), value: state.value(ranks), worst, way: Way::Fresh }
}

/// A power of two that brings a number between 1 and 4, or next to it: loads in another unit lead to the same
/// comparisons, and squares of loads do not overflow.
fn power_of_two(number: f64) -> f64 {
    let exponent = number.to_bits() >> 52 & 0x7ff;
    f64::from_bits((2046 - exponent.min(2045)) << 52)
}

#[cfg(test)]
mod tests {
    use super::power_of_two;

    #[test]
    fn every_size_is_brought_to_one() {
        for number in [1e-300, 0.75, 1.0, 3.0, 1e9, 1e300, f64::MAX] {
            let scaled = number * power_of_two(number);
            assert!((1.0..4.0).contains(&scaled), "{number} {scaled}");
        }
        assert!(power_of_two(0.0).is_finite());
    }
}
