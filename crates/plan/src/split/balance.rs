//! Two ways to bring the ranks of a group to one level: along a tree, and by maximum flow.

use super::graph::Graph;
use super::ranks::Ranks;
use super::search::{NONE, Search};

/// Levels that differ by less than this part of themselves are equal.
pub(super) const LEVEL_TOLERANCE: f64 = 1e-12;

/// Common level of ranks: their load over their speed.
pub(super) fn mean_level(members: &[u32], graph: &Graph, ranks: &Ranks) -> f64 {
    let (mut load, mut speed) = (0.0, 0.0);
    for &rank in members {
        load += graph.load[rank as usize];
        speed += ranks.speed[rank as usize];
    }
    // Rounding may leave a rank that gave everything away a trace below 0.
    (load / speed).max(0.0)
}

impl Search {
    /// Brings the ranks of the tree that was grown last to `level`, their mean: leaves first, each passes what it has
    /// too much to the rank above it, or takes from there what it lacks. Returns false if some edge has too few
    /// tokens for that; the split is then still valid, but the ranks are not level.
    pub(super) fn balance_tree(&self, level: f64, graph: &mut Graph, ranks: &Ranks) -> bool {
        let mut done = true;
        for (rank, own, above) in self.leaves_first() {
            let excess = graph.load[rank] - level * ranks.speed[rank];
            let tokens = if excess > 0.0 {
                excess.min(graph.edges[own].flow)
            } else {
                excess.max(-graph.edges[above].flow)
            };
            done &= tokens == excess;
            graph.edges[own].flow -= tokens;
            graph.edges[above].flow += tokens;
            graph.load[rank] -= tokens;
            graph.load[graph.edges[above].rank as usize] += tokens;
        }
        done
    }

    /// Brings the ranks of a group to `level`, their mean, or finds out why they cannot be: returns false if ranks
    /// above the level can pass no more tokens down to ranks below it. Ranks that can reach one below it then have a
    /// distance; the others keep [`NONE`], and what they have, none of it can leave them.
    ///
    /// Push-relabel with exact distances (Goldberg and Tarjan 1988; a global relabelling before every pass): each
    /// pass goes over the ranks from far to near, and a rank pushes what it has above the level to ranks one step
    /// nearer. A rank that keeps some has used up its nearer edges and moves farther off, so passes are bounded by
    /// the square of the number of ranks; a few are usual.
    pub(super) fn balance_flow(
        &mut self,
        members: &[u32],
        group: u32,
        group_of: &[u32],
        level: f64,
        graph: &mut Graph,
        ranks: &Ranks,
    ) -> bool {
        // The bound stands for rounding alone; arithmetic without it would keep it.
        for _ in 0..members.len() * members.len() + 16 {
            let above = self.find_below(members, level, graph, ranks);
            if above == 0 || self.queue.is_empty() {
                return true;
            }
            if !self.measure(above, group, group_of, level, graph, ranks) {
                return false;
            }
            for i in (0..self.queue.len()).rev() {
                let rank = self.queue[i] as usize;
                if self.distance[rank] == 0 {
                    break;
                }
                let excess = graph.load[rank] - level * ranks.speed[rank];
                if excess > LEVEL_TOLERANCE * level * ranks.speed[rank] {
                    self.push(rank, excess, graph);
                }
            }
        }
        true
    }

    /// Puts the ranks below the level in the queue, and counts those above it.
    fn find_below(&mut self, members: &[u32], level: f64, graph: &Graph, ranks: &Ranks) -> usize {
        self.begin();
        let mut above = 0;
        for &rank in members {
            let target = level * ranks.speed[rank as usize];
            let excess = graph.load[rank as usize] - target;
            self.distance[rank as usize] = NONE;
            if excess < -LEVEL_TOLERANCE * target {
                self.distance[rank as usize] = 0;
                self.queue.push(rank);
            } else if excess > LEVEL_TOLERANCE * target {
                above += 1;
            }
        }
        above
    }

    /// Distances from the ranks in the queue, against the way that tokens may go, until `above` ranks above the level
    /// are reached. Returns whether any is.
    fn measure(
        &mut self,
        above: usize,
        group: u32,
        group_of: &[u32],
        level: f64,
        graph: &Graph,
        ranks: &Ranks,
    ) -> bool {
        let (mut head, mut reached) = (0, 0);
        while reached < above
            && let Some(&rank) = self.queue.get(head)
        {
            head += 1;
            let distance = self.distance[rank as usize] + 1;
            for &at in graph.edges_of(rank as usize) {
                let by = &graph.edges[at as usize];
                if !self.reach(by.node, at) {
                    continue;
                }
                for edge in &graph.edges[by.siblings()] {
                    let rank = edge.rank as usize;
                    if edge.flow > 0.0 && self.distance[rank] == NONE && group_of[rank] == group {
                        self.distance[rank] = distance;
                        self.queue.push(edge.rank);
                        let target = level * ranks.speed[rank];
                        reached += usize::from(graph.load[rank] - target > LEVEL_TOLERANCE * target);
                    }
                }
            }
        }
        reached > 0
    }

    /// Pushes `excess` from a rank to ranks one step nearer, as far as its edges have tokens.
    fn push(&self, rank: usize, mut excess: f64, graph: &mut Graph) {
        for i in 0..graph.edges_of(rank).len() {
            let at = graph.edges_of(rank)[i] as usize;
            let edge = graph.edges[at];
            if edge.flow <= 0.0 || !self.has_reached(edge.node) {
                continue;
            }
            let nearer = self.reached_by[edge.node as usize] as usize;
            let to = graph.edges[nearer].rank as usize;
            if self.distance[to] + 1 != self.distance[rank] {
                continue;
            }
            let tokens = excess.min(edge.flow);
            graph.edges[at].flow -= tokens;
            graph.edges[nearer].flow += tokens;
            graph.load[rank] -= tokens;
            graph.load[to] += tokens;
            excess -= tokens;
            if excess <= 0.0 {
                return;
            }
        }
    }
}
