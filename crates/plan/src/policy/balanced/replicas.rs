//! How many replicas each expert gets, and the order in which they are packed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::layer::{coarse_heaviest, heaviest_first, key_id, replica_units};
use crate::order::sort_keys;

/// Replica counts of one layer and its experts by load per replica.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    /// Replicas of each expert, `[E]`.
    pub(super) count: Vec<u32>,
    /// Load of one replica of each expert, `[E]`.
    pub(super) size: Vec<f64>,
    /// Experts by load per replica descending, id ascending, as keys; only those with a replica.
    pub(super) sequence: Vec<u64>,
    /// Experts by load descending, id ascending.
    by_load: Vec<u64>,
    /// Experts with several replicas, by load per replica.
    split: Vec<u64>,
    /// Those that may get one more, heaviest on top.
    next: BinaryHeap<Reverse<u64>>,
    /// Those that may get one more after a cap.
    wanted: BinaryHeap<Reverse<(Use, u64)>>,
    memory: Vec<u64>,
}

/// What one more replica of an expert is good for, the best first. Half is half of what a rank can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// Its replicas, now above half, come below: two of them fit on a rank.
    Halves,
    /// They are below half already.
    Lightens,
    /// They stay above half, and there is one more that needs a rank to itself.
    Crowds,
}

impl Use {
    fn of(units: f64, count: u32, half: f64) -> Self {
        if replica_units(units, count) <= half {
            Self::Lightens
        } else if replica_units(units, count + 1) <= half {
            Self::Halves
        } else {
            Self::Crowds
        }
    }
}

impl Replicas {
    /// Spreads `slots` copies: one for every expert, then one at a time to the expert with the largest load per
    /// replica, at most `limit` each. That makes the largest load per replica as small as it can be (an exchange
    /// argument: any other choice leaves an expert with a larger one). If the slots do not suffice for one copy each,
    /// the experts with the least load get none.
    pub(super) fn choose(&mut self, units: &[f64], slots: usize, limit: usize) {
        let Self { count, size, sequence, by_load, split, next, memory, .. } = self;
        by_load.clear();
        by_load.extend(units.iter().enumerate().map(|(e, &u)| heaviest_first(u, e)));
        sort_keys(by_load, memory, coarse_heaviest);
        by_load.truncate(slots);
        count.clear();
        count.resize(units.len(), u32::from(slots >= units.len()));
        if slots < units.len() {
            by_load.iter().for_each(|&key| count[key_id(key)] = 1);
        }
        size.clear();
        size.extend_from_slice(units);

        // The first `several` experts have more than one replica.
        let (mut several, mut spare) = (0, slots - by_load.len());
        if limit <= 1 {
            spare = 0;
        }
        next.clear();
        while spare > 0 {
            let single = by_load.get(several).copied().unwrap_or(u64::MAX);
            let top = next.peek().map_or(u64::MAX, |top| top.0);
            let key = single.min(top);
            if key == u64::MAX {
                break;
            }
            if single < top {
                several += 1;
            } else {
                next.pop();
            }
            let expert = key_id(key);
            count[expert] += 1;
            spare -= 1;
            size[expert] = replica_units(units[expert], count[expert]);
            if (count[expert] as usize) < limit {
                next.push(Reverse(heaviest_first(size[expert], expert)));
            }
        }

        let (divided, whole) = by_load.split_at(several);
        split.clear();
        split.extend(divided.iter().map(|&key| heaviest_first(size[key_id(key)], key_id(key))));
        split.sort_unstable();
        sequence.clear();
        let mut whole = whole.iter().copied().peekable();
        for &key in split.iter() {
            while let Some(single) = whole.next_if(|&single| single < key) {
                sequence.push(single);
            }
            sequence.push(key);
        }
        sequence.extend(whole);
    }

    /// Spreads `slots` copies in another way: no replica above `cap` units, with as few replicas as that takes, and the
    /// slots that are left to where they help to pack. The largest load per replica is larger than it need be, but
    /// fewer replicas are above half of what a rank can take, and no two of those fit on one rank. False if the slots
    /// do not suffice.
    pub(super) fn choose_capped(
        &mut self,
        units: &[f64],
        slots: usize,
        limit: usize,
        cap: f64,
        half: f64,
    ) -> bool {
        let Self { count, size, sequence, wanted, memory, .. } = self;
        count.clear();
        count.extend(units.iter().map(|&units| ((units / cap).ceil() as u32).clamp(1, limit as u32)));
        let taken: usize = count.iter().map(|&count| count as usize).sum();
        if taken > slots {
            return false;
        }
        wanted.clear();
        let entry = |expert: usize, count: u32| {
            let size = replica_units(units[expert], count);
            let wanted = (Use::of(units[expert], count, half), heaviest_first(size, expert));
            ((count as usize) < limit).then_some(Reverse(wanted))
        };
        wanted.extend(count.iter().enumerate().filter_map(|(expert, &count)| entry(expert, count)));
        for _ in taken..slots {
            let Some(Reverse((_, key))) = wanted.pop() else { break };
            let expert = key_id(key);
            count[expert] += 1;
            wanted.extend(entry(expert, count[expert]));
        }
        size.clear();
        size.extend(units.iter().zip(count.iter()).map(|(&units, &count)| replica_units(units, count)));
        sequence.clear();
        sequence.extend(size.iter().enumerate().map(|(expert, &size)| heaviest_first(size, expert)));
        sort_keys(sequence, memory, coarse_heaviest);
        true
    }
}
