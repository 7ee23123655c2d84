//! Breadth-first search over the ranks of a group.

use super::graph::Graph;

/// Stands for no group, and for a rank that a search has not reached.
pub(super) const NONE: u32 = u32::MAX;

/// What a search found, and its memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Search {
    /// Ranks in the order in which they were reached.
    pub(super) queue: Vec<u32>,
    /// Steps from the start, [`NONE`] if not reached.
    pub(super) distance: Vec<u32>,
    /// Ranks of the tree that was grown last: the first `grown` entries. Room for one more than there are ranks.
    tree: Vec<u32>,
    /// For each of them, the edge by which the tree reaches it, and the edge of the same node at the rank above it.
    up: Vec<(u32, u32)>,
    grown: usize,
    /// Edge by which a node was reached in this visit.
    pub(super) reached_by: Vec<u32>,
    /// Visit that last reached each node.
    seen: Vec<u32>,
    visit: u32,
}

impl Search {
    /// Makes room for a layer; no rank is reached.
    pub(super) fn reset(&mut self, ranks: usize, nodes: usize) {
        self.distance.clear();
        self.distance.resize(ranks, NONE);
        self.tree.resize(ranks + 1, 0);
        self.up.resize(ranks + 1, (0, 0));
        if self.seen.len() < nodes {
            self.seen.resize(nodes, 0);
            self.reached_by.resize(nodes, 0);
        }
    }

    /// Lets trees reach these ranks, and no others.
    pub(super) fn open(&mut self, members: &[u32]) {
        self.distance.fill(0);
        for &rank in members {
            self.distance[rank as usize] = NONE;
        }
    }

    /// Begins a search with an empty queue and no node reached.
    pub(super) fn begin(&mut self) {
        self.queue.clear();
        if self.visit == u32::MAX {
            self.seen.fill(0);
            self.visit = 0;
        }
        self.visit += 1;
    }

    /// Notes that a node is reached by an edge; false if it was already in this visit.
    #[inline]
    pub(super) fn reach(&mut self, node: u32, by: u32) -> bool {
        let seen = &mut self.seen[node as usize];
        if *seen == self.visit {
            return false;
        }
        *seen = self.visit;
        self.reached_by[node as usize] = by;
        true
    }

    /// Whether this visit has reached a node.
    #[inline]
    pub(super) fn has_reached(&self, node: u32) -> bool {
        self.seen[node as usize] == self.visit
    }

    /// Grows a tree from `root` over the ranks that are not reached yet, along nodes with tokens on both ends. `most` is how
    /// many ranks there are to reach: with the last of them it ends.
    ///
    /// Whether a rank is new can hardly be foreseen, and a wrong guess of the processor takes as long as looking at
    /// several of them. So there is no branch on it: each is written behind those found so far, and kept if it is new.
    pub(super) fn grow(&mut self, root: u32, graph: &Graph, most: usize) {
        let Self { distance, tree, up, .. } = self;
        let ranks = distance.len();
        let (distance, tree, up) = (distance.as_mut_slice(), &mut tree[..=ranks], &mut up[..=ranks]);
        tree[0] = root;
        distance[root as usize] = 0;
        let (mut head, mut grown) = (0, 1);
        'all: while head < grown {
            let rank = tree[head];
            head += 1;
            for &at in graph.edges_of(rank as usize) {
                let edge = &graph.edges[at as usize];
                let (flow, siblings) = (edge.flow, edge.siblings());
                for (own, sibling) in (siblings.start as u32..).zip(&graph.edges[siblings]) {
                    let distance = &mut distance[sibling.rank as usize];
                    let less = if sibling.flow < flow { sibling.flow } else { flow };
                    let new = u32::from(less > 0.0) & u32::from(*distance == NONE);
                    (tree[grown], up[grown]) = (sibling.rank, (own, at));
                    // One more than `NONE` is 0. Said in this way, no compiler makes a branch of it.
                    *distance = distance.wrapping_add(new);
                    grown += new as usize;
                }
                if grown == most {
                    break 'all;
                }
            }
        }
        self.grown = grown;
    }

    /// Ranks of the tree that was grown last, each after the one above it.
    pub(super) fn tree(&self) -> &[u32] {
        &self.tree[..self.grown]
    }

    /// The same but for the root, from the leaves up: a rank, the edge by which the tree reaches it, and the edge of the same
    /// node at the rank above it.
    pub(super) fn leaves_first(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let reached = self.tree().iter().zip(&self.up[..self.grown]).skip(1).rev();
        reached.map(|(&rank, &(own, above))| (rank as usize, own as usize, above as usize))
    }
}
