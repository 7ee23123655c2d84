//! Which holder of an expert sends it.

use eplb_core::{ModelLayout, SlotId, Topology, Transfer};

use super::layer::LayerState;
use super::{Draft, Need};

/// Gives every need of a wave a source: the destination's own rank, else a rank of its node, else any; among equals the
/// one whose port carries the least in this wave. Needs with the fewest holders choose first. The result is in
/// canonical order: layer, expert, destination rank, destination slot.
pub(crate) fn choose(
    draft: &Draft,
    layers: &[LayerState],
    topology: &Topology,
    layout: &ModelLayout,
) -> Vec<Transfer> {
    let key = |need: &Need| (need.layer, need.expert, topology.rank_of(need.dest_slot), need.dest_slot);
    let mut order: Vec<(usize, &Need)> =
        draft.needs.iter().map(|need| (undrained(need, draft, layers).count(), need)).collect();
    order.sort_unstable_by_key(|&(count, need)| (count, key(need)));

    let mut sent = vec![0u64; topology.ranks()];
    let mut transfers = Vec::with_capacity(order.len());
    for (_, need) in order {
        let dest = topology.rank_of(need.dest_slot);
        let bytes = layout.layer(need.layer).expert_bytes() as u64;
        let distance = |slot: SlotId| {
            let rank = topology.rank_of(slot);
            if rank == dest {
                0
            } else if topology.node_of(rank) == topology.node_of(dest) {
                1
            } else {
                2
            }
        };
        let chosen = undrained(need, draft, layers).min_by_key(|&slot| {
            let near = distance(slot);
            (near, if near == 0 { 0 } else { sent[topology.rank_of(slot).index()] }, slot)
        });
        // Every expert keeps an undrained slot during a wave (see the module's invariants).
        let Some(source_slot) = chosen else { unreachable!("{} {} has no source", need.layer, need.expert) };
        let source = topology.rank_of(source_slot);
        if source != dest {
            sent[source.index()] += bytes;
        }
        transfers.push(Transfer {
            layer: need.layer,
            expert: need.expert,
            source,
            source_slot,
            dest,
            dest_slot: need.dest_slot,
            landing: need.landing,
        });
    }
    transfers.sort_unstable_by_key(|t| (t.layer, t.expert, t.dest, t.dest_slot));
    transfers
}

/// Slots that hold the expert of a need and stay in service during the wave: a drained slot is never a source.
fn undrained<'a>(
    need: &'a Need,
    draft: &'a Draft,
    layers: &'a [LayerState],
) -> impl Iterator<Item = SlotId> + 'a {
    let holders = layers[need.layer.index()].holders(need.expert).iter().copied();
    holders.filter(move |&slot| draft.wave.drains.binary_search(&(need.layer, slot)).is_err())
}
