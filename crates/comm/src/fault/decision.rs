//! What happens to one wave.

use std::time::Duration;

use eplb_core::{Landing, RankId, SlotId, Transfer};

use super::{Faults, Planted, Random};
use crate::host::CopyFault;
use crate::memory::Place;

/// Longest time that a reordered wave is held back so that a later one is reported first.
const HOLD: Duration = Duration::from_millis(2);

/// The faults that strike one wave on one rank, drawn from the seed.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// How much later the wave is reported done.
    pub(super) late: Duration,
    pub(super) fail: bool,
    pub(super) stall: bool,
    /// Reported done at once; its bytes start this much later.
    pub(super) early: Option<Duration>,
    pub(super) after_ignored: bool,
    pub(super) blocks: bool,
    pub(super) deadline_ignored: bool,
    pub(super) partly: bool,
    pub(super) miscounted: bool,
    /// Names for the log.
    pub(super) struck: Vec<&'static str>,
}

impl Faults {
    /// Numbers for one wave; with no rank the same on every rank that has the same seed.
    pub(super) fn random(&self, wave: u64, rank: Option<RankId>) -> Random {
        let rank = rank.map_or(0, |rank| u64::from(rank.0) + 1);
        let mut mixed = Random::new(self.seed ^ wave.wrapping_mul(0xa076_1d64_78bd_642f) ^ (rank << 48));
        Random::new(mixed.next())
    }

    /// Draws what happens to a wave, and applies the faults that change its transfers.
    pub(super) fn decide(&self, rank: RankId, wave: u64, transfers: &mut Vec<Transfer>) -> Decision {
        let mut random = self.random(wave, Some(rank));
        let mut decision = Decision::default();
        if let Some(range) = &self.delay {
            let span = range.end.saturating_sub(range.start);
            decision.late = range.start + span.mul_f64(random.fraction());
        }
        if self.reorder {
            decision.late += HOLD.mul_f64(random.fraction());
        }
        decision.fail = self.fail.hits(wave, &mut random);
        decision.stall = self.stall.hits(wave, &mut random);
        decision.struck.extend(decision.fail.then_some("fail"));
        decision.struck.extend(decision.stall.then_some("stall"));
        for (strike, planted) in &self.planted {
            if strike.hits(wave, &mut random) {
                decision.plant(planted, rank, transfers);
            }
        }
        decision
    }
}

impl Decision {
    fn plant(&mut self, planted: &Planted, rank: RankId, transfers: &mut Vec<Transfer>) {
        let own: Vec<usize> = (0..transfers.len()).filter(|&at| transfers[at].dest == rank).collect();
        let pick = |nth: usize| own.get(nth % own.len().max(1)).copied();
        let struck = match planted {
            Planted::DropTransfer { nth } => {
                let dropped = pick(*nth).map(|at| transfers.remove(at));
                dropped.map(|_| "drop transfer")
            }
            Planted::Stray { nth, slot } => pick(*nth).map(|at| {
                let dest_slot = SlotId::at(*slot);
                transfers.push(Transfer { dest_slot, landing: Landing::InPlace, ..transfers[at] });
                "stray"
            }),
            Planted::SkipTensor { nth, tensor, memory } => pick(*nth).map(|at| {
                memory.plant(Place::landing(&transfers[at]), CopyFault::SkipTensor(*tensor));
                "skip tensor"
            }),
            Planted::Panic { nth, memory } => pick(*nth).map(|at| {
                memory.plant(Place::landing(&transfers[at]), CopyFault::Panic);
                "panic"
            }),
            Planted::AfterIgnored => {
                self.after_ignored = true;
                Some("after ignored")
            }
            Planted::DoneEarly { late } => {
                self.early = Some(*late);
                Some("done early")
            }
            Planted::SubmitBlocks => {
                self.blocks = true;
                Some("submit blocks")
            }
            Planted::DeadlineIgnored => {
                self.deadline_ignored = true;
                Some("deadline ignored")
            }
            Planted::Miscounted => {
                self.miscounted = true;
                Some("miscounted")
            }
            // Logged where it strikes: when a wave is refused.
            Planted::PartlyEnqueued => {
                self.partly = true;
                None
            }
            // These strike calls other than `submit`.
            Planted::TicketsForgiven | Planted::AbortIgnored | Planted::DropBlocks { .. } => None,
        };
        self.struck.extend(struck);
    }
}
