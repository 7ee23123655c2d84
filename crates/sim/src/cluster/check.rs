//! What must hold, and how it is found broken.

use eplb_core::RankId;
use eplb_exchange::{Cause, Outcome, Part, Phase, Verdict};
use ndarray::Array2;

use super::host::Host;
use super::memory::Content;
use super::scenario::FaultKind;
use super::transport::Submission;
use super::world::World;

/// A promise that a run broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A slot did not hold, from begin to end of a step, what a map of that step says.
    #[error(
        "step {step}: rank {user}'s map names expert {expert} in slot {slot} of layer {layer} on rank {rank}, which holds {found}"
    )]
    Bytes {
        /// The step; `None` after the last.
        step: Step,
        /// Rank whose map it is.
        user: usize,
        /// Rank that owns the slot.
        rank: usize,
        /// Layer of the slot.
        layer: usize,
        /// The slot.
        slot: usize,
        /// The expert that the map names.
        expert: i32,
        /// What was there.
        found: String,
    },
    /// A step ran with a map in which an expert has no slot.
    #[error("step {step}: rank {rank}'s map has no slot for expert {expert} of layer {layer}")]
    Unavailable {
        /// The step.
        step: u64,
        /// Rank whose map it is.
        rank: usize,
        /// The layer.
        layer: usize,
        /// The expert.
        expert: usize,
    },
    /// A slot was written while a copy from it was under way.
    #[error("rank {rank}: slot {slot} of layer {layer} was overwritten while it was read")]
    OverwrittenWhileRead {
        /// Owner of the slot.
        rank: usize,
        /// The layer.
        layer: usize,
        /// The slot.
        slot: usize,
    },
    /// A copy from a slot began while the slot was written.
    #[error("rank {rank}: slot {slot} of layer {layer} was read while it was written")]
    ReadWhileWritten {
        /// Owner of the slot.
        rank: usize,
        /// The layer.
        layer: usize,
        /// The slot.
        slot: usize,
    },
    /// Staging of a wave was written again before every rank had committed that wave.
    #[error("rank {rank}: wave {by} writes staging of wave {wave}, which rank {other} has not committed")]
    StagingOverwritten {
        /// Owner of the staging.
        rank: usize,
        /// The wave whose bytes lay there.
        wave: usize,
        /// The wave that wrote there.
        by: usize,
        /// A rank that has not committed.
        other: usize,
    },
    /// Parts of waves were handed over in another order than on other ranks.
    #[error("rank {rank} hands the {part:?} part of wave {wave} over behind a later one")]
    Order {
        /// The rank.
        rank: usize,
        /// Number of the wave.
        wave: usize,
        /// Its part.
        part: Part,
    },
    /// Ranks ended an exchange differently.
    #[error("exchange {exchange}: {what}")]
    Disagreement {
        /// Number of the exchange.
        exchange: usize,
        /// How.
        what: String,
    },
    /// An exchange was given up and nobody says why.
    #[error("exchange {exchange} was aborted and no rank names a cause")]
    Unexplained {
        /// Number of the exchange.
        exchange: usize,
    },
    /// An exchange was given up for lateness, and a rank does not know that: it gives up where the others try again.
    #[error("exchange {exchange}: {late:?} call it lateness, rank {rank} does not: {cause}")]
    LatenessForgotten {
        /// Number of the exchange.
        exchange: usize,
        /// Ranks that know it; none if nothing else can have been the cause.
        late: Vec<usize>,
        /// The rank.
        rank: usize,
        /// What it says.
        cause: String,
    },
    /// A step began although the rank knew of a commit that had failed.
    #[error("rank {rank} runs step {step} and knows that the commit of wave {wave} failed on rank {broken}")]
    Served {
        /// The rank.
        rank: usize,
        /// The step.
        step: u64,
        /// Rank whose device failed.
        broken: usize,
        /// Number of the wave.
        wave: usize,
    },
    /// Ranks that live did not reach an end.
    #[error("no end in sight: {0}")]
    Hang(String),
    /// A step was refused although the record could be reached.
    #[error("rank {rank} may not run step {step}: {phase}")]
    Refused {
        /// The rank.
        rank: usize,
        /// The step.
        step: u64,
        /// Where its exchange is.
        phase: Phase,
    },
}

/// A step, or the time after the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The step's id.
    Id(u64),
    /// All is over.
    End,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Id(id) => id.fmt(f),
            Step::End => f.write_str("(after the last)"),
        }
    }
}

impl World {
    /// A rank's device ends a step. Its slots must have held what every rank's map of the step says, from the time on
    /// when both had begun it: no token of a rank arrives before.
    pub(super) fn check_pass(&mut self, rank: usize, id: u64) -> Result<(), Violation> {
        let pass = &self.passes[&id];
        let place = |rank: usize| pass.begun.iter().position(|&(begun, _)| begun == rank);
        for (&user, map) in &pass.maps {
            // A rank that died before its device began the step has sent nothing.
            let (Some(here), Some(there)) = (place(rank), place(user)) else { continue };
            let versions = &pass.begun[here.max(there)].1;
            for (layer, slot) in self.own_cells(rank) {
                let expert = map[(layer, slot)];
                if expert < 0 {
                    continue;
                }
                let written =
                    self.memory.version(layer, slot) != versions[layer * self.topology.slots() + slot];
                self.check_cell(Step::Id(id), user, rank, (layer, slot), expert, written)?;
            }
        }
        self.tally.steps += 1;
        Ok(())
    }

    fn check_cell(
        &self,
        step: Step,
        user: usize,
        rank: usize,
        (layer, slot): (usize, usize),
        expert: i32,
        written: bool,
    ) -> Result<(), Violation> {
        let content = self.memory.content(layer, slot);
        if content == (Content::Expert { layer, expert }) && !written {
            return Ok(());
        }
        let during = if written { ", written during the step" } else { "" };
        let found = format!("{content:?}{during}");
        Err(Violation::Bytes { step, user, rank, layer, slot, expert, found })
    }

    /// A step begins with a map: every expert needs a slot in it.
    pub(super) fn check_available(&self, rank: usize, step: u64, map: &Array2<i32>) -> Result<(), Violation> {
        for (layer, row) in map.rows().into_iter().enumerate() {
            let mut has = vec![false; self.scenario.experts];
            row.iter().filter_map(|&e| usize::try_from(e).ok()).for_each(|e| has[e] = true);
            if let Some(expert) = has.iter().position(|&has| !has) {
                return Err(Violation::Unavailable { step, rank, layer, expert });
            }
        }
        Ok(())
    }

    /// All ranks that live have ended an exchange: they must agree on how. Returns whether their maps are equal.
    pub(super) fn check_agreement(&self, exchange: usize) -> Result<bool, Violation> {
        let ended: Vec<(usize, &Outcome)> = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| host.alive)
            .filter_map(|(rank, host)| Some((rank, host.outcome.as_ref()?)))
            .collect();
        let waves = self.plans[exchange][ended[0].0].waves().len();
        let committed = |outcome: &Outcome| match outcome {
            Outcome::Completed => waves,
            Outcome::Broken { wave, .. } => wave + 1,
            Outcome::Aborted { wave, .. } | Outcome::Undecided { wave, .. } => *wave.min(&waves),
        };
        let disagree = |what: String| Err(Violation::Disagreement { exchange, what });
        let record = self.boards[exchange].last_word();
        let decided = match record.verdict {
            Verdict::Commit { .. } => record.decided,
            Verdict::Abort => record.decided - 1,
        };
        for &(rank, outcome) in &ended {
            if committed(outcome) != decided.min(waves) {
                return disagree(format!(
                    "rank {rank} committed {} of {waves} waves, the record says {decided}",
                    committed(outcome)
                ));
            }
        }
        let mut absent: Vec<RankId> =
            (0..self.hosts.len()).filter(|&r| !self.hosts[r].alive).map(RankId::at).collect();
        let mut explained = ended.len() < self.hosts.len();
        for &(_, outcome) in &ended {
            match outcome {
                Outcome::Aborted { silent, cause, .. } => {
                    absent.extend(silent);
                    explained |= !matches!(cause, Cause::ByRecord { .. });
                }
                Outcome::Broken { silent, .. } => {
                    absent.extend(silent);
                    explained = true;
                }
                Outcome::Completed => explained = true,
                Outcome::Undecided { cause, .. } => {
                    return disagree(format!("a rank does not know what was decided: {cause}"));
                }
            }
        }
        self.check_break(exchange, &ended, &absent)?;
        self.check_lateness(exchange, &ended)?;
        if !explained {
            return Err(Violation::Unexplained { exchange });
        }
        let mut equal = true;
        let first = &self.hosts[ended[0].0].map;
        for &(rank, _) in &ended[1..] {
            for ((cell, &here), &there) in self.hosts[rank].map.indexed_iter().zip(first.iter()) {
                if here == there {
                    continue;
                }
                equal = false;
                let owner = self.topology.rank_of_slots()[cell.1];
                if !absent.contains(&owner) || (here >= 0 && there >= 0) {
                    return disagree(format!(
                        "slot {} of layer {} holds {here} for rank {rank}, {there} for rank {}",
                        cell.1, cell.0, ended[0].0
                    ));
                }
            }
        }
        Ok(equal)
    }

    /// The store was lost under way: who says that a wave was not committed must be right about everyone, and who does
    /// not know of a wave must know of all before it.
    pub(super) fn check_without_store(&self, exchange: usize) -> Result<(), Violation> {
        let alive = || self.hosts.iter().enumerate().filter(|(_, host)| host.alive);
        for (rank, host) in alive() {
            let waves = self.plans[exchange][rank].waves().len();
            let range = |outcome: &Outcome| match outcome {
                Outcome::Completed => (waves, waves),
                Outcome::Broken { wave, .. } => (wave + 1, wave + 1),
                Outcome::Aborted { wave, .. } => (*wave.min(&waves), *wave.min(&waves)),
                Outcome::Undecided { wave, .. } => (*wave, wave + 1),
            };
            let Some((least, most)) = host.outcome.as_ref().map(range) else { continue };
            for (other, (here, there)) in alive().filter_map(|(o, h)| Some((o, range(h.outcome.as_ref()?)))) {
                if there < least || here > most {
                    let what = format!(
                        "rank {rank} knows of {least} to {most} waves, rank {other} of {here} to {there}"
                    );
                    return Err(Violation::Disagreement { exchange, what });
                }
            }
        }
        Ok(())
    }

    /// Ranks that have heard of all others that they stopped agree on whether the exchange is worth another try; where nothing was
    /// done to any rank, an abort is lateness.
    fn check_lateness(&self, exchange: usize, ended: &[(usize, &Outcome)]) -> Result<(), Violation> {
        let mut late = Vec::new();
        let mut other = None;
        for (rank, outcome) in ended {
            match outcome {
                _ if outcome.came_too_late() => late.push(*rank),
                Outcome::Aborted { cause, silent, .. } if silent.is_empty() => {
                    other.get_or_insert((*rank, cause));
                }
                _ => {}
            }
        }
        match other {
            Some((rank, cause)) if !late.is_empty() || self.scenario.fault.kind == FaultKind::Nothing => {
                let cause = cause.to_string();
                Err(Violation::LatenessForgotten { exchange, late, rank, cause })
            }
            _ => Ok(()),
        }
    }

    /// A commit that failed on one device ends the exchange on all ranks that hear of it, and they name the same rank and wave.
    fn check_break(
        &self,
        exchange: usize,
        ended: &[(usize, &Outcome)],
        absent: &[RankId],
    ) -> Result<(), Violation> {
        let broken = ended.iter().find_map(|(_, outcome)| match outcome {
            Outcome::Broken { rank, wave, .. } => Some((*rank, *wave)),
            _ => None,
        });
        let Some((rank, wave)) = broken else { return Ok(()) };
        for (teller, outcome) in ended {
            let same =
                matches!(outcome, Outcome::Broken { rank: r, wave: w, .. } if (*r, *w) == (rank, wave));
            if !same && !absent.contains(&rank) && !absent.contains(&RankId::at(*teller)) {
                let what = format!("{rank} broke in wave {wave}, but rank {teller} says {outcome:?}");
                return Err(Violation::Disagreement { exchange, what });
            }
        }
        Ok(())
    }

    /// A copy to staging begins: what lies there belongs to an exchange that is over, or to a wave that all ranks have
    /// committed on their devices.
    pub(super) fn check_staging_free(
        &self,
        rank: usize,
        offset: usize,
        (exchange, by, _): Submission,
    ) -> Result<(), Violation> {
        for (_, (of, wave, _)) in self.memory.staged_near(RankId::at(rank), offset) {
            if of != exchange || wave == by {
                continue;
            }
            let behind =
                |host: &Host| host.alive && host.device.committed.is_none_or(|done| done < (of, wave));
            if let Some(other) = self.hosts.iter().position(behind) {
                return Err(Violation::StagingOverwritten { rank, wave, by, other });
            }
        }
        Ok(())
    }

    /// A step begins on a rank: it must not know of a commit that failed.
    pub(super) fn check_unbroken(&self, rank: usize, step: u64) -> Result<(), Violation> {
        let host = &self.hosts[rank];
        let known = host.exchange.as_ref().and_then(|exchange| exchange.broken());
        let ended = match host.outcome {
            Some(Outcome::Broken { rank, wave, .. }) => Some((rank, wave)),
            _ => None,
        };
        match known.or(ended) {
            None => Ok(()),
            Some((broken, wave)) => Err(Violation::Served { rank, step, broken: broken.index(), wave }),
        }
    }

    /// After everything: what the maps of ranks that live name must be there. A rank that does not know which map is in
    /// force runs nothing any more; one that knows of a commit that failed runs nothing either, but its map counts.
    pub(super) fn check_end(&self) -> Result<(), Violation> {
        let knows = |host: &Host| {
            host.barred_from == u64::MAX || matches!(host.outcome, Some(Outcome::Broken { .. }))
        };
        let alive = || self.hosts.iter().enumerate().filter(|(_, host)| host.alive && knows(host));
        for (user, host) in alive() {
            for (rank, _) in alive() {
                for (layer, slot) in self.own_cells(rank) {
                    let expert = host.map[(layer, slot)];
                    if expert >= 0 {
                        self.check_cell(Step::End, user, rank, (layer, slot), expert, false)?;
                    }
                }
            }
        }
        Ok(())
    }
}
