//! Water filling: the best split of one expert while all others stay.

use super::graph::{Edge, Graph};
use super::ranks::Ranks;

impl Graph {
    /// Gives every rank of a node the same part of its tokens.
    pub(super) fn even(&mut self) {
        for node in &self.nodes {
            let edges = &mut self.edges[node.edges()];
            let flow = node.load / edges.len() as f64;
            for edge in edges {
                edge.flow = flow;
                self.load[edge.rank as usize] += flow;
            }
        }
    }

    /// Splits every node's tokens anew, one node after another: the ranks that get any end at one level, no higher
    /// than the others'. Each step lowers the sum of squares of the rank loads, so repeating it comes near the
    /// optimum, but only near.
    pub(super) fn sweep(&mut self, ranks: &Ranks) {
        let Self { nodes, edges, load, .. } = self;
        for node in nodes {
            match &mut edges[node.edges()] {
                [a, b] => fill_pair(a, b, node.load, load, &ranks.speed),
                edges => fill_many(edges, node.load, load, &ranks.speed),
            }
        }
    }
}

fn fill_pair(a: &mut Edge, b: &mut Edge, tokens: f64, load: &mut [f64], speed: &[f64]) {
    let (rank_a, rank_b) = (a.rank as usize, b.rank as usize);
    let (speed_a, speed_b) = (speed[rank_a], speed[rank_b]);
    let (rest_a, rest_b) = (load[rank_a] - a.flow, load[rank_b] - b.flow);
    // Both end at one level: (rest_a + x) / speed_a = (rest_b + tokens - x) / speed_b.
    let level = speed_a * (rest_b + tokens) - speed_b * rest_a;
    let flow = (level / (speed_a + speed_b)).max(0.0).min(tokens);
    (a.flow, b.flow) = (flow, tokens - flow);
    (load[rank_a], load[rank_b]) = (rest_a + a.flow, rest_b + b.flow);
}

fn fill_many(edges: &mut [Edge], tokens: f64, load: &mut [f64], speed: &[f64]) {
    // Take the tokens off; `flow` holds the level of the rank without them for the while.
    let mut lowest = f64::INFINITY;
    for edge in edges.iter_mut() {
        let rank = edge.rank as usize;
        load[rank] -= edge.flow;
        edge.flow = load[rank] / speed[rank];
        lowest = if edge.flow < lowest { edge.flow } else { lowest };
    }
    // The level with every rank in, then without those above it, until none is. Levels are counted from the lowest,
    // so that a small load is split as exactly as a large one.
    let mut level = f64::INFINITY;
    loop {
        let (mut volume, mut width) = (tokens, 0.0);
        for edge in edges.iter() {
            let height = edge.flow - lowest;
            if height < level {
                let speed = speed[edge.rank as usize];
                volume += height * speed;
                width += speed;
            }
        }
        let next = volume / width;
        if next < level {
            level = next;
        } else {
            break;
        }
    }
    for edge in edges {
        let rank = edge.rank as usize;
        let room = level - (edge.flow - lowest);
        edge.flow = if room > 0.0 { room * speed[rank] } else { 0.0 };
        load[rank] += edge.flow;
    }
}
