//! Water filling: the best split of one expert while all others stay, over and over.

use super::graph::{Edge, Graph, Node};
use super::ranks::Ranks;

/// Most sweeps. Each takes about as long as the search of a tree, and the better the start, the fewer of those.
const SWEEPS: usize = 8;

/// Sweeps end when one moves less than this part of the layer's tokens.
const SETTLED: f64 = 0.005;

/// How far a sweep goes on beyond what is best for one expert alone: successive over-relaxation (Young 1954), with
/// which levels even out along chains of experts in far fewer sweeps.
const RELAXATION: f64 = 1.4;

impl Graph {
    /// Gives every rank of a node the same part of its tokens.
    pub(super) fn even(&mut self) {
        for node in &self.nodes {
            let edges = &mut self.edges[node.edges()];
            let flow = node.load * node.even;
            for edge in edges {
                edge.flow = flow;
                self.load[edge.rank as usize] += flow;
            }
        }
    }

    /// Brings the flows near the optimum, but only near.
    pub(super) fn fill(&mut self, ranks: &Ranks) {
        // Mostly all ranks are as fast: then the compiler knows.
        if ranks.all_alike {
            self.settle(true, |_| 1.0);
        } else {
            self.settle(false, |rank| ranks.speed[rank]);
        }
    }

    #[inline(always)]
    fn settle(&mut self, alike: bool, speed: impl Fn(usize) -> f64 + Copy) {
        for _ in 0..SWEEPS {
            if self.sweep(alike, speed) < SETTLED {
                break;
            }
        }
    }

    /// Splits every node's tokens anew, one node after another, and returns how many tokens that moved, about.
    #[inline(always)]
    fn sweep(&mut self, alike: bool, speed: impl Fn(usize) -> f64 + Copy) -> f64 {
        let Self { nodes, by_degree, edges, load, .. } = self;
        let mut moved = 0.0;
        for &node in by_degree.iter() {
            let node = &nodes[node as usize];
            moved += match &mut edges[node.edges()] {
                [a, b] => fill_pair(a, b, node.load, load, speed),
                // Three are the next most common: a copy of the code for a length that the compiler knows.
                edges => match <&mut [Edge; 3]>::try_from(&mut *edges) {
                    Ok(edges) => fill_many(edges, node, load, alike, speed),
                    Err(_) => fill_many(edges, node, load, alike, speed),
                },
            };
        }
        moved
    }
}

#[inline(always)]
fn fill_pair(a: &mut Edge, b: &mut Edge, tokens: f64, load: &mut [f64], speed: impl Fn(usize) -> f64) -> f64 {
    let (rank_a, rank_b) = (a.rank as usize, b.rank as usize);
    let (speed_a, speed_b) = (speed(rank_a), speed(rank_b));
    // With so many more tokens on a: (load_a + x) / speed_a = (load_b - x) / speed_b.
    let to_level = (speed_a * load[rank_b] - speed_b * load[rank_a]) / (speed_a + speed_b);
    let flow = a.flow + RELAXATION * to_level;
    // No number here is NaN: one instruction each.
    let flow = if flow > 0.0 { flow } else { 0.0 };
    let flow = if flow < tokens { flow } else { tokens };
    let change = flow - a.flow;
    a.flow = flow;
    b.flow = tokens - flow;
    load[rank_a] += change;
    load[rank_b] -= change;
    change.abs()
}

#[inline(always)]
fn fill_many(
    edges: &mut [Edge],
    node: &Node,
    load: &mut [f64],
    alike: bool,
    speed: impl Fn(usize) -> f64 + Copy,
) -> f64 {
    let (mut sum, mut width) = (0.0, 0.0);
    for edge in edges.iter() {
        sum += load[edge.rank as usize];
        width += speed(edge.rank as usize);
    }
    // What comes next waits for this: a product is there much sooner than a quotient.
    let level = if alike { sum * node.even } else { sum / width };
    let change = |edge: &Edge, load: &[f64]| {
        let rank = edge.rank as usize;
        RELAXATION * (level * speed(rank) - load[rank])
    };
    // All of them are looked at, which takes less than a branch on each that cannot be foreseen.
    if edges.iter().fold(false, |dry, edge| dry | (edge.flow + change(edge, load) < 0.0)) {
        fill_exactly(edges, node.load, load, speed);
        return 0.0;
    }
    let mut moved = 0.0;
    for edge in edges {
        let change = change(edge, load);
        edge.flow += change;
        load[edge.rank as usize] += change;
        moved += change.abs();
    }
    moved
}

/// The best split of one node and no further, where some of its ranks are better left dry: those that get tokens end
/// at one level, no higher than the others'. Not counted as moved: such nodes settle first.
#[inline(never)]
fn fill_exactly(edges: &mut [Edge], tokens: f64, load: &mut [f64], speed: impl Fn(usize) -> f64) {
    // Take the tokens off; `flow` holds the level of the rank without them for the while.
    let mut lowest = f64::INFINITY;
    for edge in edges.iter_mut() {
        let rank = edge.rank as usize;
        load[rank] -= edge.flow;
        edge.flow = load[rank] / speed(rank);
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
                let speed = speed(edge.rank as usize);
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
        edge.flow = if room > 0.0 { room * speed(rank) } else { 0.0 };
        load[rank] += edge.flow;
    }
}
