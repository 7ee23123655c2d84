//! Slot numbers on request: permutes the experts inside ranks.

use eplb_core::{ExpertId, Fill, Landing, LayerId, ModelLayout, SlotCommit, SlotId, Topology};

use super::{Draft, Need};

/// Adds to the draft the copies that bring each rank's experts of one layer from `current` to the slot numbers of
/// `wanted`, which holds the same experts on every rank. What does not fit in staging waits for the next wave.
///
/// A rank's changes form paths that end in an empty slot and cycles. A path is a chain of slot-to-slot copies in one
/// commit; a cycle is the same with its first expert in staging, whatever its length.
pub(crate) fn permute(
    layer: LayerId,
    current: &[i32],
    wanted: &[i32],
    topology: &Topology,
    layout: &ModelLayout,
    draft: &mut Draft,
) {
    let bytes = layout.layer(layer).staged_bytes();
    for rank in topology.all_ranks() {
        let slots = topology.slots_of(rank);
        // `from[i]`: the slot whose content the i-th slot gets; experts twice on a rank are matched in order.
        let mut used = vec![false; slots.len()];
        let mut from = vec![None; slots.len()];
        for (i, slot) in slots.clone().enumerate() {
            if current[slot] == wanted[slot] {
                used[i] = true;
            }
        }
        for (i, slot) in slots.clone().enumerate() {
            if current[slot] == wanted[slot] || wanted[slot] < 0 {
                continue;
            }
            let source = slots.clone().position(|s| current[s] == wanted[slot] && !used[s - slots.start]);
            if let Some(source) = source {
                used[source] = true;
                from[i] = Some(source);
            }
        }
        let slot = |i: usize| SlotId::at(slots.start + i);
        let expert = |i: usize| ExpertId(current[slots.start + i] as u32);
        // Paths: start at the empty slot and walk back to where the experts come from; the last slot is left empty.
        for end in 0..slots.len() {
            if current[slots.start + end] >= 0 || from[end].is_none() {
                continue;
            }
            let mut commit =
                |i: usize, fill| draft.wave.commits.push(SlotCommit { layer, slot: slot(i), fill });
            let mut at = end;
            while let Some(source) = from[at].take() {
                commit(at, Fill::FromSlot { expert: expert(source), slot: slot(source) });
                at = source;
            }
            commit(at, Fill::Empty);
        }
        // Cycles: the first expert waits in staging until the last slot is free.
        for first in 0..slots.len() {
            if from[first].is_none() {
                continue;
            }
            if !draft.has_room(rank, bytes) {
                break;
            }
            let mut cycle = vec![first];
            let mut at = first;
            while let Some(source) = from[at].take().filter(|&source| source != first) {
                cycle.push(source);
                at = source;
            }
            let last = at;
            let offset = draft.stage(rank, bytes);
            let landing = Landing::Staged { offset };
            draft.needs.push(Need { layer, expert: expert(first), dest_slot: slot(last), landing });
            let mut commit =
                |i: usize, fill| draft.wave.commits.push(SlotCommit { layer, slot: slot(i), fill });
            for pair in cycle.windows(2) {
                commit(pair[0], Fill::FromSlot { expert: expert(pair[1]), slot: slot(pair[1]) });
            }
            commit(last, Fill::Staged { expert: expert(first), offset });
        }
    }
}
