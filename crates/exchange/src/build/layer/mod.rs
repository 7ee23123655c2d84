//! One layer's slots on the way from old to new.

mod cycles;

use std::collections::HashSet;

use eplb_core::{ExpertId, Fill, Landing, LayerId, ModelLayout, RankId, SlotCommit, SlotId, Topology};

use super::service::{Change, Service};
use super::style::Ways;
use super::{Draft, Need};
use crate::plan::Limits;

/// The state between two waves: what every slot holds, what it is to hold, and who holds each expert.
#[derive(Debug, Clone)]
pub(crate) struct LayerState {
    layer: LayerId,
    current: Vec<i32>,
    target: Vec<i32>,
    /// Slots of each expert, ascending.
    holders: Vec<Vec<SlotId>>,
    /// Whether the target holds the expert: if not, its last copy may go.
    required: Vec<bool>,
    row: Option<Vec<f64>>,
    /// Least balancedness that draining may leave.
    floor: Option<f64>,
}

/// Bytes of an expert of a layer.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// In staging.
    staged: usize,
    /// On a link.
    link: u64,
}

impl Sizes {
    fn of(layout: &ModelLayout, layer: LayerId) -> Self {
        let layer = layout.layer(layer);
        Self { staged: layer.staged_bytes(), link: layer.expert_bytes() as u64 }
    }
}

/// What one wave has taken from a layer so far.
struct Taken<'a> {
    /// Slots that this wave changes.
    slots: Vec<bool>,
    /// Slots in service while the wave's transfers run, per expert.
    serving: Vec<Vec<SlotId>>,
    /// Slots of each expert after the wave.
    after: Vec<usize>,
    /// (rank, expert) that a transfer of this wave brings: a second copy is made from it later, inside the rank.
    arriving: HashSet<(RankId, i32)>,
    /// Whether this wave drains a slot of the layer.
    drains: bool,
    /// Experts of which every holder is worth its place as a source; empty if none is.
    wanted: Vec<bool>,
    /// The layer while the wave's transfers run; `None` without loads.
    during: Option<Service<'a>>,
    /// The layer after the wave.
    then: Option<Service<'a>>,
    /// Whether only what keeps the layer above the floor after the wave may be taken.
    strict: bool,
}

impl Taken<'_> {
    /// Takes changes that belong together, unless they leave the layer below the floor after the wave and that matters.
    fn accept(&mut self, changes: &[Change]) -> bool {
        let Some(then) = &mut self.then else { return true };
        then.apply(changes);
        let accepted = !self.strict || then.holds();
        if !accepted {
            then.revert(changes);
        }
        accepted
    }

    /// Takes back what [`Taken::accept`] took.
    fn reject(&mut self, changes: &[Change]) {
        if let Some(then) = &mut self.then {
            then.revert(changes);
        }
    }
}

impl LayerState {
    pub(crate) fn new(
        layer: LayerId,
        current: Vec<i32>,
        target: Vec<i32>,
        experts: usize,
        row: Option<Vec<f64>>,
        floor: Option<f64>,
    ) -> Self {
        let mut holders = vec![Vec::new(); experts];
        let mut required = vec![false; experts];
        for (slot, &entry) in current.iter().enumerate() {
            if let Ok(expert) = usize::try_from(entry) {
                holders[expert].push(SlotId::at(slot));
            }
        }
        target.iter().filter_map(|&e| usize::try_from(e).ok()).for_each(|e| required[e] = true);
        Self { layer, current, target, holders, required, row, floor }
    }

    pub(crate) fn layer(&self) -> LayerId {
        self.layer
    }

    pub(crate) fn current(&self) -> &[i32] {
        &self.current
    }

    /// Slots that hold an expert between waves, ascending.
    pub(crate) fn holders(&self, expert: ExpertId) -> &[SlotId] {
        &self.holders[expert.index()]
    }

    /// Number of slots still to change.
    pub(crate) fn pending(&self) -> usize {
        self.current.iter().zip(&self.target).filter(|(c, t)| c != t).count()
    }

    /// Adds the bytes that each rank is to receive from others.
    pub(crate) fn add_arrivals(&self, topology: &Topology, layout: &ModelLayout, into: &mut [u64]) {
        let bytes = layout.layer(self.layer).expert_bytes() as u64;
        for (slot, (&current, &target)) in self.current.iter().zip(&self.target).enumerate() {
            let rank = topology.rank_of(SlotId::at(slot));
            let here =
                |expert: usize| self.holders[expert].iter().any(|&held| topology.rank_of(held) == rank);
            if current != target && usize::try_from(target).is_ok_and(|expert| !here(expert)) {
                into[rank.index()] += bytes;
            }
        }
    }

    pub(crate) fn has_pending(&self) -> bool {
        self.current != self.target
    }

    /// Makes a slot hold what a commit put there.
    pub(crate) fn apply(&mut self, commit: &SlotCommit) {
        let slot = commit.slot;
        if let Ok(before) = usize::try_from(self.current[slot.index()]) {
            self.holders[before].retain(|&s| s != slot);
        }
        self.current[slot.index()] = commit.fill.expert().map_or(-1, |e| e.0 as i32);
        if let Some(expert) = commit.fill.expert() {
            let holders = &mut self.holders[expert.index()];
            let at = holders.partition_point(|&s| s < slot);
            holders.insert(at, slot);
        }
    }

    /// Adds to the wave what this layer can do in it. Changes that leave the layer above the floor come first; where there are
    /// none, a layer with `first` takes others, so that one layer after the other passes through its worst states. `ways`: what goes through
    /// staging that could do without.
    pub(crate) fn draft(
        &mut self,
        draft: &mut Draft,
        topology: &Topology,
        layout: &ModelLayout,
        limits: &Limits,
        ways: Ways,
        first: bool,
    ) {
        if !self.has_pending() {
            return;
        }
        let before = draft.wave.commits.len();
        self.draft_with(draft, topology, layout, limits, ways, true);
        if first && draft.wave.commits.len() == before {
            let ways = Ways { followers: true, ..ways };
            self.draft_with(draft, topology, layout, limits, ways, false);
        }
        draft.wave.commits[before..].sort_by_key(|c| c.slot);
    }

    fn draft_with(
        &mut self,
        draft: &mut Draft,
        topology: &Topology,
        layout: &ModelLayout,
        limits: &Limits,
        ways: Ways,
        strict: bool,
    ) {
        // The loads are lent to the services while targets may still be swapped inside ranks.
        let row = self.row.take();
        let service = || {
            let (row, floor) = (row.as_deref()?, self.floor?);
            Some(Service::new(row, floor, &self.holders, topology))
        };
        let mut taken = Taken {
            slots: vec![false; self.current.len()],
            serving: self.holders.clone(),
            after: self.holders.iter().map(Vec::len).collect(),
            arriving: HashSet::new(),
            drains: false,
            wanted: if ways.sources { self.wanted(topology) } else { Vec::new() },
            during: service(),
            then: service(),
            strict,
        };
        let sizes = Sizes::of(layout, self.layer);
        let pending: Vec<usize> =
            (0..self.current.len()).filter(|&s| self.current[s] != self.target[s]).collect();
        // First what only staging can bring, so that every wave makes use of it.
        self.take_cycles(&pending, &mut taken, draft, topology, sizes);
        for &slot in &pending {
            self.take_in_place(slot, &mut taken, draft, topology, limits, sizes);
        }
        if ways.followers {
            self.take_followers(&pending, &mut taken, draft, topology, limits, sizes);
        }
        for &slot in &pending {
            self.take_empty(slot, &mut taken, draft);
        }
        drop(taken);
        self.row = row;
    }

    /// Experts that ranks wait for which do not hold them.
    fn wanted(&self, topology: &Topology) -> Vec<bool> {
        let mut wanted = vec![false; self.holders.len()];
        for (slot, (&current, &target)) in self.current.iter().zip(&self.target).enumerate() {
            let rank = topology.rank_of(SlotId::at(slot));
            if let (true, Ok(expert)) = (current != target, usize::try_from(target)) {
                wanted[expert] |= !self.holders[expert].iter().any(|&held| topology.rank_of(held) == rank);
            }
        }
        wanted
    }

    fn change(&self, slot: usize) -> Change {
        Change { slot: SlotId::at(slot), before: self.current[slot], after: self.target[slot] }
    }

    /// Whether the content of a slot may go without the wave bringing it elsewhere.
    fn is_spare(&self, entry: i32, copies: impl Fn(usize) -> usize) -> bool {
        match usize::try_from(entry) {
            Err(_) => true,
            Ok(expert) => !self.required[expert] || copies(expert) >= 2,
        }
    }

    /// One slot whose present content can be spared: drained and filled directly, or staged if the floor forbids the
    /// drain even with nothing else drained.
    fn take_in_place(
        &mut self,
        slot: usize,
        taken: &mut Taken<'_>,
        draft: &mut Draft,
        topology: &Topology,
        limits: &Limits,
        sizes: Sizes,
    ) {
        let (before, wanted) = (self.current[slot], self.target[slot]);
        let Ok(expert) = usize::try_from(wanted) else { return };
        let rank = topology.rank_of(SlotId::at(slot));
        if taken.slots[slot]
            || taken.arriving.contains(&(rank, wanted))
            || !self.is_spare(before, |e| taken.serving[e].len().min(taken.after[e]))
        {
            return;
        }
        // Where the maps have no column left, another slot of the expert that is to change anyway is emptied at once.
        let full = limits.max_replicas.is_some_and(|max| taken.after[expert] >= max);
        let emptied = full
            .then(|| {
                self.holders[expert].iter().copied().find(|s| {
                    !taken.slots[s.index()] && self.target[s.index()] != wanted && s.index() != slot
                })
            })
            .flatten();
        if full && emptied.is_none() {
            return;
        }

        let Some(way) = draft.way(&taken.serving[expert], rank, topology, sizes.link) else { return };
        let mut changes = vec![self.change(slot)];
        changes.extend(emptied.map(|slot| Change { slot, before: wanted, after: -1 }));
        if !taken.accept(&changes) {
            return;
        }
        let Some(landing) = self.land(slot, taken, draft, rank, sizes.staged) else {
            taken.reject(&changes);
            return;
        };
        draft.take_way(way, sizes.link);
        if let Ok(held) = usize::try_from(before) {
            taken.after[held] -= 1;
        }
        taken.after[expert] += 1;
        taken.slots[slot] = true;
        taken.arriving.insert((rank, wanted));
        self.push(draft, slot, expert, landing);
        if let Some(emptied) = emptied {
            taken.after[expert] -= 1;
            taken.slots[emptied.index()] = true;
            draft.wave.commits.push(SlotCommit { layer: self.layer, slot: emptied, fill: Fill::Empty });
        }
    }

    /// Where the bytes for a slot land whose content can be spared; `None` if they cannot in this wave.
    fn land(
        &self,
        slot: usize,
        taken: &mut Taken<'_>,
        draft: &mut Draft,
        rank: RankId,
        bytes: usize,
    ) -> Option<Landing> {
        let Ok(held) = usize::try_from(self.current[slot]) else { return Some(Landing::InPlace) };
        if taken.wanted.get(held).is_some_and(|wanted| *wanted) && draft.has_room(rank, bytes) {
            return Some(Landing::Staged { offset: draft.stage(rank, bytes) });
        }
        let drain = [Change { slot: SlotId::at(slot), before: self.current[slot], after: -1 }];
        // Draining is for layers that are above the floor with nothing drained, and only as far as they stay there.
        let above = taken.drains || taken.during.as_ref().is_none_or(Service::holds);
        let drained = above
            && taken.during.as_mut().is_none_or(|during| {
                during.apply(&drain);
                let holds = during.holds();
                if !holds {
                    during.revert(&drain);
                }
                holds
            });
        if drained {
            taken.serving[held].retain(|s| s.index() != slot);
            taken.drains = true;
            draft.wave.drains.push((self.layer, SlotId::at(slot)));
            return Some(Landing::InPlace);
        }
        // What is forbidden only together with the drains of this wave has its turn in a later one.
        let alone = !taken.drains;
        (alone && draft.has_room(rank, bytes)).then(|| Landing::Staged { offset: draft.stage(rank, bytes) })
    }

    fn push(&self, draft: &mut Draft, slot: usize, expert: usize, landing: Landing) {
        let (layer, slot, expert) = (self.layer, SlotId::at(slot), ExpertId::at(expert));
        draft.needs.push(Need { layer, expert, dest_slot: slot, landing });
        let fill = match landing {
            Landing::InPlace => Fill::InPlace(expert),
            Landing::Staged { offset } => Fill::Staged { expert, offset },
        };
        draft.wave.commits.push(SlotCommit { layer, slot, fill });
    }

    /// Slots whose only copy is brought elsewhere by this very wave: through staging they can follow in the same commit
    /// instead of a later wave. So a layer in a bad state gets through it fast, and a chain keeps all its ports busy at once.
    fn take_followers(
        &mut self,
        pending: &[usize],
        taken: &mut Taken<'_>,
        draft: &mut Draft,
        topology: &Topology,
        limits: &Limits,
        sizes: Sizes,
    ) {
        let mut progress = true;
        while std::mem::take(&mut progress) {
            for &slot in pending {
                let (before, wanted) = (self.current[slot], self.target[slot]);
                let rank = topology.rank_of(SlotId::at(slot));
                let (Ok(held), Ok(expert)) = (usize::try_from(before), usize::try_from(wanted)) else {
                    continue;
                };
                let Some(way) = draft.way(&taken.serving[expert], rank, topology, sizes.link) else {
                    continue;
                };
                if taken.slots[slot]
                    || taken.arriving.contains(&(rank, wanted))
                    || !self.is_spare(before, |e| taken.after[e])
                    || limits.max_replicas.is_some_and(|max| taken.after[expert] >= max)
                    || !draft.has_room(rank, sizes.staged)
                    || !taken.accept(&[self.change(slot)])
                {
                    continue;
                }
                draft.take_way(way, sizes.link);
                let landing = Landing::Staged { offset: draft.stage(rank, sizes.staged) };
                taken.after[held] -= 1;
                taken.after[expert] += 1;
                taken.slots[slot] = true;
                taken.arriving.insert((rank, wanted));
                self.push(draft, slot, expert, landing);
                progress = true;
            }
        }
    }

    /// A slot with nothing to come, whose expert has another slot after the wave.
    fn take_empty(&self, slot: usize, taken: &mut Taken<'_>, draft: &mut Draft) {
        if taken.slots[slot]
            || self.target[slot] >= 0
            || !self.is_spare(self.current[slot], |e| taken.after[e])
        {
            return;
        }
        if !taken.accept(&[self.change(slot)]) {
            return;
        }
        if let Ok(expert) = usize::try_from(self.current[slot]) {
            taken.after[expert] -= 1;
        }
        taken.slots[slot] = true;
        draft.wave.commits.push(SlotCommit { layer: self.layer, slot: SlotId::at(slot), fill: Fill::Empty });
    }
}
