//! `deepseek`: the algorithm of DeepSeek EPLB (github.com/deepseek-ai/EPLB), slot for slot.
//!
//! Where the groups divide over the nodes, three steps: groups are packed on nodes; inside each node the spare slots
//! go one by one to the expert with the largest load per replica; the node's physical experts are packed on its
//! ranks. Otherwise the same with one group and one node. Packing takes items by load descending, each to the
//! lightest pack that is not full. As in the original, loads and sums are float32. Ties, which the original leaves
//! to its sort, go to the lower number.
//!
//! It is kept as published: it may put two copies of an expert on one rank, and knows neither speeds nor dead ranks.

use eplb_core::{NodeId, Topology};

use super::layer_loads;
use crate::error::PlanError;
use crate::request::Request;
use crate::workers::Workers;

const NAME: &str = "deepseek";

#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Load of each expert, `[E]`.
    weight: Vec<f32>,
    /// Load of each group, `[groups]`.
    group_weight: Vec<f32>,
    /// Where each group goes, `[groups]`.
    group_place: Vec<usize>,
    /// Experts in node-major order, `[E]`.
    node_major: Vec<usize>,
    /// Load per replica of the node's experts, and how many replicas each has.
    per_replica: Vec<f32>,
    count: Vec<u32>,
    /// Expert (position inside the node) of each of the node's physical experts, and their loads.
    physical: Vec<usize>,
    physical_weight: Vec<f32>,
    /// Where each physical expert goes inside the node.
    place: Vec<usize>,
    pack: PackScratch,
}

#[derive(Debug, Default)]
struct PackScratch {
    order: Vec<u64>,
    load: Vec<f32>,
    filled: Vec<usize>,
}

/// Numbers that the algorithm divides by.
#[derive(Debug, Clone, Copy)]
struct Shape {
    groups: usize,
    nodes: usize,
    ranks: usize,
    slots: usize,
    limit: usize,
}

/// Checks the request and places every layer.
pub(super) fn place(request: &Request<'_>, workers: &Workers, phy2log: &mut [i32]) -> Result<(), PlanError> {
    let shape = Shape::of(request)?;
    workers.for_each_layer(phy2log, shape.slots, |layer, slots, scratch| {
        place_layer(layer_loads(request, layer), shape, slots, &mut scratch.deepseek);
    });
    Ok(())
}

impl Shape {
    fn of(request: &Request<'_>) -> Result<Self, PlanError> {
        let (topology, options, experts) = (request.topology, request.options, request.loads.experts());
        let (ranks, slots) = (topology.ranks(), topology.slots());
        let divides = |what, left: usize, by, right: usize, advice| {
            if left.is_multiple_of(right) {
                return Ok(());
            }
            Err(PlanError::NotDivisible { policy: NAME, what, left, by, right, advice })
        };
        let unsupported = |reason: String| Err(PlanError::Unsupported { policy: NAME, reason });
        if !topology.all_alive() {
            return unsupported("cannot plan around dead ranks; use another policy".into());
        }
        divides("slots", slots, "ranks", ranks, "give every rank as many slots, or use another policy")?;
        if topology.uniform_slots().is_none() {
            return unsupported("every rank must own as many slots; use another policy".into());
        }
        let limit = options.replica_limit(slots);
        if limit.saturating_mul(experts) < slots {
            return unsupported(format!(
                "{slots} slots cannot be filled with {experts} experts of at most {limit} replicas; raise max_replicas \
                 or use another policy"
            ));
        }
        // The original falls to the global rule when the groups do not divide over the nodes.
        if !options.groups.is_multiple_of(topology.nodes()) {
            return Ok(Self { groups: 1, nodes: 1, ranks, slots, limit });
        }
        divides("experts", experts, "groups", options.groups, "give a number of groups that divides them")?;
        divides("ranks", ranks, "nodes", topology.nodes(), "give nodes of equal size, or 1 node")?;
        if !consecutive_nodes(topology) {
            return unsupported("nodes must be consecutive ranks, equally many each; use 1 node".into());
        }
        let nodes = topology.nodes();
        if limit * (experts / nodes) < slots / nodes {
            return unsupported("max_replicas leaves slots of a node empty; raise it".into());
        }
        Ok(Self { groups: options.groups, nodes, ranks, slots, limit })
    }
}

fn consecutive_nodes(topology: &Topology) -> bool {
    let per_node = topology.ranks() / topology.nodes();
    topology.all_ranks().all(|rank| topology.node_of(rank) == NodeId::at(rank.index() / per_node))
}

/// Places one layer with loads `row` (`[E]`) into `slots` (`[P]`).
fn place_layer(row: &[f64], shape: Shape, slots: &mut [i32], scratch: &mut Scratch) {
    let Scratch { weight, group_weight, group_place, node_major, pack, .. } = scratch;
    let experts = row.len();
    let scale = float32_scale(row);
    weight.clear();
    weight.extend(row.iter().map(|w| (w * scale) as f32));

    let group_size = experts / shape.groups;
    group_weight.clear();
    group_weight.extend(weight.chunks_exact(group_size).map(|g| g.iter().sum::<f32>()));
    pack.pack(group_weight, shape.nodes, group_place);
    node_major.clear();
    node_major.resize(experts, 0);
    for (group, &at) in group_place.iter().enumerate() {
        for i in 0..group_size {
            node_major[at * group_size + i] = group * group_size + i;
        }
    }

    let (experts_per_node, slots_per_node) = (experts / shape.nodes, shape.slots / shape.nodes);
    for (node, slots) in slots.chunks_exact_mut(slots_per_node).enumerate() {
        let own = node * experts_per_node..(node + 1) * experts_per_node;
        scratch.replicate(own.clone(), slots_per_node, shape.limit);
        let Scratch { node_major, physical, physical_weight, place, pack, .. } = scratch;
        pack.pack(physical_weight, shape.ranks / shape.nodes, place);
        for (&at, &expert) in place.iter().zip(physical.iter()) {
            slots[at] = node_major[own.start + expert] as i32;
        }
    }
}

/// A power of two that brings the largest load near 2^60, so that no float32 sum overflows whatever unit the loads
/// are in. Powers of two change no comparison.
fn float32_scale(row: &[f64]) -> f64 {
    let largest = row.iter().copied().fold(0.0, f64::max);
    if largest == 0.0 {
        return 1.0;
    }
    // Biased exponents: that of 2^60 / 2^(largest's), capped at the largest power of two that exists.
    let exponent = 60 + 1023 - ((largest.to_bits() >> 52) as i64 - 1023);
    f64::from_bits((exponent.min(2046) as u64) << 52)
}

impl Scratch {
    /// Fills `physical` and `physical_weight` with the experts `own` (node-major) and their extra copies: first the
    /// experts in order, then one more copy of the expert with the largest load per replica until `slots` are full.
    fn replicate(&mut self, own: std::ops::Range<usize>, slots: usize, limit: usize) {
        let Self { weight, node_major, per_replica, count, physical, physical_weight, .. } = self;
        let experts = own.len();
        let weight_of = |e: usize| weight[node_major[own.start + e]];
        physical.clear();
        physical.extend(0..experts);
        count.clear();
        count.resize(experts, 1);
        per_replica.clear();
        per_replica.extend((0..experts).map(weight_of));
        for _ in experts..slots {
            let mut best = None::<usize>;
            for (expert, &load) in per_replica.iter().enumerate() {
                if (count[expert] as usize) < limit && best.is_none_or(|b| load > per_replica[b]) {
                    best = Some(expert);
                }
            }
            // The caller made sure that the limit leaves enough replicas to fill the slots.
            let Some(best) = best else { break };
            physical.push(best);
            count[best] += 1;
            per_replica[best] = weight_of(best) / count[best] as f32;
        }
        physical_weight.clear();
        physical_weight.extend(physical.iter().map(|&e| per_replica[e]));
    }
}

impl PackScratch {
    /// Packs items into `packs` packs of equal size: item `i` goes to position `place[i]`, pack-major.
    fn pack(&mut self, weight: &[f32], packs: usize, place: &mut Vec<usize>) {
        let size = weight.len() / packs;
        place.clear();
        if size == 1 {
            place.extend(0..weight.len());
            return;
        }
        place.resize(weight.len(), 0);
        self.order.clear();
        // Bits of a float that is not negative sort as the float does: descending load, then ascending item.
        self.order.extend(weight.iter().enumerate().map(|(i, w)| (u64::from(!w.to_bits()) << 32) | i as u64));
        self.order.sort_unstable();
        self.load.clear();
        self.load.resize(packs, 0.0);
        self.filled.clear();
        self.filled.resize(packs, 0);
        for &key in &self.order {
            let item = (key & 0xffff_ffff) as usize;
            let mut lightest = usize::MAX;
            for pack in 0..packs {
                if self.filled[pack] < size
                    && (lightest == usize::MAX || self.load[pack] < self.load[lightest])
                {
                    lightest = pack;
                }
            }
            place[item] = lightest * size + self.filled[lightest];
            self.filled[lightest] += 1;
            self.load[lightest] += weight[item];
        }
    }
}
