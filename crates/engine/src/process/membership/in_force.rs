//! What is in force in a new epoch: a rank finds that out with the others, makes it its own, and fetches what is missing.

use std::time::{Duration, Instant};

use eplb_comm::CommError;
use eplb_comm::store::deadlines::after;
use eplb_core::{ExpertId, LayerId, Placement};
use ndarray::Array2;

use super::error::MembershipError;
use super::reform::Replan;
use super::restore::{Fetch, restore};
use super::settle::{Report, settle};
use crate::error::EngineError;
use crate::margin::Margin;
use crate::process::job::{lasting_facts, step_time};
use crate::process::member::{Member, Numbering, Undecided, serve};
use crate::process::session::{Stage, at};
use crate::process::steps::StepClock;

/// What the settling of an epoch found.
pub(super) struct Found {
    pub(super) rolled_forward: bool,
    pub(super) fetched: Vec<Fetch>,
    pub(super) left_out: Vec<(LayerId, ExpertId)>,
    pub(super) target: Placement,
    pub(super) loads: Array2<f64>,
}

impl Member {
    /// Finds out what is in force in the session's epoch, takes that place, and fetches what is missing.
    pub(super) fn settle(&mut self, replan: &mut Replan<'_>) -> Result<Found, EngineError> {
        let rank = self.session.rank();
        let topology = self.job.topology.clone();
        self.session.compare(&lasting_facts(&self.job))?;
        let shape = (self.placement.layers(), topology.slots());
        let own = Report {
            version: self.version,
            saw_next: self.undecided.as_ref().is_some_and(|open| open.committed),
            last_step: self.serving.driver.last_step(),
            map: self.sound.then(|| self.renumbered(self.serving.driver.phy2log())),
            next: self
                .undecided
                .as_ref()
                .map(|Undecided { plan, wave, .. }| self.renumbered(&plan.phy2log_after(wave + 1))),
        };
        let deadline = after(self.session.deadlines().store.collective);
        let said = self.session.group.all_gather("holding", &own.encode(), deadline);
        let mut reports = Vec::new();
        for (&other, bytes) in self.session.members().iter().zip(&at(rank, Stage::Reforming, said)?) {
            let unreadable = EngineError::Unreadable { rank: other, what: "what it holds" };
            let report = Report::decode(bytes, shape).ok_or(unreadable);
            reports.push((other, at(rank, Stage::Reforming, report)?));
        }
        let settled = settle(&reports, &topology, shape.0);
        let rolled_forward = settled.roll_forward.contains(&rank);
        if rolled_forward {
            at(rank, Stage::Reforming, self.roll_forward())?;
        }
        let last_step = reports.iter().filter_map(|(_, report)| report.last_step).max();
        let version = settled.taken_version();
        at(rank, Stage::Reforming, self.take_place_with(settled.map, version))?;

        let (target, loads) = self.plan_together(&topology, replan)?;
        let restore = restore(&self.placement, &target, &topology);
        self.fetch(&restore.fetches)?;
        self.connect()?;
        let deadline = after(self.session.deadlines().store.collective);
        at(rank, Stage::Reforming, self.session.group.barrier("reformed", deadline))?;
        self.clock = StepClock::start(last_step.map_or(0, |last| last + 1), step_time(&self.job));
        let (fetched, left_out) = (restore.fetches, restore.left_out);
        Ok(Found { rolled_forward, fetched, left_out, target, loads })
    }

    /// A map in the numbering of the memory, in that of the session's epoch: slots of ranks that are new in it are empty.
    fn renumbered(&self, map: &Array2<i32>) -> Array2<i32> {
        let new = &self.job.topology;
        let mut out = Array2::from_elem((map.nrows(), new.slots()), -1);
        for (old, nonce) in &self.numbering.roster {
            let now = self.session.roster().iter().find(|(_, listed)| listed == nonce);
            let Some((now, _)) = now else { continue };
            for (from, to) in self.numbering.topology.slots_of(*old).zip(new.slots_of(*now)) {
                out.column_mut(to).assign(&map.column(from));
            }
        }
        out
    }

    /// Carries out this rank's part of the commit of a wave that was left undecided: its bytes are in.
    fn roll_forward(&mut self) -> Result<(), EngineError> {
        let Some(Undecided { plan, wave, .. }) = self.undecided.take() else { return Ok(()) };
        let rank = self.serving.rank;
        let topology = self.numbering.topology.clone();
        let commits = plan.waves()[wave].commits.iter().copied();
        let own: Vec<_> = commits.filter(|commit| topology.rank_of(commit.slot) == rank).collect();
        // If it fails half-way, the map is no longer what the slots hold.
        self.sound = false;
        let fence = self.serving.driver.stream().commit(&own)?;
        let waited = self.job.settings.step_timeout;
        let deadline = after(waited);
        while !fence.poll()? {
            if Instant::now() > deadline {
                let what = "the commit of the wave that it rolls forward to".into();
                return Err(CommError::Timeout { rank, what, waited }.into());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Takes this rank's place with a map in the numbering of the session's epoch.
    fn take_place_with(&mut self, map: Array2<i32>, version: u64) -> Result<(), EngineError> {
        let rank = self.session.rank();
        let first = self.job.topology.slots_of(rank).start;
        let memory = self.serving.memory.renumbered(rank, first);
        self.placement = Placement::with_missing(self.placement.experts(), map)?;
        self.job.start = self.placement.clone();
        self.serving = serve(rank, &self.job, memory, &self.placement)?;
        let topology = self.serving.topology.clone();
        self.numbering = Numbering { topology, roster: self.session.roster().to_vec() };
        (self.version, self.sound, self.undecided) = (version, true, None);
        // Members may have left the epoch before after different attempts, and who joins knows of none.
        self.margin = Margin::new(self.job.settings.margin);
        Ok(())
    }

    /// Each owner fetches what is missing into its slots; all learn what came of it.
    fn fetch(&mut self, fetches: &[Fetch]) -> Result<(), EngineError> {
        if fetches.is_empty() {
            return Ok(());
        }
        let rank = self.session.rank();
        let mut failed = Vec::new();
        for (at, fetch) in fetches.iter().enumerate() {
            let Fetch { layer, expert, slot } = *fetch;
            if self.job.topology.rank_of(slot) != rank {
                continue;
            }
            if let Err(error) = self.job.source.fill(&self.serving.memory, layer, slot, expert) {
                failed.extend((at as u64).to_le_bytes());
                // One reason is told, and all that failed.
                if failed.len() == 8 {
                    failed.splice(0..0, reason(&error));
                }
            }
        }
        let deadline = after(self.session.plan_deadline());
        let said = self.session.group.all_gather("fetched", &failed, deadline);
        let said = at(rank, Stage::Reforming, said)?;
        let mut map = self.placement.phy2log().to_owned();
        for fetch in fetches {
            // Entries of a map are experts, which fit.
            map[(fetch.layer.index(), fetch.slot.index())] = i32::try_from(fetch.expert.0).unwrap_or(-1);
        }
        let mut first: Option<EngineError> = None;
        for (&other, bytes) in self.session.members().iter().zip(&said) {
            let Some((detail, numbers)) = failures(bytes) else { continue };
            for fetch in numbers.iter().filter_map(|&at| fetches.get(usize::try_from(at).ok()?)) {
                map[(fetch.layer.index(), fetch.slot.index())] = -1;
                let Fetch { layer, expert, .. } = *fetch;
                let detail = detail.clone();
                first.get_or_insert_with(|| {
                    MembershipError::NotFetched { rank: other, layer, expert, detail }.into()
                });
            }
        }
        at(rank, Stage::Reforming, self.take_place_with(map, self.version + 1))?;
        first.map_or(Ok(()), |error| at(rank, Stage::Reforming, Err(error)))
    }
}

/// A reason of at most this many bytes is told to others.
const LONGEST_REASON: usize = 512;

/// A reason as it is told: its length, and its bytes.
fn reason(error: &EngineError) -> Vec<u8> {
    let text = error.to_string();
    let bytes = &text.as_bytes()[..text.len().min(LONGEST_REASON)];
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

/// Reads a reason and the numbers of what failed; `None` if nothing did.
fn failures(bytes: &[u8]) -> Option<(String, Vec<u64>)> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (reason, numbers) = rest.split_at_checked(length)?;
    let numbers = numbers.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number));
    Some((String::from_utf8_lossy(reason).into_owned(), numbers.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_read_as_told_and_junk_is_none() {
        let error = EngineError::Options("ü".repeat(LONGEST_REASON));
        let numbers: Vec<u64> = vec![3, 1 << 40];
        let told =
            [reason(&error), numbers.iter().flat_map(|number| number.to_le_bytes()).collect()].concat();
        let (words, found) = failures(&told).unwrap();
        assert_eq!(found, numbers);
        assert!(words.contains("üü") && words.len() <= 2 * LONGEST_REASON, "{words}");
        assert_eq!(failures(&[]), None, "nothing failed");
        for end in 1..8 + LONGEST_REASON {
            assert_eq!(failures(&told[..end]), None, "{end}");
        }
        assert_eq!(failures(&u64::MAX.to_le_bytes()), None);
    }
}
