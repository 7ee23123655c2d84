//! `random`: a valid placement drawn with a seed, whatever the loads.

use crate::request::Request;
use crate::workers::Workers;

#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Live slots in drawn order.
    order: Vec<usize>,
    /// Experts in drawn order.
    experts: Vec<usize>,
    /// Replicas so far, `[E]`.
    count: Vec<usize>,
}

/// First one copy of every expert in slots drawn at random, then for each slot left a random expert that its rank
/// does not hold and that may have one more replica; -1 if there is none. Layers are drawn independently of each
/// other, so that the result does not depend on which thread takes which.
pub(super) fn place(request: &Request<'_>, workers: &Workers, phy2log: &mut [i32]) {
    let (topology, experts) = (request.topology, request.loads.experts());
    let limit = request.options.replica_limit(topology.slots());
    workers.for_each_layer(phy2log, topology.slots(), |layer, slots, scratch| {
        let mut draw = SplitMix::new(request.options.seed, layer as u64);
        let Scratch { order, experts: drawn, count } = &mut scratch.random;
        order.clear();
        order.extend(topology.live_ranks().flat_map(|rank| topology.slots_of(rank)));
        draw.shuffle(order);
        drawn.clear();
        drawn.extend(0..experts);
        draw.shuffle(drawn);
        count.clear();
        count.resize(experts, 0);
        for (&slot, &expert) in order.iter().zip(drawn.iter()) {
            slots[slot] = expert as i32;
            count[expert] += 1;
        }
        for &slot in order.iter().skip(experts) {
            let own = topology.slots_of(topology.rank_of(eplb_core::SlotId::at(slot)));
            let first = draw.below(experts);
            let found = (0..experts)
                .map(|i| (first + i) % experts)
                .find(|&e| count[e] < limit && !slots[own.clone()].contains(&(e as i32)));
            if let Some(expert) = found {
                slots[slot] = expert as i32;
                count[expert] += 1;
            }
        }
    });
}

/// SplitMix64 (Steele, Lea, Flood 2014): a small generator with the same stream on every machine.
struct SplitMix(u64);

impl SplitMix {
    /// The stream of one layer.
    fn new(seed: u64, layer: u64) -> Self {
        let mut mixed = Self(seed);
        Self(mixed.next() ^ layer.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`; the bias of the high product is below `n / 2^64`.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// Fisher-Yates.
    fn shuffle(&mut self, items: &mut [usize]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
