//! The climb: change after change, until a layer is balanced enough or nothing helps.

use super::escape;
use super::path::Path;
use super::ranks::RankTable;
use super::scan::{Reach, Scan, View, largest};
use super::state::State;

/// Where a climb ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal<'a> {
    /// Balancedness that is enough.
    pub(super) level: f64,
    /// Whether ways out of local optima are looked for.
    pub(super) escapes: bool,
    /// Moves that are enough.
    pub(super) moves: u32,
    /// Moves that each rank may make at most, `[ranks]`; empty = no limit.
    pub(super) caps: &'a [u32],
}

/// Memory of a climb.
#[derive(Debug, Default)]
pub(super) struct Climb {
    pub(super) state: State,
    scan: Scan,
    escape: escape::Memory,
}

impl Climb {
    /// Takes the state, which stands where `path` ends, further along until the goal is met, or no change helps.
    ///
    /// Each step takes the rank with the largest penalty and the change that relieves it most per move. The summed
    /// penalty falls with every step and ways out of local optima are limited, so the climb ends; the limit on changes
    /// is for layers where budgets leave nothing but ever smaller gains.
    pub(super) fn further(&mut self, ranks: &RankTable, path: &mut Path, goal: Goal<'_>) {
        let Self { state, scan, escape } = self;
        let most_changes = state.slot.len() + 64;
        let mut lowest = f64::INFINITY;
        while !path.ended {
            let hot = hottest(state);
            let penalty = hot.map_or(0.0, |hot| state.penalty[hot]);
            // With one speed, the value rises only when the hottest rank's penalty falls.
            if !ranks.equal() || penalty < lowest {
                lowest = penalty;
                path.stop(state, state.value(ranks));
            }
            if path.last().is_some_and(|last| last.value >= goal.level) || state.moves() >= goal.moves {
                return;
            }
            let Some(hot) = hot.filter(|_| path.changes.len() < most_changes) else {
                path.ended = true;
                return;
            };
            let view = View { state, ranks, caps: goal.caps };
            match scan.best(view, hot, Reach::All) {
                Some(change) => {
                    state.apply(ranks, change);
                    path.changes.push(change);
                }
                None if !goal.escapes => return,
                None => {
                    path.ended = !escape::escape(state, scan, ranks, hot, goal.caps, path, escape);
                }
            }
        }
    }
}

/// The rank with the largest penalty, the first of equals; `None` if no rank exceeds the aim.
pub(super) fn hottest(state: &State) -> Option<usize> {
    let most = largest(&state.penalty);
    if most > 0.0 { state.penalty.iter().position(|&penalty| penalty == most) } else { None }
}
