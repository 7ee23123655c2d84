//! What a proof needs to know about the live ranks.

use crate::topology::Topology;

/// Live ranks with equal slots and equal speed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Class {
    pub(super) ranks: f64,
    pub(super) slots: f64,
    pub(super) speed: f64,
}

/// The live ranks that own a slot, by class, and what they can hold together.
#[derive(Debug, Clone)]
pub(super) struct Ranks {
    /// Ascending by speed, then by slots.
    pub(super) classes: Vec<Class>,
    /// Sum of the speeds of the `c + 1` fastest ranks at index `c`; empty if all are equally fast.
    fastest: Vec<f64>,
    /// Slots of all classes.
    pub(super) slots: usize,
    /// Sum of the speeds of all classes.
    pub(super) speed: f64,
    /// Speed of the fastest rank.
    pub(super) top_speed: f64,
    /// Most replicas that one expert can have, each on its own rank.
    pub(super) max_replicas: f64,
    /// Most slots that may hold one expert, several on one rank included.
    pub(super) max_copies: f64,
    /// All live ranks: the mean over ranks counts those without a slot too.
    live: f64,
}

/// The least whole number that is not below `value`, which is 0 or more and far below 2^32: `ceil` is a call on older
/// processors.
#[inline]
pub(super) fn round_up(value: f64) -> f64 {
    let whole = f64::from(value as u32);
    if whole < value { whole + 1.0 } else { whole }
}

impl Ranks {
    pub(super) fn new(topology: &Topology, max_replicas: Option<usize>) -> Self {
        let mut ranks: Vec<(f64, usize)> = topology
            .live_ranks()
            .map(|r| (topology.speed(r), topology.slot_count(r)))
            .filter(|&(_, slots)| slots > 0)
            .collect();
        ranks.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut classes: Vec<Class> = Vec::new();
        for &(speed, slots) in &ranks {
            match classes.last_mut() {
                Some(last) if last.speed == speed && last.slots == slots as f64 => last.ranks += 1.0,
                _ => classes.push(Class { ranks: 1.0, slots: slots as f64, speed }),
            }
        }
        let top_speed = ranks.last().map_or(0.0, |r| r.0);
        let equal = ranks.first().is_some_and(|r| r.0 == top_speed);
        let mut sum = 0.0;
        let fastest = ranks.iter().rev().map(|r| {
            sum += r.0;
            sum
        });
        let fastest = if equal { Vec::new() } else { fastest.collect() };
        Self {
            fastest,
            slots: ranks.iter().map(|r| r.1).sum(),
            speed: classes.iter().map(|c| c.ranks * c.speed).sum(),
            top_speed,
            max_replicas: max_replicas.unwrap_or(ranks.len()).clamp(1, ranks.len().max(1)) as f64,
            max_copies: max_replicas.map_or(f64::INFINITY, |most| most.max(1) as f64),
            live: topology.live_ranks().count() as f64,
            classes,
        }
    }

    /// Least number of replicas, each on its own rank, that carry `load` when no rank is loaded above `rank_load`.
    ///
    /// An expert that is over by rounding alone is not charged a further replica: the bound stays a bound.
    #[inline]
    pub(super) fn replicas(&self, load: f64, rank_load: f64) -> f64 {
        let least = load * (1.0 - 1e-12) / rank_load;
        if least <= self.top_speed {
            1.0
        } else if self.fastest.is_empty() {
            round_up(least / self.top_speed)
        } else {
            (self.fastest.partition_point(|&speed| speed < least) + 1) as f64
        }
    }

    /// Largest balancedness when the busiest rank is loaded `rank_load` and the ranks take `total` tokens. Tokens weigh
    /// more on slow ranks, so the mean over ranks is largest when those are filled first; it falls as `rank_load` grows.
    pub(super) fn balancedness(&self, total: f64, rank_load: f64) -> f64 {
        if rank_load <= 0.0 {
            return 1.0;
        }
        let (mut left, mut sum) = (total, 0.0);
        for class in &self.classes {
            let tokens = left.min(rank_load * class.speed * class.ranks);
            sum += tokens / class.speed;
            left -= tokens;
        }
        sum / self.live / rank_load
    }
}
