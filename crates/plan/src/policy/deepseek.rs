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

use crate::error::PlanError;
use crate::order::{Tournament, sort_keys};
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
    group_place: Vec<u32>,
    /// Experts in node-major order, `[E]`.
    node_major: Vec<u32>,
    replicas: ReplicaScratch,
    /// Where each physical expert goes inside the node.
    place: Vec<u32>,
    pack: PackScratch,
}

/// One node's experts and their replicas.
#[derive(Debug, Default)]
struct ReplicaScratch {
    /// Replicas of each expert, and load of each replica.
    count: Vec<u32>,
    load: Vec<f32>,
    /// Experts that may get one more, largest load per replica first.
    next: Tournament,
    /// Expert (position inside the node) of each of the node's physical experts, and their loads.
    physical: Vec<u32>,
    physical_load: Vec<f32>,
}

#[derive(Debug, Default)]
struct PackScratch {
    /// Items, largest first.
    order: Vec<u64>,
    memory: Vec<u64>,
    /// Packs that are not full, lightest first.
    open: Tournament,
    load: Vec<f32>,
    filled: Vec<u32>,
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
        place_layer(request.layer_loads(layer), shape, slots, &mut scratch.deepseek);
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
    let Scratch { weight, group_weight, group_place, node_major, replicas, place, pack } = scratch;
    let experts = row.len();
    let scale = float32_scale(row);
    weight.clear();
    weight.extend(row.iter().map(|w| (w * scale) as f32));

    let group_size = experts / shape.groups;
    group_weight.clear();
    group_weight.extend(weight.chunks_exact(group_size).map(|g| g.iter().sum::<f32>()));
    pack.pack(group_weight, shape.nodes, group_place);
    node_major.resize(experts, 0);
    for (group, &at) in group_place.iter().enumerate() {
        let to = at as usize * group_size..(at as usize + 1) * group_size;
        node_major[to].iter_mut().zip((group * group_size) as u32..).for_each(|(to, expert)| *to = expert);
    }

    let (experts_per_node, slots_per_node) = (experts / shape.nodes, shape.slots / shape.nodes);
    for (own, slots) in node_major.chunks_exact(experts_per_node).zip(slots.chunks_exact_mut(slots_per_node))
    {
        replicas.choose(weight, own, slots_per_node, shape.limit);
        pack.pack(&replicas.physical_load, shape.ranks / shape.nodes, place);
        for (&at, &expert) in place.iter().zip(&replicas.physical) {
            slots[at as usize] = own[expert as usize] as i32;
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

/// A key that sorts by load descending, then id ascending: the bits of floats that are not negative sort as the
/// floats do.
#[inline]
fn largest_first(load: f32, id: usize) -> u64 {
    (u64::from(!load.to_bits()) << 32) | id as u64
}

/// A key that sorts by load ascending, then id ascending.
#[inline]
fn lightest_first(load: f32, id: usize) -> u64 {
    (u64::from(load.to_bits()) << 32) | id as u64
}

#[inline]
fn key_id(key: u64) -> usize {
    key as u32 as usize
}

impl ReplicaScratch {
    /// Lists a node's physical experts: first its experts `own` in order, then one more copy of the expert with the
    /// largest load per replica until `slots` are full.
    fn choose(&mut self, weight: &[f32], own: &[u32], slots: usize, limit: usize) {
        let Self { count, load, next, physical, physical_load } = self;
        physical.clear();
        physical.extend(0..own.len() as u32);
        count.clear();
        count.resize(own.len(), 1);
        load.clear();
        load.extend(own.iter().map(|&e| weight[e as usize]));
        if slots > own.len() && limit > 1 {
            next.start(load.iter().enumerate().map(|(e, &w)| largest_first(w, e)));
            let mut largest = next.top();
            for _ in own.len()..slots {
                // `Shape::of` made sure that the limit leaves enough replicas to fill the slots.
                let expert = key_id(largest);
                physical.push(expert as u32);
                count[expert] += 1;
                load[expert] = weight[own[expert] as usize] / count[expert] as f32;
                let full = count[expert] as usize >= limit;
                largest = next.set(expert, if full { u64::MAX } else { largest_first(load[expert], expert) });
            }
        }
        physical_load.clear();
        physical_load.extend(physical.iter().map(|&e| load[e as usize]));
    }
}

impl PackScratch {
    /// Packs items into `packs` packs of equal size: item `i` goes to position `place[i]`, pack-major.
    fn pack(&mut self, weight: &[f32], packs: usize, place: &mut Vec<u32>) {
        let Self { order, memory, open, load, filled } = self;
        let size = weight.len() / packs;
        place.clear();
        if size == 1 {
            place.extend(0..weight.len() as u32);
            return;
        }
        place.resize(weight.len(), 0);
        order.clear();
        order.extend(weight.iter().enumerate().map(|(i, &w)| largest_first(w, i)));
        sort_keys(order, memory, |key| (key >> 48) as u16);
        // While packs are empty, each item goes to the next one; but one that weighs nothing leaves its pack lightest.
        let empty = if weight[key_id(order[packs - 1])] > 0.0 { packs } else { 0 };
        let (first, rest) = order.split_at(empty);
        load.clear();
        load.resize(packs, 0.0);
        filled.clear();
        filled.resize(packs, u32::from(empty > 0));
        for ((pack, load), &key) in load.iter_mut().enumerate().zip(first) {
            place[key_id(key)] = (pack * size) as u32;
            *load = weight[key_id(key)];
        }
        open.start(load.iter().enumerate().map(|(pack, &load)| lightest_first(load, pack)));
        let mut lightest = open.top();
        for &key in rest {
            let (item, pack) = (key_id(key), key_id(lightest));
            place[item] = (pack * size) as u32 + filled[pack];
            filled[pack] += 1;
            load[pack] += weight[item];
            let full = filled[pack] as usize == size;
            lightest = open.set(pack, if full { u64::MAX } else { lightest_first(load[pack], pack) });
        }
    }
}
