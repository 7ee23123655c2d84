//! One layer on its way to balance, change by change.

use eplb_core::{RankId, SlotId, Topology};

/// A change of one or two slots.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    /// A slot gets a copy of an expert; what it held has another copy, or it was empty. One move.
    Put { slot: usize, expert: usize },
    /// Two slots of different ranks swap what they hold. Two moves.
    Swap { a: usize, b: usize },
}

impl Change {
    fn moves(self) -> usize {
        match self {
            Change::Put { .. } => 1,
            Change::Swap { .. } => 2,
        }
    }
}

/// A layer after some changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stop {
    /// Moves from the start, at most.
    pub(super) moves: usize,
    /// Balancedness, 0..1.
    pub(super) value: f64,
    /// The row of `phy2log`, `[P]`.
    pub(super) row: Vec<i32>,
}

/// What a layer holds and how loaded its ranks are, at even split.
#[derive(Debug)]
pub(super) struct Layer<'a> {
    loads: &'a [f64],
    topology: &'a Topology,
    limit: u32,
    row: Vec<i32>,
    count: Vec<u32>,
    rank: Vec<f64>,
    mean: f64,
}

impl<'a> Layer<'a> {
    /// `row` is what live ranks hold; `limit` is the most replicas of an expert.
    pub(super) fn new(loads: &'a [f64], topology: &'a Topology, row: &[i32], limit: usize) -> Self {
        let mut layer = Self {
            loads,
            topology,
            limit: limit as u32,
            row: row.to_vec(),
            count: vec![0; loads.len()],
            rank: vec![0.0; topology.ranks()],
            mean: 0.0,
        };
        layer.row.iter().filter_map(|&e| usize::try_from(e).ok()).for_each(|e| layer.count[e] += 1);
        let speed: f64 = topology.live_ranks().map(|r| topology.speed(r)).sum();
        layer.mean = loads.iter().sum::<f64>() / speed;
        layer.weigh();
        layer
    }

    /// Puts back experts that no live rank holds: in an empty slot of the least loaded rank, else in place of the replica
    /// that costs least. Returns the moves. An expert that finds no slot is left out.
    pub(super) fn restore(&mut self) -> usize {
        let mut lost: Vec<usize> = (0..self.loads.len()).filter(|&e| self.count[e] == 0).collect();
        lost.sort_by(|&a, &b| self.loads[b].total_cmp(&self.loads[a]).then(a.cmp(&b)));
        let mut moves = 0;
        for expert in lost {
            let slots = (0..self.row.len()).filter(|&s| self.topology.is_alive(self.owner(s)));
            let cost = |slot: usize| match usize::try_from(self.row[slot]) {
                Err(_) => Some((0.0, self.rank[self.owner(slot).index()], slot)),
                Ok(held) if self.count[held] > 1 => {
                    let part = self.loads[held] / f64::from(self.count[held]);
                    Some((1.0 + part, self.rank[self.owner(slot).index()], slot))
                }
                Ok(_) => None,
            };
            let best = slots
                .filter_map(cost)
                .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
            if let Some((_, _, slot)) = best {
                self.make(Change::Put { slot, expert });
                moves += 1;
            }
        }
        moves
    }

    /// Climbs until the layer is balanced to `level` or no change helps; returns the stops on the way, the start first.
    /// `spent` are moves made before.
    pub(super) fn climb(&mut self, level: f64, spent: usize) -> Vec<Stop> {
        let mut moves = spent;
        let mut stops = vec![Stop { moves, value: self.value(), row: self.row.clone() }];
        // Each change lowers a sum of squares by a real amount, so this ends; the cap is for rounding.
        for _ in 0..4 * self.row.len() {
            if self.value() >= level {
                break;
            }
            let Some(change) = self.best() else { break };
            self.make(change);
            moves += change.moves();
            let value = self.value();
            if stops.last().is_some_and(|last| value > last.value) {
                stops.push(Stop { moves, value, row: self.row.clone() });
            }
        }
        stops
    }

    /// Slots whose expert is not on their rank in `start`, a row of `phy2log`.
    pub(super) fn moves_from(&self, start: &[i32]) -> usize {
        let arrived = |&slot: &usize| {
            let had = &start[self.topology.slots_of(self.owner(slot))];
            self.row[slot] >= 0 && !had.contains(&self.row[slot])
        };
        (0..self.row.len()).filter(arrived).count()
    }

    /// Mean over the largest of the rank loads; 1 for an idle layer.
    pub(super) fn value(&self) -> f64 {
        eplb_core::metrics::layer_balancedness(&self.rank, self.topology).unwrap_or(1.0)
    }

    fn owner(&self, slot: usize) -> RankId {
        self.topology.rank_of(SlotId::at(slot))
    }

    /// Rank loads from nothing, so that rounding does not pile up.
    fn weigh(&mut self) {
        self.rank.fill(0.0);
        for slot in 0..self.row.len() {
            if let Ok(expert) = usize::try_from(self.row[slot]) {
                let owner = self.owner(slot);
                let part = self.loads[expert] / f64::from(self.count[expert]);
                self.rank[owner.index()] += part / self.topology.speed(owner);
            }
        }
    }

    fn holds(&self, rank: RankId, expert: usize) -> bool {
        self.row[self.topology.slots_of(rank)].contains(&(expert as i32))
    }

    fn make(&mut self, change: Change) {
        match change {
            Change::Put { slot, expert } => {
                if let Ok(held) = usize::try_from(self.row[slot]) {
                    self.count[held] -= 1;
                }
                self.count[expert] += 1;
                self.row[slot] = expert as i32;
            }
            Change::Swap { a, b } => self.row.swap(a, b),
        }
        self.weigh();
    }

    /// The change that takes most excess off per move without making another rank the worst; ties go to the first found, in
    /// order of slots and experts.
    fn best(&self) -> Option<Change> {
        let live = || self.topology.live_ranks();
        let hot =
            live().max_by(|a, b| self.rank[a.index()].total_cmp(&self.rank[b.index()]).then(b.cmp(a)))?;
        let worst = self.rank[hot.index()];
        let mut best: Option<(f64, Change)> = None;
        let mut offer = |change: Change, effect: &[(RankId, f64)]| {
            let Some(gain) = self.gain(effect, worst) else { return };
            let gain = gain / change.moves() as f64;
            if gain > 1e-12 * self.mean * self.mean && best.is_none_or(|(most, _)| gain > most) {
                best = Some((gain, change));
            }
        };
        let mut effect = Vec::new();
        let hot_slots: Vec<usize> = self.topology.slots_of(hot).filter(|&s| self.row[s] >= 0).collect();
        for slot in (0..self.row.len()).filter(|&s| self.topology.is_alive(self.owner(s))) {
            let owner = self.owner(slot);
            let spare = usize::try_from(self.row[slot]).map_or(true, |held| self.count[held] > 1);
            if owner == hot {
                // A replica on the hot rank makes room for something lighter.
                if spare && self.row[slot] >= 0 {
                    for expert in 0..self.loads.len() {
                        if self.count[expert] < self.limit && !self.holds(hot, expert) {
                            self.put_effect(slot, expert, &mut effect);
                            offer(Change::Put { slot, expert }, &effect);
                        }
                    }
                }
                continue;
            }
            for &from in &hot_slots {
                let expert = self.row[from] as usize;
                if self.holds(owner, expert) {
                    continue;
                }
                if spare && self.count[expert] < self.limit {
                    self.put_effect(slot, expert, &mut effect);
                    offer(Change::Put { slot, expert }, &effect);
                }
                if let Ok(held) = usize::try_from(self.row[slot])
                    && !self.holds(hot, held)
                {
                    let part = |e: usize| self.loads[e] / f64::from(self.count[e]);
                    let shift = part(expert) - part(held);
                    effect.clear();
                    effect.push((hot, -shift / self.topology.speed(hot)));
                    effect.push((owner, shift / self.topology.speed(owner)));
                    offer(Change::Swap { a: from, b: slot }, &effect);
                }
            }
        }
        best.map(|(_, change)| change)
    }

    /// What a [`Change::Put`] does to rank loads, one entry per slot concerned.
    fn put_effect(&self, slot: usize, expert: usize, effect: &mut Vec<(RankId, f64)>) {
        effect.clear();
        let owner = self.owner(slot);
        let mut add = |rank: RankId, tokens: f64| effect.push((rank, tokens / self.topology.speed(rank)));
        let (count, load) = (f64::from(self.count[expert]), self.loads[expert]);
        add(owner, load / (count + 1.0));
        let held = usize::try_from(self.row[slot]).ok();
        for other in (0..self.row.len()).filter(|&s| s != slot) {
            if self.row[other] == expert as i32 {
                add(self.owner(other), load / (count + 1.0) - load / count);
            } else if held.is_some_and(|held| self.row[other] == held as i32) {
                let (count, load) = (f64::from(self.count[held.unwrap_or(0)]), self.loads[held.unwrap_or(0)]);
                add(self.owner(other), load / (count - 1.0) - load / count);
            }
        }
        if let Some(held) = held {
            add(owner, -self.loads[held] / f64::from(self.count[held]));
        }
    }

    /// Drop of the sum over ranks of squared load above the mean; `None` if a rank would be as bad as the worst is now.
    fn gain(&self, effect: &[(RankId, f64)], worst: f64) -> Option<f64> {
        let excess = |load: f64| (load - self.mean).max(0.0).powi(2);
        let mut gain = 0.0;
        for (at, &(rank, _)) in effect.iter().enumerate() {
            // Entries of one rank are taken together, at the first of them.
            if effect[..at].iter().any(|&(seen, _)| seen == rank) {
                continue;
            }
            let before = self.rank[rank.index()];
            let after = before + effect.iter().filter(|&&(r, _)| r == rank).map(|&(_, d)| d).sum::<f64>();
            if after > before && after >= worst {
                return None;
            }
            gain += excess(before) - excess(after);
        }
        Some(gain)
    }
}
