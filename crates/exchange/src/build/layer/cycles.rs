//! Cycles of slots that wait for each other.

use eplb_core::{Landing, SlotId, Topology};

use super::super::Draft;
use super::super::ports::Way;
use super::super::service::Change;
use super::{LayerState, Sizes, Taken};

impl LayerState {
    /// Slots whose content can be spared now or, once others have been filled, later. The pending slots that are not among
    /// them form disjoint cycles: each holds the only copy of an expert that exactly one of the others waits for.
    fn can_be_spared(&self, pending: &[usize]) -> Vec<bool> {
        let mut spared = vec![false; self.current.len()];
        let mut open: Vec<usize> = pending
            .iter()
            .copied()
            .filter(|&s| self.is_spare(self.current[s], |e| self.holders[e].len()))
            .collect();
        open.iter().for_each(|&s| spared[s] = true);
        while let Some(slot) = open.pop() {
            let Ok(expert) = usize::try_from(self.target[slot]) else { continue };
            for holder in self.holders[expert].iter().map(|h| h.index()) {
                if !spared[holder] && self.target[holder] != self.current[holder] {
                    spared[holder] = true;
                    open.push(holder);
                }
            }
        }
        spared
    }

    /// Cycles of slots that hold the only copies of what the next one waits for. Where a cycle comes back to a rank, the
    /// two slots there swap what they get, which closes it early: each cycle visits a rank once.
    pub(super) fn take_cycles(
        &mut self,
        pending: &[usize],
        taken: &mut Taken<'_>,
        draft: &mut Draft,
        topology: &Topology,
        sizes: Sizes,
    ) {
        let spared = self.can_be_spared(pending);
        let mut waits_for = vec![usize::MAX; self.holders.len()];
        for &slot in pending.iter().filter(|&&s| !spared[s]) {
            if let Ok(expert) = usize::try_from(self.target[slot]) {
                waits_for[expert] = slot;
            }
        }
        for &start in pending {
            if spared[start] {
                continue;
            }
            while !taken.slots[start] && self.current[start] != self.target[start] {
                let cycle = self.close_cycle(start, &mut waits_for, topology);
                let ranks = || cycle.iter().map(|&s| topology.rank_of(SlotId::at(s)));
                let room = ranks().all(|rank| draft.has_room(rank, sizes.staged))
                    && draft.has_way_around(ranks(), sizes.link);
                let changes: Vec<Change> = cycle.iter().map(|&slot| self.change(slot)).collect();
                if !room || !taken.accept(&changes) {
                    break;
                }
                for (at, &slot) in cycle.iter().enumerate() {
                    taken.slots[slot] = true;
                    if self.current[slot] == self.target[slot] {
                        // Two slots of one rank that only had to swap their targets.
                        continue;
                    }
                    // Each waits for what the one before it holds.
                    let dest = topology.rank_of(SlotId::at(slot));
                    let source = topology.rank_of(SlotId::at(cycle[(at + cycle.len() - 1) % cycle.len()]));
                    draft.take_way(Way::Link { source, dest }, sizes.link);
                    let offset = draft.stage(dest, sizes.staged);
                    self.push(draft, slot, self.target[slot] as usize, Landing::Staged { offset });
                }
            }
        }
    }

    /// Walks from `start` until a rank is met again; closes the cycle there by a swap of targets inside that rank.
    fn close_cycle(&mut self, start: usize, waits_for: &mut [usize], topology: &Topology) -> Vec<usize> {
        let mut path: Vec<usize> = Vec::new();
        let mut slot = start;
        loop {
            let rank = topology.rank_of(SlotId::at(slot));
            if let Some(at) = path.iter().position(|&s| topology.rank_of(SlotId::at(s)) == rank) {
                let first = path[at];
                if first != slot {
                    self.target.swap(first, slot);
                    for changed in [first, slot] {
                        waits_for[self.target[changed] as usize] = changed;
                    }
                }
                return path.split_off(at);
            }
            path.push(slot);
            slot = waits_for[self.current[slot] as usize];
        }
    }
}
