//! Whole groups on nodes, equally many on each: which goes where, so that the fullest node has least to do.

/// Arrangements looked at before the best so far is taken for good. Eight groups on four nodes have 105.
const MOST_TRIED: usize = 20_000;

/// Finds arrangements; owns its memory.
#[derive(Debug, Default)]
pub(super) struct Arrange {
    /// Groups by load descending.
    order: Vec<usize>,
    load: Vec<f64>,
    filled: Vec<usize>,
    node_of: Vec<u32>,
    best: Vec<u32>,
    tried: usize,
}

/// Loads of groups, and speeds of nodes.
#[derive(Debug, Clone, Copy)]
struct Case<'a> {
    groups: &'a [f64],
    speed: &'a [f64],
    /// Groups on each node.
    each: usize,
}

impl Arrange {
    /// Writes the node of each group. Returns the least load over speed that the fullest node can have: exact while not too
    /// many arrangements had to be tried, else what no arrangement can go below.
    pub(super) fn run(&mut self, groups: &[f64], speed: &[f64], node_of: &mut Vec<u32>) -> f64 {
        let case = Case { groups, speed, each: groups.len() / speed.len() };
        self.order.clear();
        self.order.extend(0..groups.len());
        self.order.sort_unstable_by(|&a, &b| groups[b].total_cmp(&groups[a]).then(a.cmp(&b)));
        self.load.clear();
        self.load.resize(speed.len(), 0.0);
        self.filled.clear();
        self.filled.resize(speed.len(), 0);
        self.node_of.clear();
        self.node_of.resize(groups.len(), 0);
        self.tried = 0;
        let mut least = f64::INFINITY;
        self.place(case, 0, 0.0, &mut least);
        node_of.clone_from(&self.best);
        if self.tried < MOST_TRIED {
            return least;
        }
        let fastest = speed.iter().copied().fold(0.0, f64::max);
        let mean = groups.iter().sum::<f64>() / speed.iter().sum::<f64>();
        // The heaviest group, beside as many of the lightest as a node has.
        let beside: f64 = self.order.iter().rev().take(case.each - 1).map(|&g| groups[g]).sum();
        mean.max((groups[self.order[0]] + beside) / fastest)
    }

    /// Places the groups from `at` on: the heaviest first, on the emptiest nodes first, so that the first arrangement is the
    /// greedy one; no further where the fullest node is as full as in the best arrangement so far.
    fn place(&mut self, case: Case<'_>, at: usize, fullest: f64, least: &mut f64) {
        self.tried += 1;
        let Some(&group) = self.order.get(at) else {
            *least = fullest;
            self.best.clone_from(&self.node_of);
            return;
        };
        let mut last = (f64::NEG_INFINITY, usize::MAX);
        loop {
            // The next node in order of load over speed after it has the group.
            let full = |node: usize| (self.load[node] + case.groups[group]) / case.speed[node];
            let next = (0..case.speed.len())
                .filter(|&node| self.filled[node] < case.each)
                .map(|node| (full(node), node))
                .filter(|&(full, node)| (full, node) > last)
                .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let Some((full, node)) = next else { return };
            // Nodes that are alike so far lead to the same arrangements.
            let seen = last.1 != usize::MAX
                && self.filled[node] == self.filled[last.1]
                && self.load[node] == self.load[last.1]
                && case.speed[node] == case.speed[last.1];
            last = (full, node);
            let fullest = fullest.max(full);
            if fullest >= *least || self.tried >= MOST_TRIED {
                return;
            }
            if seen {
                continue;
            }
            self.load[node] += case.groups[group];
            self.filled[node] += 1;
            self.node_of[group] = node as u32;
            self.place(case, at + 1, fullest, least);
            self.filled[node] -= 1;
            self.load[node] -= case.groups[group];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fullest(groups: &[f64], node_of: &[u32], nodes: usize) -> f64 {
        (0..nodes as u32)
            .map(|n| groups.iter().zip(node_of).filter(|(_, at)| **at == n).map(|(g, _)| g).sum())
            .fold(0.0, f64::max)
    }

    #[test]
    fn heaviest_beside_lightest() {
        let groups = [9.0, 1.0, 5.0, 4.0, 3.0, 8.0];
        let mut node_of = Vec::new();
        let least = Arrange::default().run(&groups, &[1.0; 3], &mut node_of);
        assert_eq!(least, 11.0);
        assert_eq!(fullest(&groups, &node_of, 3), 11.0);
    }

    #[test]
    fn the_least_of_all_arrangements() {
        // Every arrangement of 8 groups on 4 nodes, two each, by brute force.
        let mut seed = 7u64;
        for _ in 0..20 {
            let groups: Vec<f64> = (0..8)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    ((seed >> 40) % 1000) as f64
                })
                .collect();
            let mut brute = f64::INFINITY;
            for code in 0..4usize.pow(8) {
                let node_of: Vec<u32> = (0..8).map(|g| (code >> (2 * g) & 3) as u32).collect();
                if (0..4).all(|n| node_of.iter().filter(|&&at| at == n).count() == 2) {
                    brute = brute.min(fullest(&groups, &node_of, 4));
                }
            }
            let mut node_of = Vec::new();
            let least = Arrange::default().run(&groups, &[1.0; 4], &mut node_of);
            assert_eq!(least, brute, "{groups:?}");
            assert_eq!(fullest(&groups, &node_of, 4), brute);
        }
    }

    #[test]
    fn too_many_arrangements_end_with_a_bound_below_what_was_found() {
        let groups: Vec<f64> = (0..64).map(|g| 1.0 + f64::from(g * 37 % 64) / 7.0).collect();
        let mut node_of = Vec::new();
        let bound = Arrange::default().run(&groups, &[1.0; 8], &mut node_of);
        let found = fullest(&groups, &node_of, 8);
        assert!(bound <= found && found < bound * 1.05, "{bound} {found}");
        assert!((0..8u32).all(|n| node_of.iter().filter(|&&at| at == n).count() == 8));
    }
}
