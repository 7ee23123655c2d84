//! What a rank has heard of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use eplb_core::RankId;

use super::words::{Note, Touched};

/// Notes of one rank about one wave.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard {
    /// By part.
    pub(super) drained: [Option<u64>; 2],
    pub(super) prepared: Option<Option<u64>>,
    pub(super) acknowledged: bool,
    /// First step that runs with the maps of the commit.
    pub(super) committed: Option<u64>,
    /// The commit failed on the rank's device.
    pub(super) broken: bool,
    pub(super) stopped: Option<Touched>,
}

/// All notes of all members. A peer may be one wave ahead, so notes are kept by wave.
#[derive(Debug)]
pub(super) struct Peers {
    members: Vec<RankId>,
    plans: BTreeMap<RankId, (u64, u64)>,
    waves: BTreeMap<usize, BTreeMap<RankId, Heard>>,
    proposed: BTreeMap<usize, u64>,
    /// What the lowest rank that cannot go on said of it.
    failed: Option<(RankId, String)>,
    /// The lowest rank that was at a step before the others.
    late: Option<RankId>,
    /// Observed time since the last sign of life.
    silence: BTreeMap<RankId, Duration>,
    /// Members that say nothing any more, and have said so.
    left: BTreeSet<RankId>,
}

impl Peers {
    /// `members` are all live ranks, this one included.
    pub(super) fn new(members: &[RankId]) -> Self {
        Self {
            members: members.to_vec(),
            plans: BTreeMap::new(),
            waves: BTreeMap::new(),
            proposed: BTreeMap::new(),
            failed: None,
            late: None,
            silence: members.iter().map(|&r| (r, Duration::ZERO)).collect(),
            left: BTreeSet::new(),
        }
    }

    pub(super) fn leader(&self) -> RankId {
        self.members.iter().copied().min().unwrap_or_default()
    }

    pub(super) fn is_member(&self, rank: RankId) -> bool {
        self.members.contains(&rank)
    }

    pub(super) fn see_alive(&mut self, rank: RankId) {
        if let Some(silence) = self.silence.get_mut(&rank) {
            *silence = Duration::ZERO;
        }
    }

    /// Signs of life were looked for `gap` after the look before; ranks that showed one are seen alive after this.
    pub(super) fn look(&mut self, gap: Duration) {
        for silence in self.silence.values_mut() {
            *silence += gap;
        }
    }

    /// Observed time since a rank's last sign of life.
    pub(super) fn silence(&self, rank: RankId) -> Duration {
        self.silence.get(&rank).copied().unwrap_or_default()
    }

    /// A member says nothing any more.
    pub(super) fn leave(&mut self, rank: RankId) {
        if self.is_member(rank) {
            self.left.insert(rank);
        }
    }

    /// The lowest member that has left.
    pub(super) fn left(&self) -> Option<RankId> {
        self.left.first().copied()
    }

    /// Whether nothing is to be expected of a rank any more: it has left, or been silent for longer than `limit`.
    pub(super) fn is_gone(&self, rank: RankId, limit: Duration) -> bool {
        self.left.contains(&rank) || self.silence(rank) > limit
    }

    /// The rank that has been silent longest beyond `limit`.
    pub(super) fn silent(&self, limit: Duration, me: RankId) -> Option<(RankId, Duration)> {
        self.silence
            .iter()
            .map(|(&rank, &silence)| (rank, silence))
            .filter(|&(rank, silence)| rank != me && silence > limit)
            .max_by_key(|&(rank, silence)| (silence, std::cmp::Reverse(rank)))
    }

    /// Keeps a note of any rank, this one included.
    pub(super) fn hear(&mut self, rank: RankId, note: &Note) {
        match *note {
            Note::Plan { hash, next_step } => drop(self.plans.insert(rank, (hash, next_step))),
            Note::Proposed { wave, step } => drop(self.proposed.insert(wave, step)),
            Note::Failed { ref cause } => {
                if self.failed.as_ref().is_none_or(|(lowest, _)| rank < *lowest) {
                    self.failed = Some((rank, cause.clone()));
                }
            }
            Note::TooLate { rank: late, .. } => {
                self.late = Some(self.late.map_or(late, |lowest| lowest.min(late)));
            }
            Note::Broken { wave, .. } => self.heard(wave, rank).broken = true,
            Note::Drained { wave, part, first_step } => {
                self.heard(wave, rank).drained[part as usize] = Some(first_step);
            }
            Note::Prepared { wave, last_step } => self.heard(wave, rank).prepared = Some(last_step),
            Note::Acknowledged { wave } => self.heard(wave, rank).acknowledged = true,
            Note::Committed { wave, first_step } => self.heard(wave, rank).committed = Some(first_step),
            Note::Stopped { wave, touched } => self.heard(wave, rank).stopped = Some(touched),
        }
    }

    fn heard(&mut self, wave: usize, rank: RankId) -> &mut Heard {
        self.waves.entry(wave).or_default().entry(rank).or_default()
    }

    /// Hash of each member that has told it.
    pub(super) fn hashes(&self) -> impl Iterator<Item = (RankId, u64)> + '_ {
        self.plans.iter().map(|(&rank, &(hash, _))| (rank, hash))
    }

    /// First step of each member that runs with the maps that the plan starts from.
    pub(super) fn next_steps(&self) -> impl Iterator<Item = u64> + '_ {
        self.plans.values().map(|&(_, next_step)| next_step)
    }

    /// Members that have not told their hash.
    pub(super) fn without_hash(&self) -> Vec<RankId> {
        self.members.iter().copied().filter(|r| !self.plans.contains_key(r)).collect()
    }

    /// What every member said of a wave.
    pub(super) fn of_wave(&self, wave: usize) -> impl Iterator<Item = (RankId, Heard)> + '_ {
        self.members.iter().map(move |&rank| {
            let heard = self.waves.get(&wave).and_then(|w| w.get(&rank));
            (rank, heard.cloned().unwrap_or_default())
        })
    }

    /// The lowest rank that cannot go on, and its words.
    pub(super) fn failed(&self) -> Option<&(RankId, String)> {
        self.failed.as_ref()
    }

    /// The lowest rank that was at a step before the others.
    pub(super) fn late(&self) -> Option<RankId> {
        self.late
    }

    /// Members of which `missing` holds.
    pub(super) fn missing(&self, wave: usize, missing: impl Fn(&Heard) -> bool) -> Vec<RankId> {
        self.of_wave(wave).filter(|(_, h)| missing(h)).map(|(r, _)| r).collect()
    }

    /// The step that the leader proposed for a wave.
    pub(super) fn proposed(&self, wave: usize) -> Option<u64> {
        self.proposed.get(&wave).copied()
    }

    /// Forgets waves before `wave`.
    pub(super) fn forget_before(&mut self, wave: usize) {
        self.waves = self.waves.split_off(&wave);
        self.proposed = self.proposed.split_off(&wave);
    }
}
