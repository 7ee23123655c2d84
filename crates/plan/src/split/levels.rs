//! The optimal level of every rank.

use super::balance::{LEVEL_TOLERANCE, mean_level};
use super::graph::Graph;
use super::ranks::Ranks;
use super::search::{NONE, Search};

/// Rounds of merging before everything that is connected is solved as one piece.
const ROUNDS: usize = 12;

/// A run of `order`: ranks that are to end at one level.
#[derive(Debug, Clone, Copy)]
struct Group {
    start: usize,
    end: usize,
}

/// A group that is not balanced yet.
#[derive(Debug, Clone, Copy)]
struct Open {
    group: u32,
    /// Whether only maximum flow may take it apart. Otherwise ranks that share no tokens become groups of their own.
    whole: bool,
}

/// Groups of ranks at one level, and the memory to find them.
#[derive(Debug, Clone, Default)]
pub(super) struct Levels {
    /// Load over speed of each rank.
    pub(super) level: Vec<f64>,
    /// Ranks, those of a group together.
    order: Vec<u32>,
    groups: Vec<Group>,
    group_of: Vec<u32>,
    /// Groups that are not balanced yet.
    open: Vec<Open>,
    search: Search,
    /// Merging: union-find over groups, new number of each class, spare memory.
    parent: Vec<u32>,
    number: Vec<u32>,
    spare: Vec<u32>,
}

impl Levels {
    /// Highest level of a rank.
    pub(super) fn highest(&self) -> f64 {
        self.level.iter().copied().fold(0.0, f64::max)
    }

    /// Moves the flows of the graph to the optimum: no node has tokens on a rank above the lowest that it could use.
    pub(super) fn solve(&mut self, graph: &mut Graph, ranks: &Ranks) {
        self.solve_in(ROUNDS, graph, ranks);
    }

    /// As [`Levels::solve`], with at most `rounds` rounds that guess which ranks belong together, check and merge.
    /// After those comes one that does not guess, and always ends at the optimum.
    pub(super) fn solve_in(&mut self, rounds: usize, graph: &mut Graph, ranks: &Ranks) {
        self.start(graph, ranks);
        for _ in 0..rounds {
            self.balance_open(false, graph, ranks);
            if !self.violated(graph) {
                return;
            }
            self.merge(false, graph);
        }
        self.merge(true, graph);
        self.balance_open(true, graph, ranks);
    }

    /// Balances open groups until none is left; with `whole` none is taken apart but by a cut.
    fn balance_open(&mut self, whole: bool, graph: &mut Graph, ranks: &Ranks) {
        while let Some(open) = self.open.pop() {
            self.balance(open.group, open.whole || whole, graph, ranks);
        }
    }

    /// Makes a group of all ranks that are joined by nodes with tokens on both, and balances what a tree can.
    fn start(&mut self, graph: &mut Graph, ranks: &Ranks) {
        self.search.reset(ranks.len(), graph.nodes.len());
        self.level.clear();
        self.level.resize(ranks.len(), 0.0);
        self.group_of.clear();
        self.group_of.resize(ranks.len(), NONE);
        self.order.clear();
        self.groups.clear();
        self.open.clear();
        for rank in 0..ranks.len() {
            if self.group_of[rank] != NONE {
                continue;
            }
            let (group, start) = (self.groups.len() as u32, self.order.len());
            if graph.edges_of(rank).is_empty() {
                self.level[rank] = graph.load[rank] / ranks.speed[rank];
                self.group_of[rank] = group;
                self.order.push(rank as u32);
            } else {
                let most = ranks.len() - self.order.len();
                self.search.grow(rank as u32, graph, most);
                self.order.extend_from_slice(self.search.tree());
                let level = mean_level(self.search.tree(), graph, ranks);
                for &member in self.search.tree() {
                    self.group_of[member as usize] = group;
                    self.level[member as usize] = level;
                }
                if !self.search.balance_tree(level, graph, ranks) {
                    self.open.push(Open { group, whole: false });
                }
            }
            self.groups.push(Group { start, end: self.order.len() });
        }
    }

    /// Balances a group, or splits it and opens the parts.
    fn balance(&mut self, group: u32, whole: bool, graph: &mut Graph, ranks: &Ranks) {
        let Group { start, mut end } = self.groups[group as usize];
        if !whole {
            self.search.open(&self.order[start..end]);
            self.search.grow(self.order[start], graph, end - start);
            if self.search.tree().len() < end - start {
                let rest = self.split(group);
                self.open.push(Open { group: rest, whole: false });
                end = self.groups[group as usize].end;
            }
        }
        let members = &self.order[start..end];
        let level = mean_level(members, graph, ranks);
        for &rank in members {
            self.level[rank as usize] = level;
        }
        if !whole && self.search.balance_tree(level, graph, ranks) {
            return;
        }
        if !self.search.balance_flow(members, group, &self.group_of, level, graph, ranks) {
            let stuck = self.split(group);
            self.open.push(Open { group, whole: false });
            self.open.push(Open { group: stuck, whole: false });
        }
    }

    /// Makes a group of its own of the ranks that the last search has not reached, and returns it.
    fn split(&mut self, group: u32) -> u32 {
        let Group { start, end } = self.groups[group as usize];
        let new = self.groups.len() as u32;
        self.spare.clear();
        let mut at = start;
        for i in start..end {
            let rank = self.order[i];
            if self.search.distance[rank as usize] == NONE {
                self.group_of[rank as usize] = new;
                self.spare.push(rank);
            } else {
                self.order[at] = rank;
                at += 1;
            }
        }
        self.order[at..end].copy_from_slice(&self.spare);
        self.groups[group as usize].end = at;
        self.groups.push(Group { start: at, end });
        new
    }

    /// Whether some node has tokens on a rank above the lowest that it could use.
    fn violated(&self, graph: &Graph) -> bool {
        graph.nodes.iter().any(|node| {
            let (mut lowest, mut highest) = (f64::INFINITY, 0.0f64);
            for edge in &graph.edges[node.edges()] {
                let level = self.level[edge.rank as usize];
                lowest = if level < lowest { level } else { lowest };
                highest = if edge.flow > 0.0 && level > highest { level } else { highest };
            }
            is_above(highest, lowest)
        })
    }

    /// Makes one open group of groups between which tokens should move; with `all`, of all that have a node in
    /// common.
    fn merge(&mut self, all: bool, graph: &Graph) {
        self.parent.clear();
        self.parent.extend(0..self.groups.len() as u32);
        for node in &graph.nodes {
            let edges = &graph.edges[node.edges()];
            let (mut lowest, mut low_group) = (f64::INFINITY, 0);
            for edge in edges {
                let rank = edge.rank as usize;
                if self.level[rank] < lowest {
                    (lowest, low_group) = (self.level[rank], self.group_of[rank]);
                }
            }
            for edge in edges {
                let rank = edge.rank as usize;
                if all || (edge.flow > 0.0 && is_above(self.level[rank], lowest)) {
                    join(&mut self.parent, self.group_of[rank], low_group);
                }
            }
        }
        // New groups in the order of their first rank; `spare` counts the old groups in each.
        self.number.clear();
        self.number.resize(self.groups.len(), NONE);
        self.spare.clear();
        for i in 0..self.groups.len() {
            let root = root(&mut self.parent, i as u32) as usize;
            if self.number[root] == NONE {
                self.number[root] = self.spare.len() as u32;
                self.spare.push(0);
            }
            self.number[i] = self.number[root];
            self.spare[self.number[root] as usize] += 1;
        }
        self.groups.clear();
        self.groups.resize(self.spare.len(), Group { start: 0, end: 0 });
        for group in &mut self.group_of {
            *group = self.number[*group as usize];
            self.groups[*group as usize].end += 1;
        }
        let mut start = 0;
        for group in &mut self.groups {
            let size = group.end;
            *group = Group { start, end: start };
            start += size;
        }
        for (rank, &group) in self.group_of.iter().enumerate() {
            let end = &mut self.groups[group as usize].end;
            self.order[*end] = rank as u32;
            *end += 1;
        }
        self.open.clear();
        for (group, &parts) in self.spare.iter().enumerate() {
            if parts > 1 || all {
                self.open.push(Open { group: group as u32, whole: true });
            }
        }
    }
}

fn is_above(level: f64, lowest: f64) -> bool {
    level > lowest * (1.0 + 4.0 * LEVEL_TOLERANCE)
}

fn root(parent: &mut [u32], mut at: u32) -> u32 {
    while parent[at as usize] != at {
        parent[at as usize] = parent[parent[at as usize] as usize];
        at = parent[at as usize];
    }
    at
}

fn join(parent: &mut [u32], a: u32, b: u32) {
    let (a, b) = (root(parent, a), root(parent, b));
    parent[a.max(b) as usize] = a.min(b);
}
