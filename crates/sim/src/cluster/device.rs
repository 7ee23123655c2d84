//! One rank's device: an in-order queue of steps and commits.

use std::collections::VecDeque;

use eplb_core::{Fill, RankId, SlotCommit};

use super::check::Violation;
use super::memory::Content;
use super::plant::Plant;
use super::world::{Event, PASS_TIMEOUT, World};

/// Work on the compute stream.
#[derive(Debug, Clone)]
pub(super) enum Work {
    /// A forward pass.
    Step { id: u64 },
    /// The commit of a wave.
    Commit { exchange: usize, wave: usize },
}

/// The queue, and what the host can learn by looking at events.
#[derive(Debug, Default)]
pub(super) struct Device {
    pub(super) queue: VecDeque<Work>,
    /// Whether the first in the queue has begun.
    pub(super) busy: bool,
    /// Last step finished.
    pub(super) finished: Option<u64>,
    /// Commits completed.
    pub(super) commits: usize,
    /// Exchange and wave of the last commit completed.
    pub(super) committed: Option<(usize, usize)>,
    /// Commits enqueued.
    pub(super) enqueued: usize,
    /// The next commit fails; whether without an error.
    pub(super) fail_next: Option<bool>,
    /// It has failed and does nothing any more.
    pub(super) failed: bool,
    /// What the host gets to see of that.
    pub(super) error: Option<String>,
}

impl Device {
    /// Steps in the queue.
    pub(super) fn steps(&self) -> usize {
        self.queue.iter().filter(|work| matches!(work, Work::Step { .. })).count()
    }
}

impl World {
    /// Lets a rank's device begin what is first in its queue, if it is free.
    pub(super) fn run_device(&mut self, rank: usize) -> Result<(), Violation> {
        let host = &mut self.hosts[rank];
        if host.device.busy || host.device.failed || !host.alive {
            return Ok(());
        }
        let Some(work) = host.device.queue.front().cloned() else { return Ok(()) };
        host.device.busy = true;
        match work {
            Work::Step { id } => {
                let versions = self.memory.versions();
                self.passes.entry(id).or_default().begun.push((rank, versions));
                self.release_pass(id);
            }
            Work::Commit { exchange, wave } => {
                for commit in self.own_commits(rank, exchange, wave) {
                    let (layer, slot) = (commit.layer.index(), commit.slot.index());
                    if !commit.fill.overwrites() {
                        continue;
                    }
                    self.memory.begin_commit(layer, slot);
                    if !self.memory.touch(layer, slot) {
                        return Err(Violation::OverwrittenWhileRead { rank, layer, slot });
                    }
                }
                if let Some(hangs) = self.hosts[rank].device.fail_next.take() {
                    self.fail_commit(rank, exchange, wave, hangs);
                    return Ok(());
                }
                let micros = self.rng.u64(10..=self.scenario.copy.max(10));
                self.after(micros, Event::DeviceEnd(rank));
            }
        }
        Ok(())
    }

    /// The device fails in the middle of a commit: what it writes is torn, and passes end without this rank after a while.
    fn fail_commit(&mut self, rank: usize, exchange: usize, wave: usize, hangs: bool) {
        for commit in self.own_commits(rank, exchange, wave).iter().filter(|c| c.fill.overwrites()) {
            self.memory.end_write(commit.layer.index(), commit.slot.index(), Content::Torn);
        }
        self.note(|| format!("rank {rank}: the commit of wave {wave} fails"));
        let device = &mut self.hosts[rank].device;
        device.failed = true;
        device.error = (!hangs).then(|| "the device is lost".into());
        self.tally.broken += 1;
        self.after(PASS_TIMEOUT, Event::LeavePasses(rank));
    }

    /// A step is a collective: its devices end once all ranks that take part have begun it.
    pub(super) fn release_pass(&mut self, id: u64) {
        let hosts = &self.hosts;
        let pass = self.passes.entry(id).or_default();
        let begun = |rank| pass.begun.iter().any(|&(begun, _)| begun == rank);
        if pass.released || !(0..hosts.len()).all(|rank| hosts[rank].left_passes || begun(rank)) {
            return;
        }
        pass.released = true;
        for rank in pass.begun.iter().map(|&(rank, _)| rank).collect::<Vec<_>>() {
            let micros = self.rng.u64(1..=self.scenario.step);
            self.after(micros, Event::DeviceEnd(rank));
        }
    }

    /// The device has ended what is first in its queue.
    pub(super) fn end_device(&mut self, rank: usize) -> Result<(), Violation> {
        if !self.hosts[rank].alive {
            return Ok(());
        }
        let Some(work) = self.hosts[rank].device.queue.pop_front() else { return Ok(()) };
        match work {
            Work::Step { id } => {
                self.check_pass(rank, id)?;
                self.hosts[rank].device.finished = Some(id);
            }
            Work::Commit { exchange, wave } => {
                for commit in self.own_commits(rank, exchange, wave) {
                    let (layer, slot) = (commit.layer.index(), commit.slot.index());
                    let content = match commit.fill {
                        _ if self.planted(rank, Plant::CommitSkipped) => self.memory.content(layer, slot),
                        Fill::Staged { offset, .. } => self.memory.staged(RankId::at(rank), offset),
                        Fill::FromSlot { slot, .. } => self.memory.content(layer, slot.index()),
                        Fill::InPlace(_) | Fill::Empty => continue,
                    };
                    if !self.memory.touch(layer, slot) {
                        return Err(Violation::OverwrittenWhileRead { rank, layer, slot });
                    }
                    self.memory.end_write(layer, slot, content);
                }
                self.hosts[rank].device.commits += 1;
                self.hosts[rank].device.committed = Some((exchange, wave));
                self.tally.commits += 1;
            }
        }
        self.hosts[rank].device.busy = false;
        self.run_device(rank)
    }

    /// The changes of a wave in a rank's own slots, in order.
    fn own_commits(&self, rank: usize, exchange: usize, wave: usize) -> Vec<SlotCommit> {
        let commits = &self.plans[exchange][rank].waves()[wave].commits;
        let own = commits.iter().filter(|c| self.topology.rank_of(c.slot).index() == rank);
        own.copied().collect()
    }

    /// Layers and slots of a rank.
    pub(super) fn own_cells(&self, rank: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (layers, slots) = (self.scenario.layers, self.topology.slots_of(RankId::at(rank)));
        (0..layers).flat_map(move |layer| slots.clone().map(move |slot| (layer, slot)))
    }
}
