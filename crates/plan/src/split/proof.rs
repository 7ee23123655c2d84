//! Why a split cannot be better: a set of ranks that holds more than it can give away.

use eplb_core::{RankId, Topology};

use super::graph::Graph;
use super::levels::Levels;
use super::ranks::Ranks;

/// What some rank among `ranks` must be loaded with under any split, in tokens per unit of speed: the tokens of the
/// experts all of whose live replicas are on these ranks, over the speed of these ranks. 0 for no ranks.
///
/// `row` holds the tokens of each expert, `[E]`; `phy2log` the expert in each slot, `[P]`, -1 = empty. It is computed
/// from these alone, so a split whose busiest rank reaches it is proved optimal.
///
/// # Panics
/// If `phy2log` does not have one entry per slot of the topology, or a rank does not exist.
pub fn cut_bound(row: &[f64], phy2log: &[i32], topology: &Topology, ranks: &[RankId]) -> f64 {
    assert_eq!(phy2log.len(), topology.slots(), "phy2log must have one entry per slot");
    bound(row, phy2log, &Ranks::new(topology), ranks)
}

pub(super) fn bound(row: &[f64], phy2log: &[i32], ranks: &Ranks, set: &[RankId]) -> f64 {
    let mut member = vec![false; ranks.len()];
    set.iter().for_each(|rank| member[rank.index()] = true);
    let (mut inside, mut outside) = (vec![false; row.len()], vec![false; row.len()]);
    for rank in (0..ranks.len()).filter(|&rank| ranks.alive[rank]) {
        let holders = if member[rank] { &mut inside } else { &mut outside };
        for &entry in &phy2log[ranks.slots(rank)] {
            if let Some(holds) = holders.get_mut(entry as usize) {
                *holds = true;
            }
        }
    }
    let kept =
        row.iter().zip(inside.iter().zip(&outside)).filter(|&(_, (&inside, &outside))| inside && !outside);
    let tokens: f64 = kept.map(|(load, _)| load).sum();
    let speed: f64 = (0..ranks.len()).filter(|&r| member[r] && ranks.alive[r]).map(|r| ranks.speed[r]).sum();
    if tokens > 0.0 { tokens / (speed * ranks.fastest) } else { 0.0 }
}

impl Levels {
    /// Writes the ranks that tokens of the busiest rank could go to, ascending. At the optimum none of them is less
    /// busy, so whatever experts have tokens on them has all its replicas among them.
    pub(super) fn tight_ranks(&mut self, graph: &Graph, tight: &mut Vec<RankId>) {
        let mut member = vec![false; self.level.len()];
        let busiest = self
            .level
            .iter()
            .enumerate()
            .fold((0, 0.0), |best, (rank, &level)| if level > best.1 { (rank, level) } else { best });
        member[busiest.0] = true;
        let mut queue = vec![busiest.0];
        while let Some(rank) = queue.pop() {
            for &at in graph.edges_of(rank) {
                let edge = &graph.edges[at as usize];
                if edge.flow > 0.0 {
                    for sibling in &graph.edges[edge.siblings()] {
                        if !std::mem::replace(&mut member[sibling.rank as usize], true) {
                            queue.push(sibling.rank as usize);
                        }
                    }
                }
            }
        }
        tight.clear();
        tight.extend((0..member.len()).filter(|&rank| member[rank]).map(RankId::at));
    }
}
