//! One layer, change by change.

use super::holding::{Change, Holding, Places};
use super::objective::Objective;
use super::scenarios::Scenarios;
use super::search::Search;

/// Changes are made while they gain; rounding must not make that go on for ever.
const CHANGES_PER_PLACE: usize = 4;

/// Rounding of a worth.
const ROUNDING: f32 = 1e-6;

/// A change that was made, and what it added to the worth of the layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    pub(super) change: Change,
    pub(super) gain: f32,
}

/// Where a layer stands after what must be put back, and the changes from there on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Path {
    /// Expert in each place at the start.
    pub(super) start: Vec<u32>,
    /// What was done to get there: one move each.
    pub(super) restored: Vec<Change>,
    /// The changes, in order.
    pub(super) steps: Vec<Step>,
}

/// Memory for one layer.
#[derive(Debug, Default)]
pub(super) struct Climber {
    pub(super) holding: Holding,
    pub(super) scenarios: Scenarios,
    pub(super) objective: Objective,
    search: Search,
}

impl Climber {
    /// Puts back experts that no live rank holds, the heaviest first, each where it costs least. Returns the changes. An
    /// expert that finds no place is left out.
    pub(super) fn restore(&mut self, places: &Places) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut effects = Vec::new();
        for expert in self.holding.lost(&self.scenarios) {
            self.objective.fit(&self.holding, places, &self.scenarios);
            let mut best: Option<(f32, Change)> = None;
            for place in (0..self.holding.row.len()).filter(|&place| self.holding.spare(place).is_some()) {
                let change = Change::Put { place: place as u32, expert };
                self.holding.effects(change, places, &mut effects);
                let gain = self.objective.gain(&effects, places, &self.scenarios);
                if best.is_none_or(|(most, _)| gain > most) {
                    best = Some((gain, change));
                }
            }
            if let Some((_, change)) = best {
                self.holding.make(change, places);
                changes.push(change);
            }
        }
        changes
    }

    /// Makes the change that gains most per move until none gains `price` per move.
    pub(super) fn climb(&mut self, places: &Places, price: f32) -> Vec<Step> {
        let mut steps = Vec::new();
        self.objective.fit(&self.holding, places, &self.scenarios);
        for _ in 0..CHANGES_PER_PLACE * places.slot.len() {
            let found = self.search.best(&self.holding, places, &self.scenarios, &self.objective, price);
            let Some((change, _)) = found else { break };
            let before = self.objective.worth();
            let held = self.holding.given_up(change);
            self.holding.make(change, places);
            self.objective.fit(&self.holding, places, &self.scenarios);
            let gain = self.objective.worth() - before;
            // Gains are differences of rounded numbers; what counts is the worth computed afresh.
            if gain <= 0.0 || gain < price * change.moves() as f32 - ROUNDING {
                self.holding.take_back(change, held, places);
                self.objective.fit(&self.holding, places, &self.scenarios);
                break;
            }
            steps.push(Step { change, gain });
        }
        steps
    }
}
