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
    /// Edge by which a tree reaches a rank, and the edge of the same node at the rank above it.
    pub(super) up: Vec<(u32, u32)>,
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
        self.up.resize(ranks, (0, 0));
        if self.seen.len() < nodes {
            self.seen.resize(nodes, 0);
            self.reached_by.resize(nodes, 0);
        }
    }

    /// Forgets which of these ranks were reached.
    pub(super) fn forget(&mut self, members: &[u32]) {
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

    /// Grows a tree from `root` over the ranks of a group that are not reached yet, along nodes with tokens on
    /// both ends. Fills `queue` and `up`. `most` is how many ranks there are to reach: with the last of them it ends.
    pub(super) fn grow(&mut self, root: u32, group: u32, group_of: &[u32], graph: &Graph, most: usize) {
        self.queue.clear();
        self.queue.push(root);
        self.distance[root as usize] = 0;
        let mut head = 0;
        while let Some(&rank) = self.queue.get(head) {
            head += 1;
            for &at in graph.edges_of(rank as usize) {
                let edge = &graph.edges[at as usize];
                if edge.flow <= 0.0 {
                    continue;
                }
                let siblings = graph.nodes[edge.node as usize].edges();
                for (own, sibling) in siblings.clone().zip(&graph.edges[siblings]) {
                    let rank = sibling.rank as usize;
                    if self.distance[rank] == NONE && sibling.flow > 0.0 && group_of[rank] == group {
                        self.distance[rank] = 0;
                        self.up[rank] = (own as u32, at);
                        self.queue.push(sibling.rank);
                    }
                }
                if self.queue.len() == most {
                    return;
                }
            }
        }
    }
}
