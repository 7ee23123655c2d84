//! `static`: the placement that a server starts with, whatever the loads.

use crate::request::Request;
use crate::workers::Workers;

#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Replicas so far, `[E]`.
    count: Vec<usize>,
}

/// The n-th live slot holds expert `n % E`. Neighbouring slots hold different experts, so a rank gets a second copy
/// only if it owns more slots than there are experts: those slots stay empty, as do slots beyond the replica limit.
pub(super) fn place(request: &Request<'_>, workers: &Workers, phy2log: &mut [i32]) {
    let (topology, experts) = (request.topology, request.loads.experts());
    let limit = request.options.replica_limit(topology.slots());
    workers.for_each_layer(phy2log, topology.slots(), |_, slots, scratch| {
        let count = &mut scratch.static_.count;
        count.clear();
        count.resize(experts, 0);
        let mut next = 0;
        for rank in topology.live_ranks() {
            for slot in topology.slots_of(rank).take(experts) {
                let expert = next % experts;
                next += 1;
                if count[expert] < limit {
                    count[expert] += 1;
                    slots[slot] = expert as i32;
                }
            }
        }
    });
}
