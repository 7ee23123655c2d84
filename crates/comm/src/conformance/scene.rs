//! Ranks under test, and what every place of theirs must hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::{ExpertId, Landing, LayerId, RankId, SlotId, Transfer};

use super::{Backend, Rank, Setup, Stage, Violation};
use crate::communicator::{Progress, Ticket};
use crate::error::CommError;
use crate::fence::Fence;
use crate::memory::Place;
use crate::pattern;

/// Pause between two rounds of polling.
const PAUSE: Duration = Duration::from_micros(50);

/// One check's ranks. Slot `p` of every layer holds expert `p` at first, so that no two places hold the same.
pub(super) struct Scene<'a> {
    pub(super) stage: Stage<'a>,
    pub(super) setup: Setup,
    pub(super) ranks: Vec<Rank>,
    /// What must be where: `(rank, place) -> (layer, expert)`.
    expected: BTreeMap<(usize, Key), ExpertId>,
}

/// A place in an order: `(layer, slot)` or `(layer, staging offset)`.
type Key = (u32, bool, usize);

fn key(place: Place) -> Key {
    match place {
        Place::Slot { layer, slot } => (layer.0, false, slot.index()),
        Place::Staging { layer, offset } => (layer.0, true, offset),
    }
}

fn place((layer, staged, at): Key) -> Place {
    let layer = LayerId(layer);
    if staged { Place::staged(layer, at) } else { Place::slot(layer, SlotId::at(at)) }
}

impl<'a> Scene<'a> {
    pub(super) fn new(
        stage: &Stage<'a>,
        backend: &mut dyn Backend,
        setup: Result<Setup, eplb_core::CoreError>,
    ) -> Result<Self, Violation> {
        let fail = |what: String| stage.violation(what);
        let setup = setup.map_err(|error| fail(error.to_string()))?;
        let ranks = backend.ranks(&setup).map_err(|error| fail(format!("no ranks: {error}")))?;
        if ranks.len() != setup.slots.len() {
            return Err(fail(format!("{} ranks made, asked for {}", ranks.len(), setup.slots.len())));
        }
        let mut scene = Self { stage: *stage, setup, ranks, expected: BTreeMap::new() };
        for rank in 0..scene.ranks.len() {
            let communicator = &scene.ranks[rank].communicator;
            if communicator.rank().index() != rank || communicator.world_size() != scene.ranks.len() {
                let found = (communicator.rank(), communicator.world_size());
                return Err(scene.violation(format!("rank {rank} of {} says {found:?}", scene.ranks.len())));
            }
            for layer in 0..scene.layers() {
                for slot in scene.setup.slots[rank].clone() {
                    let (layer, slot, expert) = (LayerId::at(layer), SlotId::at(slot), ExpertId::at(slot));
                    let filled = scene.ranks[rank].memory.fill(layer, slot, expert);
                    filled.map_err(|error| scene.violation(format!("filling: {error}")))?;
                    scene.expected.insert((rank, key(Place::slot(layer, slot))), expert);
                }
            }
        }
        Ok(scene)
    }

    pub(super) fn violation(&self, what: impl std::fmt::Display) -> Violation {
        self.stage.violation(format!("{}: {what}", self.setup.name))
    }

    pub(super) fn layers(&self) -> usize {
        self.setup.layouts[0].layers()
    }

    pub(super) fn world(&self) -> usize {
        self.ranks.len()
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.stage.options.patience
    }

    /// Slot number `nth` of a rank.
    pub(super) fn slot(&self, rank: usize, nth: usize) -> SlotId {
        SlotId::at(self.setup.slots[rank].start + nth)
    }

    /// The expert that a slot must hold.
    pub(super) fn expert(&self, rank: usize, layer: usize, slot: SlotId) -> ExpertId {
        self.expected[&(rank, key(Place::slot(LayerId::at(layer), slot)))]
    }

    /// A transfer of what slot `from.1` (counted inside rank `from.0`) must hold now, to slot `to.1` of rank `to.0`.
    pub(super) fn transfer(
        &self,
        layer: usize,
        from: (usize, usize),
        to: (usize, usize),
        landing: Landing,
    ) -> Transfer {
        let source_slot = self.slot(from.0, from.1);
        Transfer {
            layer: LayerId::at(layer),
            expert: self.expert(from.0, layer, source_slot),
            source: RankId::at(from.0),
            source_slot,
            dest: RankId::at(to.0),
            dest_slot: self.slot(to.0, to.1),
            landing,
        }
    }

    /// Submits a wave on one rank; it must be taken.
    pub(super) fn submit_on(
        &mut self,
        rank: usize,
        wave: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, Violation> {
        let taken = self.ranks[rank].communicator.submit(wave, after, deadline);
        taken.map_err(|error| self.violation(format!("submit on rank {rank}: {error}")))
    }

    /// Submits a wave on all ranks; one ticket per rank.
    pub(super) fn submit(&mut self, wave: &Arc<[Transfer]>, after: &Fence) -> Result<Vec<Ticket>, Violation> {
        let deadline = self.deadline();
        (0..self.world()).map(|rank| self.submit_on(rank, wave, after.clone(), deadline)).collect()
    }

    pub(super) fn poll(&mut self, rank: usize, ticket: Ticket) -> Result<Progress, CommError> {
        self.ranks[rank].communicator.poll(ticket)
    }

    /// Polls until all ranks report done.
    pub(super) fn finish(&mut self, tickets: &[Ticket]) -> Result<(), Violation> {
        let deadline = self.deadline();
        let mut left: Vec<(usize, Ticket)> = tickets.iter().copied().enumerate().collect();
        while !left.is_empty() {
            let mut pending = Vec::new();
            for (rank, ticket) in left {
                match self.poll(rank, ticket) {
                    Ok(Progress::Done) => {}
                    Ok(Progress::Pending) => pending.push((rank, ticket)),
                    Err(error) => return Err(self.violation(format!("rank {rank}: {error}"))),
                }
            }
            if !pending.is_empty() && Instant::now() >= deadline {
                return Err(self.violation(format!("not done and no error after the deadline: {pending:?}")));
            }
            left = pending;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Polls until the wave fails, and gives the error.
    pub(super) fn failure(&mut self, rank: usize, ticket: Ticket) -> Result<CommError, Violation> {
        let deadline = self.deadline();
        loop {
            match self.poll(rank, ticket) {
                Err(error) => return Ok(error),
                Ok(Progress::Done) => return Err(self.violation(format!("rank {rank}: done, must fail"))),
                Ok(Progress::Pending) if Instant::now() >= deadline => {
                    return Err(self.violation(format!("rank {rank}: pending for ever, must fail")));
                }
                Ok(Progress::Pending) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// From now on the places that a wave lands in must hold its experts.
    pub(super) fn landed(&mut self, wave: &[Transfer]) {
        for transfer in wave {
            let place = Place::landing(transfer);
            if let Place::Staging { layer, offset } = place {
                self.forget_staged(transfer.dest.index(), layer, offset);
            }
            self.expected.insert((transfer.dest.index(), key(place)), transfer.expert);
        }
    }

    fn forget_staged(&mut self, rank: usize, layer: LayerId, offset: usize) {
        let layout = &self.setup.layouts[rank];
        let end = offset + layout.layer(layer).staged_bytes();
        self.expected.retain(|&(owner, (other, staged, at)), _| {
            let other_end = at + layout.layer(LayerId(other)).staged_bytes();
            owner != rank || !staged || at >= end || other_end <= offset
        });
    }

    /// Submits a wave everywhere, waits for it and expects its bytes.
    pub(super) fn run(&mut self, wave: Vec<Transfer>) -> Result<(), Violation> {
        let wave: Arc<[Transfer]> = wave.into();
        let tickets = self.submit(&wave, &Fence::passed())?;
        self.finish(&tickets)?;
        self.landed(&wave);
        self.verify()
    }

    /// Checks every byte of every place.
    pub(super) fn verify(&mut self) -> Result<(), Violation> {
        for (&(rank, key), &expert) in &self.expected {
            let place = place(key);
            let bytes = match self.ranks[rank].memory.read(place) {
                Ok(bytes) => bytes,
                Err(error) => return Err(self.violation(format!("reading {place} of rank {rank}: {error}"))),
            };
            for (tensor, bytes) in bytes.iter().enumerate() {
                let wrong = pattern::count_wrong(LayerId(key.0), expert, tensor, 0, bytes);
                if wrong > 0 {
                    let of = bytes.len();
                    return Err(self.violation(format!(
                        "rank {rank}: {place} must hold {expert}, but {wrong} of {of} bytes of tensor {tensor} are others"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Watches for a while that no byte of what is expected changes.
    pub(super) fn verify_quiet(&mut self) -> Result<(), Violation> {
        self.verify()?;
        std::thread::sleep(self.stage.options.watch);
        self.verify()
    }

    /// All bytes of all slots.
    pub(super) fn snapshot(&mut self) -> Result<Vec<Vec<Vec<u8>>>, Violation> {
        let mut all = Vec::new();
        let places: Vec<_> = self.expected.keys().copied().collect();
        for (rank, key) in places {
            let bytes = self.ranks[rank].memory.read(place(key));
            all.push(bytes.map_err(|error| self.violation(format!("after the fence of abort: {error}")))?);
        }
        Ok(all)
    }

    /// Aborts every rank and waits for the fences.
    pub(super) fn abort_all(&mut self) -> Result<(), Violation> {
        let fences: Vec<Fence> =
            self.ranks.iter_mut().map(|rank| rank.communicator.abort("the check says so")).collect();
        for (rank, fence) in fences.iter().enumerate() {
            let quiet = fence.wait(RankId::at(rank), "the fence of an abort", self.deadline());
            quiet.map_err(|error| self.violation(error))?;
        }
        Ok(())
    }

    /// A ring: slot 0 of each rank and layer goes to slot 1 of the next rank in place, and inside the rank to slot 2.
    pub(super) fn ring(&self) -> Vec<Transfer> {
        let mut wave = Vec::new();
        for layer in 0..self.layers() {
            for rank in 0..self.world() {
                wave.push(self.transfer(layer, (rank, 0), ((rank + 1) % self.world(), 1), Landing::InPlace));
                wave.push(self.transfer(layer, (rank, 0), (rank, 2), Landing::InPlace));
            }
        }
        sort(&mut wave);
        wave
    }
}

/// Canonical order: layer, expert, destination rank, destination slot.
pub(super) fn sort(wave: &mut [Transfer]) {
    wave.sort_unstable_by_key(|t| (t.layer, t.expert, t.dest, t.dest_slot));
}
