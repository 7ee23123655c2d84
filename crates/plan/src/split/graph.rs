//! The bipartite graph of one layer: replicated experts on one side, ranks on the other.

use super::ranks::Ranks;

/// An expert with tokens to split: two or more live slots and some load.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Node {
    /// Its tokens, as a part of the layer's.
    pub(super) load: f64,
    /// The part of them that each edge has at even split.
    pub(super) even: f64,
    /// Its first edge.
    start: u32,
    /// One past its last edge.
    end: u32,
}

impl Node {
    /// Its edges, in order of rank.
    #[inline]
    pub(super) fn edges(&self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// The tokens of one node that go to one rank.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Edge {
    /// Tokens, as a part of the layer's.
    pub(super) flow: f64,
    /// The rank.
    pub(super) rank: u32,
    /// The node.
    pub(super) node: u32,
    /// Slots of the rank that hold the expert: more than one where a plan duplicates. They split the flow evenly.
    slots: u32,
    /// The node's first edge, and one past its last: a search that had to ask the node for them would wait for two answers.
    start: u32,
    end: u32,
}

impl Edge {
    /// All edges of its node.
    #[inline]
    pub(super) fn siblings(&self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A slot whose share is to be solved.
#[derive(Debug, Clone, Copy)]
struct OpenSlot {
    slot: u32,
    /// Its rank; once edges are laid its edge, [`NONE`] if the expert is idle.
    at: u32,
}

/// Parts of a layer's tokens below this are not split: shares of so little are not exact, and change nothing.
const LEAST_LOAD: f64 = 1e-290;

/// Stands for no node and no edge.
const NONE: u32 = u32::MAX;

/// Nodes, edges and the load of every rank under the present flows.
#[derive(Debug, Clone, Default)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    /// Nodes with more than one edge, those with few edges first.
    pub(super) by_degree: Vec<u32>,
    /// Where the nodes of each degree begin there.
    degree_start: Vec<u32>,
    /// Edges, those of a node together. There may be unused ones between nodes.
    pub(super) edges: Vec<Edge>,
    /// Load of each rank under the present flows, as a part of the layer's tokens.
    pub(super) load: Vec<f64>,
    /// Tokens of the layer that reach a live rank.
    pub(super) total: f64,
    /// Edges in order of their rank, and where each rank's begin.
    by_rank: Vec<u32>,
    rank_start: Vec<u32>,
    /// Slots to be solved: the first `open` entries.
    open_slots: Vec<OpenSlot>,
    open: usize,
    /// Live slots of each expert; its tokens if that is one, else 0; its node.
    count: Vec<u32>,
    fixed: Vec<f64>,
    node_of: Vec<u32>,
}

impl Graph {
    /// Reads a layer and writes the shares that need no solving: 1 for an only copy, equal parts for an expert
    /// without load or without a live slot, else 0 on dead ranks and empty slots.
    ///
    /// The steps are kept apart (`inline(never)`): merged into one function they run out of registers, which costs a
    /// quarter of the time.
    pub(super) fn build(&mut self, row: &[f64], phy2log: &[i32], ranks: &Ranks, share: &mut [f64]) {
        self.count_live_slots(row.len(), phy2log, ranks);
        share.fill(1.0);
        self.find_open_slots(row, phy2log, ranks, share);
        self.lay_edges(row, phy2log, ranks.len(), share);
        self.sort_nodes();
        if !ranks.all_alive {
            self.share_dead(phy2log, ranks, share);
        }
        self.total = self.load.iter().sum::<f64>() + self.nodes.iter().map(|n| n.load).sum::<f64>();
        if self.total > 0.0 {
            // One division instead of hundreds, where its result has all its digits.
            let part = 1.0 / self.total;
            let of_total = |load: f64| if part.is_normal() { load * part } else { load / self.total };
            self.load.iter_mut().for_each(|load| *load = of_total(*load));
            self.nodes.iter_mut().for_each(|node| node.load = of_total(node.load));
        }
    }

    #[inline(never)]
    fn count_live_slots(&mut self, experts: usize, phy2log: &[i32], ranks: &Ranks) {
        self.count.clear();
        self.count.resize(experts, 0);
        let count = self.count.as_mut_slice();
        let mut add = |entries: &[i32]| {
            for &entry in entries {
                if let Some(count) = count.get_mut(entry as usize) {
                    *count += 1;
                }
            }
        };
        if ranks.all_alive {
            return add(phy2log);
        }
        for rank in (0..ranks.len()).filter(|&rank| ranks.alive[rank]) {
            add(&phy2log[ranks.slots(rank)]);
        }
    }

    /// Lists the slots of replicated experts, and adds up what the others bring to each rank.
    #[inline(never)]
    fn find_open_slots(&mut self, row: &[f64], phy2log: &[i32], ranks: &Ranks, share: &mut [f64]) {
        // Which slots are open is hard to foresee, so there is no branch on it: every slot adds its expert's fixed
        // tokens, which may be 0, and every slot is written behind the open ones found so far, but kept only if it
        // is open. Hence the room for one more than all.
        self.fixed.clear();
        self.fixed
            .extend(row.iter().zip(&self.count).map(|(&load, &count)| if count == 1 { load } else { 0.0 }));
        if self.open_slots.len() <= phy2log.len() {
            self.open_slots.resize(phy2log.len() + 1, OpenSlot { slot: 0, at: 0 });
        }
        self.load.clear();
        let (count, fixed) = (&self.count[..row.len()], &self.fixed[..row.len()]);
        let open_slots = self.open_slots.as_mut_slice();
        let mut open = 0;
        for rank in 0..ranks.len() {
            let mut load = 0.0;
            if ranks.alive[rank] {
                let slots = ranks.slots(rank);
                let mut place = OpenSlot { slot: slots.start as u32, at: rank as u32 };
                for &entry in &phy2log[slots] {
                    if let Some(&count) = count.get(entry as usize) {
                        load += fixed[entry as usize];
                        open_slots[open] = place;
                        open += usize::from(count != 1);
                    } else {
                        // Not an expert: the slot is empty.
                        share[place.slot as usize] = 0.0;
                    }
                    place.slot += 1;
                }
            }
            self.load.push(load);
        }
        self.open = open;
    }

    /// Makes a node of every expert that has something to split, and lays an edge from it to each of its ranks; slots
    /// of one expert and rank have it in common.
    #[inline(never)]
    fn lay_edges(&mut self, row: &[f64], phy2log: &[i32], ranks: usize, share: &mut [f64]) {
        self.nodes.clear();
        self.edges.resize(phy2log.len(), Edge::default());
        self.by_rank.clear();
        self.rank_start.clear();
        self.rank_start.resize(ranks + 1, 0);
        self.node_of.clear();
        self.node_of.resize(row.len(), NONE);
        let mut room = 0;
        for open in &mut self.open_slots[..self.open] {
            let (slot, rank) = (open.slot as usize, open.at);
            let expert = phy2log[slot] as usize;
            let mut node = self.node_of[expert];
            if node == NONE {
                let (count, load) = (self.count[expert], row[expert]);
                if load <= 0.0 {
                    share[slot] = 1.0 / f64::from(count);
                    open.at = NONE;
                    continue;
                }
                node = self.nodes.len() as u32;
                self.node_of[expert] = node;
                self.nodes.push(Node { load, even: 1.0, start: room, end: room });
                room += count;
            }
            let Node { start, end, .. } = &mut self.nodes[node as usize];
            if end > start && self.edges[*end as usize - 1].rank == rank {
                self.edges[*end as usize - 1].slots += 1;
            } else {
                self.edges[*end as usize] = Edge { rank, node, slots: 1, ..Edge::default() };
                self.by_rank.push(*end);
                self.rank_start[rank as usize + 1] += 1;
                *end += 1;
            }
            open.at = *end - 1;
        }
        // Counts of each rank's edges become where they begin.
        let mut total = 0;
        for start in &mut self.rank_start {
            total += *start;
            *start = total;
        }
    }

    /// Tells edges of their siblings, and sorts nodes by their number of edges: loops over nodes and their edges then run alike for long, and branch
    /// prediction learns them.
    fn sort_nodes(&mut self) {
        self.degree_start.clear();
        for node in &mut self.nodes {
            let degree = node.edges().len();
            node.even = 1.0 / degree as f64;
            for edge in &mut self.edges[node.edges()] {
                (edge.start, edge.end) = (node.start, node.end);
            }
            if self.degree_start.len() <= degree {
                self.degree_start.resize(degree + 1, 0);
            }
            self.degree_start[degree] += 1;
        }
        let mut total = 0;
        for count in self.degree_start.iter_mut().skip(2) {
            total += std::mem::replace(count, total);
        }
        self.by_degree.resize(total as usize, 0);
        for (node, degree) in self.nodes.iter().map(|node| node.edges().len()).enumerate() {
            if degree > 1 {
                let next = &mut self.degree_start[degree];
                self.by_degree[*next as usize] = node as u32;
                *next += 1;
            }
        }
    }

    /// Shares of slots on dead ranks: 0, but equal parts where an expert has no other slot, so that the parts of
    /// every expert that has a slot still make 1.
    fn share_dead(&mut self, phy2log: &[i32], ranks: &Ranks, share: &mut [f64]) {
        let dead_slots =
            || (0..ranks.len()).filter(|&rank| !ranks.alive[rank]).flat_map(|rank| ranks.slots(rank));
        // `node_of` is done with: for experts with no live slot it counts the dead ones from here on.
        for (node_of, &count) in self.node_of.iter_mut().zip(&self.count) {
            *node_of = if count == 0 { 0 } else { NONE };
        }
        for slot in dead_slots() {
            if let Some(copies) = self.node_of.get_mut(phy2log[slot] as usize)
                && *copies != NONE
            {
                *copies += 1;
            }
        }
        for slot in dead_slots() {
            share[slot] = match self.node_of.get(phy2log[slot] as usize) {
                Some(&copies) if copies != NONE => 1.0 / f64::from(copies),
                _ => 0.0,
            };
        }
    }

    /// Edges of a rank.
    #[inline]
    pub(super) fn edges_of(&self, rank: usize) -> &[u32] {
        &self.by_rank[self.rank_start[rank] as usize..self.rank_start[rank + 1] as usize]
    }

    /// Writes the shares of the open slots.
    #[inline(never)]
    pub(super) fn write(&mut self, share: &mut [f64]) {
        // Divisions are slow: one for each node, whose load is done with.
        for node in &mut self.nodes {
            // Against what its edges have in sum, for shares that sum to 1 whatever rounding has done to small loads.
            let load: f64 = self.edges[node.edges()].iter().map(|edge| edge.flow).sum();
            node.load = if load < LEAST_LOAD { 0.0 } else { 1.0 / load };
        }
        for open in &self.open_slots[..self.open] {
            let Some(edge) = self.edges.get(open.at as usize) else { continue };
            let node = &self.nodes[edge.node as usize];
            let mut part = edge.flow * node.load;
            if node.load == 0.0 {
                part = node.even;
            }
            if edge.slots > 1 {
                part /= f64::from(edge.slots);
            }
            share[open.slot as usize] = part;
        }
    }
}
