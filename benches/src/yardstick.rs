//! The yardstick: a straightforward greedy planner, as one would write it in an afternoon and compile with
//! optimisation. Times of planners are given as ratios to its time in the same run, which do not depend on the
//! machine as times do.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Places one layer by the global rule: a heap gives each spare slot to the expert with the largest load per replica;
/// replicas are sorted by load and placed one by one on the least loaded rank with room, found by a linear scan.
/// `row` are the loads `[E]`; `slots` (`[P]`, equally many per rank) gets the expert in each slot.
pub fn place_layer(row: &[f64], ranks: usize, slots: &mut [i32]) {
    let per_rank = slots.len() / ranks;
    let mut count = vec![1u32; row.len()];
    let mut heap: BinaryHeap<Share> =
        row.iter().enumerate().map(|(expert, &load)| Share { load, expert }).collect();
    let mut replicas: Vec<usize> = (0..row.len()).collect();
    for _ in row.len()..slots.len() {
        let Some(Share { expert, .. }) = heap.pop() else { return };
        count[expert] += 1;
        replicas.push(expert);
        heap.push(Share { load: row[expert] / f64::from(count[expert]), expert });
    }

    let share: Vec<f64> = row.iter().zip(&count).map(|(load, &count)| load / f64::from(count)).collect();
    replicas.sort_unstable_by(|&a, &b| share[b].total_cmp(&share[a]).then(a.cmp(&b)));
    let mut load = vec![0.0; ranks];
    let mut filled = vec![0; ranks];
    for expert in replicas {
        let (mut rank, mut least) = (0, f64::INFINITY);
        for (candidate, (&load, &filled)) in load.iter().zip(&filled).enumerate() {
            if filled < per_rank && load < least {
                (rank, least) = (candidate, load);
            }
        }
        slots[rank * per_rank + filled[rank]] = expert as i32;
        filled[rank] += 1;
        load[rank] += share[expert];
    }
}

/// Places every layer of `loads`, `[L, E]` in C order, into `phy2log`, `[L, P]` in C order.
pub fn place(loads: &[f64], experts: usize, ranks: usize, slots: usize, phy2log: &mut [i32]) {
    for (row, slots) in loads.chunks_exact(experts).zip(phy2log.chunks_exact_mut(slots)) {
        place_layer(row, ranks, slots);
    }
}

/// An expert in the heap.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Share {
    load: f64,
    expert: usize,
}

impl Eq for Share {}

impl Ord for Share {
    fn cmp(&self, other: &Self) -> Ordering {
        self.load.total_cmp(&other.load).then(other.expert.cmp(&self.expert))
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_global_rule() {
        // 12 and 7 get the spare slots: 6 6 | 3.5 3.5 | 2 1, largest first on the lighter rank.
        let mut slots = [0; 6];
        place_layer(&[12.0, 7.0, 2.0, 1.0], 2, &mut slots);
        assert_eq!(slots, [0, 1, 2, 0, 1, 3]);
    }
}
