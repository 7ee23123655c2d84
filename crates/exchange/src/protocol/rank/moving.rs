//! Getting a wave's bytes in: drains, and the two submissions. The wave that is being decided is worked on in its phases; the
//! next one goes ahead beside it as far as its early part allows.

use super::{Boundary, Exchange};
use crate::plan::Part;
use crate::protocol::words::{Action, Note, Phase, Touched};

/// How far the bytes of a wave are on this rank, by part.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bytes {
    drained: [bool; 2],
    submitted: [bool; 2],
    landed: [bool; 2],
}

impl Bytes {
    /// Whether a part was handed to the communicator, so that bytes may have landed.
    pub(super) fn is_submitted(&self, part: Part) -> bool {
        self.submitted[part as usize]
    }

    /// Whether a part's slots are out of this rank's maps.
    pub(super) fn is_drained(&self, part: Part) -> bool {
        self.drained[part as usize]
    }
}

impl Exchange {
    /// Switches the map for a part of a wave, at a boundary.
    fn drain_part(&mut self, wave: usize, part: Part) {
        let Some(first_step) = self.first_step_at_boundary() else { return };
        let bytes = self.bytes_of(wave);
        if bytes.drained[part as usize] || self.plan.drains(wave, part).is_empty() {
            return;
        }
        self.bytes_of(wave).drained[part as usize] = true;
        self.actions.push(Action::Drain { wave, part });
        self.say(Note::Drained { wave, part, first_step });
    }

    /// Whether a part of a wave is out of service on all ranks: `None` if not yet, else the first step from which on it is,
    /// on the last of them.
    fn drained_from(&self, wave: usize, part: Part) -> Option<Option<u64>> {
        if self.plan.drains(wave, part).is_empty() {
            return Some(None);
        }
        let steps: Option<Vec<u64>> =
            self.peers.of_wave(wave).map(|(_, heard)| heard.drained[part as usize]).collect();
        steps.map(|steps| steps.into_iter().max())
    }

    fn submit_part(&mut self, wave: usize, part: Part) {
        let wanted = self.plan.submissions(wave).any(|submitted| submitted == part);
        if wanted && !self.bytes_of(wave).is_submitted(part) {
            self.bytes_of(wave).submitted[part as usize] = true;
            self.actions.push(Action::Submit { wave, part });
        }
    }

    /// The wave under way or the one that goes ahead.
    fn bytes_of(&mut self, wave: usize) -> &mut Bytes {
        if wave == self.wave { &mut self.bytes } else { &mut self.ahead }
    }

    /// Phase [`Phase::Draining`].
    pub(super) fn drain(&mut self) {
        Part::ALL.into_iter().for_each(|part| self.drain_part(self.wave, part));
        if Part::ALL.into_iter().all(|part| self.drained_from(self.wave, part).is_some()) {
            self.enter(Phase::Clearing);
        }
    }

    /// The first step that a rank runs, or may run, with a map switched now; `None` if maps may not be switched now.
    pub(super) fn first_step_at_boundary(&self) -> Option<u64> {
        match self.boundary {
            Boundary::Closed => None,
            Boundary::Step(id) => Some(id),
            Boundary::Idle => Some(self.steps.next()),
        }
    }

    /// Phase [`Phase::Clearing`].
    pub(super) fn clear(&mut self) {
        // Slots that the wave drains, and slots that the commit before emptied: both were named by the maps of earlier steps.
        let drained =
            Part::ALL.into_iter().filter_map(|part| self.drained_from(self.wave, part).flatten()).max();
        let emptied = match self.wave.checked_sub(1) {
            None => self.peers.next_steps().max(),
            Some(last) => self.peers.of_wave(last).filter_map(|(_, h)| h.committed).max(),
        };
        if drained.max(emptied).is_none_or(|step| self.steps.over_before(step)) {
            Part::ALL.into_iter().for_each(|part| self.submit_part(self.wave, part));
            self.enter(Phase::Moving);
        }
    }

    /// Phase [`Phase::Moving`].
    pub(super) fn arrive(&mut self) {
        let bytes = self.bytes;
        if self.plan.submissions(self.wave).all(|part| bytes.landed[part as usize]) {
            self.prepared = true;
            self.say(Note::Prepared { wave: self.wave, last_step: self.steps.begun });
            self.enter(Phase::Prepared);
        }
    }

    /// A submission of the wave under way or of the next is over here.
    pub(super) fn land(&mut self, wave: usize, part: Part) {
        if (self.wave..=self.wave + 1).contains(&wave) {
            self.bytes_of(wave).landed[part as usize] = true;
        }
    }

    /// Moves the next wave on, beside the one under way. Every rank has confirmed the commit of the wave before that one, or it
    /// would not be under way: so the other half of staging is free, and slots that are empty are named by no step.
    pub(super) fn go_ahead(&mut self) {
        let next = self.wave + 1;
        let under_way = matches!(
            self.phase,
            Phase::Moving | Phase::Prepared | Phase::Armed | Phase::Committing | Phase::Settling
        );
        let given_up = self.doomed.is_some() || self.lost || self.record.closed;
        if !under_way || given_up || next >= self.plan.waves().len() {
            return;
        }
        // With nothing early, waves run one after another, drains included.
        if self.plan.transfers(next, Part::Early).is_empty() {
            return;
        }
        self.drain_part(next, Part::Early);
        if self.phase == Phase::Settling {
            // The map of the commit is in force here; the slots that it keeps may go out of service.
            self.drain_part(next, Part::Late);
        }
        // Behind those of the wave under way, which were handed over when it came to move: links are never idle between them.
        if let Some(first) = self.drained_from(next, Part::Early)
            && first.is_none_or(|step| self.steps.over_before(step))
        {
            self.submit_part(next, Part::Early);
        }
    }

    /// What may have touched this rank's memory.
    pub(super) fn touched(&self) -> Touched {
        Touched {
            early: self.bytes.is_submitted(Part::Early),
            late: self.bytes.is_submitted(Part::Late),
            ahead: self.ahead.is_submitted(Part::Early),
        }
    }
}
