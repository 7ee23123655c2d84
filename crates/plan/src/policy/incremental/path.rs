//! The way of a layer from what is in place to better balance, and the stops on it.

use super::scan::largest;
use super::state::{Change, State};

/// A stop on the path of a layer that is better than every stop with as few moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// Moves from the placement in force.
    pub(super) moves: u32,
    /// Balancedness of the layer, 0..1.
    pub(super) value: f64,
    /// Load of the worst rank per unit of speed.
    pub(super) worst: f64,
    /// How to get there.
    pub(super) way: Way,
}

/// The way to a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// What live ranks hold stays exactly as it is, second copies on a rank included.
    Stay,
    /// So many changes of the start.
    Changes(u32),
    /// The fresh plan of the path.
    Fresh,
}

/// The changes made to a layer so far, and the stops worth making.
#[derive(Debug, Clone, Default)]
pub(super) struct Path {
    /// Changes in order.
    pub(super) changes: Vec<Change>,
    /// Stops with more moves and more value each; the first is the start.
    pub(super) points: Vec<Point>,
    /// Whether the layer starts from exactly what is in place.
    pub(super) starts_as_is: bool,
    /// Whether no change is left that helps.
    pub(super) ended: bool,
    /// Searches that ways out of local optima may still make.
    pub(super) patience: usize,
    /// A fresh plan, `[P]`, where changes one after another lead less far; the last stop.
    fresh: Vec<i32>,
}

impl Path {
    /// The last stop, `None` before the first climb.
    pub(super) fn last(&self) -> Option<Point> {
        self.points.last().copied()
    }

    /// Notes where the state is.
    pub(super) fn stop(&mut self, state: &State, value: f64) {
        let worst = largest(&state.load);
        // With unequal speeds the mean may rise faster than the worst rank does, which makes nothing better.
        if self.points.last().is_some_and(|last| value <= last.value || worst > last.worst) {
            return;
        }
        // Changes that cost nothing or take moves back make earlier stops pointless; the start stays.
        while self.points.len() > 1 && self.points.last().is_some_and(|last| last.moves >= state.moves()) {
            self.points.pop();
        }
        let way = Way::Changes(self.changes.len() as u32);
        let point = Point { moves: state.moves(), value, worst, way };
        match self.points.last_mut() {
            // Better without a move: there is no reason to start from anywhere else.
            Some(start) if start.moves >= point.moves => *start = point,
            _ => self.points.push(point),
        }
    }

    /// Adds a fresh plan as the last stop.
    pub(super) fn end_fresh(&mut self, row: &[i32], end: Point) {
        self.fresh.extend_from_slice(row);
        self.points.push(end);
    }

    /// Turns the row of the start (`[P]`) into that of a stop which is not [`Way::Stay`].
    pub(super) fn write(&self, way: Way, row: &mut [i32]) {
        match way {
            Way::Stay => {}
            Way::Changes(changes) => {
                self.changes[..changes as usize].iter().for_each(|change| change.write(row));
            }
            Way::Fresh => row.copy_from_slice(&self.fresh),
        }
    }

    /// Turns the row of the start into that where the path has got to so far.
    pub(super) fn write_all(&self, row: &mut [i32]) {
        self.changes.iter().for_each(|change| change.write(row));
    }
}
