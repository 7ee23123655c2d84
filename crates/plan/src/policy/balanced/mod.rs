//! `balanced`: a fresh plan, as good as the loads allow, layer by layer.
//!
//! 1. `replicas`: every spare slot to the expert with the largest load per replica, which is optimal for the largest
//!    share.
//! 2. `pack`: replicas by load descending, each on the lightest rank with room that does not hold the expert.
//! 3. `refine`: while the worst rank is above the mean, exchanges of one or two replicas with lighter ranks, and
//!    replicas of one expert replaced by another's, which change the counts of step 1.
//! 4. `search`: where that ends far from what can be hoped for, other counts are packed and refined, and the best is kept.
//! 5. `exact`: a handful of experts on a handful of ranks are placed as well as they can be.
//! 6. `keep`: with a placement in force, sets of experts go to the ranks that hold most of them already, and experts
//!    that stay on their rank stay in their slot. The plan itself does not depend on what is in force.
//!
//! What holds after each step: every expert has a copy while live slots suffice, else those with the least load have
//! none; no rank holds an expert twice; no expert has more than `max_replicas` replicas; a slot is empty only if no
//! placement could fill more slots under these rules. Refinement never raises the worst rank. Ranks may differ in
//! slots and speed; costs are loads over speed. Loads are whole units (see `crate::layer`), so that every comparison
//! is exact and ties go to the lower id.
//!
//! A layer without load keeps what is in place, or is spread evenly where nothing is.

mod chain;
mod exact;
mod exchange;
mod fill;
mod fits;
mod holders;
mod idle;
mod keep;
mod pack;
mod refine;
mod relabel;
mod replace;
mod replicas;
mod search;
mod sets;
mod state;
#[cfg(test)]
mod tests;

pub(super) use self::sets::Sets;

use std::ops::Range;

use crate::layer::{Ranks, whole_units};
use crate::request::Request;
use crate::workers::Workers;

/// Memory for one layer.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    units: Vec<f64>,
    search: search::Search,
    keep: keep::KeepScratch,
}

/// Places every layer.
pub(super) fn place(request: &Request<'_>, workers: &Workers, phy2log: &mut [i32]) {
    let (topology, experts) = (request.topology, request.loads.experts());
    let ranks = Ranks::live(topology, experts);
    let own: Vec<Range<usize>> = ranks.id.iter().map(|&rank| topology.slots_of(rank)).collect();
    let limit = request.options.replica_limit(ranks.len());
    workers.for_each_layer(phy2log, topology.slots(), |layer, slots, scratch| {
        let Scratch { units, search, keep } = &mut scratch.balanced;
        let idle = whole_units(request.layer_loads(layer), units);
        let current = request.current_row(layer);
        match current {
            Some(current) if idle => {
                search.start(units, &ranks, limit);
                idle::keep_in_place(&mut search.state, &own, current, limit, search.pack.fill());
            }
            _ => search.run(units, &ranks, limit),
        }
        keep.write(&search.state, &own, current, slots);
    });
}
