//! `balanced`: a fresh plan, as good as the loads allow.

mod exchange;
mod fill;
mod pack;
mod refine;
mod replace;
mod replicas;
mod state;

use super::layer_loads;
use crate::layer::{Ranks, whole_units};
use crate::request::Request;
use crate::workers::Workers;

#[derive(Debug, Default)]
pub(super) struct Scratch {
    units: Vec<f64>,
    replicas: replicas::Replicas,
    state: state::State,
    pack: pack::PackScratch,
    refine: refine::RefineScratch,
}

/// Places every layer.
pub(super) fn place(request: &Request<'_>, workers: &Workers, phy2log: &mut [i32]) {
    let topology = request.topology;
    let experts = request.loads.experts();
    let ranks = Ranks::live(topology, experts);
    let limit = request.options.replica_limit(ranks.len());
    workers.for_each_layer(phy2log, topology.slots(), |layer, slots, scratch| {
        let Scratch { units, replicas, state, pack, refine } = &mut scratch.balanced;
        whole_units(layer_loads(request, layer), units);
        replicas.choose(units, ranks.total_room(), limit);
        state.reset(&ranks, units, &replicas.count, &replicas.size);
        pack::pack(state, &ranks, &replicas.sequence, limit, pack);
        refine::refine(state, &ranks, limit, refine);
        for (rank, id) in ranks.id.iter().enumerate() {
            for (slot, place) in topology.slots_of(*id).zip(state.places(rank)) {
                let expert = state.expert[place];
                slots[slot] = if expert == state::NONE { -1 } else { expert as i32 };
            }
        }
    });
}
