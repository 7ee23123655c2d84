//! Plans one layer: replica counts, packing and refinement, and other counts where these do not lead far enough.

use super::exact::Exact;
use super::pack::{PackScratch, pack};
use super::refine::{RefineScratch, refine};
use super::replicas::Replicas;
use super::state::{Saved, State};
use crate::layer::{Ranks, key_id};

/// A packing this close to what can be hoped for is refined without a look at other replica counts...
const PROMISING: f64 = 0.035;

/// ...and a plan this close is not tried to be improved by other counts; the second where the largest replica and not
/// the mean is what limits the layer.
const CLOSE: [f64; 2] = [0.0025, 0.012];

/// Largest loads per replica that are tried, as parts of the mean load of a rank, and how close a packing must be to end
/// the trials.
const CAPS: [f64; 3] = [0.8, 0.65, 0.85];
const ENOUGH: f64 = 0.0125;

/// A plan this far from what can be hoped for is in a dead end: counts that did not look promising may lead farther.
const FAR: f64 = 0.02;

/// How many packings are refined: those with the least cost, after the first only promising ones unless it ended far off.
const MOST_REFINED: usize = 2;

/// Memory for one layer.
#[derive(Debug, Default)]
pub(super) struct Search {
    pub(super) state: State,
    pub(super) pack: PackScratch,
    replicas: Replicas,
    pub(super) refine: RefineScratch,
    best: Saved,
    /// The best packing with a cap.
    packed: Saved,
    exact: Exact,
    starts: Vec<Start>,
}

/// Replica counts to start from.
#[derive(Debug, Clone, Copy)]
struct Start {
    /// Cost of the worst rank after packing.
    cost: f64,
    /// Largest load per replica; infinite stands for the least possible.
    cap: f64,
}

/// The cap of the counts that make the largest load per replica as small as it can be.
const NO_CAP: f64 = f64::INFINITY;

/// What is planned.
#[derive(Debug, Clone, Copy)]
struct Layer<'a> {
    units: &'a [f64],
    ranks: &'a Ranks,
    limit: usize,
    /// Mean cost of the ranks.
    mean: f64,
}

impl Search {
    /// Finds a placement of the experts with loads `units` (`[E]`) and leaves it in `state`.
    pub(super) fn run(&mut self, units: &[f64], ranks: &Ranks, limit: usize) {
        let layer = Layer { units, ranks, limit, mean: units.iter().sum::<f64>() / ranks.speed };
        self.search(layer);
        if self.cost() > layer.mean {
            self.exact.improve(&mut self.state, limit);
        }
    }

    fn search(&mut self, layer: Layer<'_>) {
        self.pack(layer, NO_CAP);
        let hoped = self.hoped(layer);
        let close = hoped * (1.0 + CLOSE[usize::from(hoped > layer.mean)]);
        let packed = self.cost();
        let promising = packed <= hoped * (1.0 + PROMISING);
        if promising {
            self.refine(layer);
            if self.cost() <= close {
                return;
            }
        }
        let mut best = self.cost();
        self.state.save(&mut self.best);

        self.starts.clear();
        self.starts.push(Start { cost: packed, cap: NO_CAP });
        let (mut least, mut saved) = (f64::INFINITY, NO_CAP);
        for cap in CAPS.map(|part| part * layer.mean) {
            if self.pack(layer, cap) {
                self.starts.push(Start { cost: self.cost(), cap });
                if self.cost() < least {
                    (least, saved) = (self.cost(), cap);
                    self.state.save(&mut self.packed);
                }
                if self.cost() <= hoped * (1.0 + ENOUGH) {
                    break;
                }
            }
        }
        self.starts.sort_unstable_by(|a, b| a.cost.total_cmp(&b.cost).then(b.cap.total_cmp(&a.cap)));
        // Caps next to each other often lead to the same counts: those are refined once.
        self.starts.dedup_by(|a, b| a.cost == b.cost);
        let mut refined = usize::from(promising);
        for start in 0..self.starts.len() {
            let Start { cap, cost } = self.starts[start];
            let doubtful = refined > 0 && cost > hoped * (1.0 + PROMISING);
            if best <= close || refined == MOST_REFINED || (doubtful && best <= hoped * (1.0 + FAR)) {
                break;
            }
            if promising && cost == packed {
                continue;
            }
            if cap != NO_CAP && cap == saved {
                self.state.restore(&self.packed);
            } else {
                self.pack(layer, cap);
            }
            self.refine(layer);
            refined += 1;
            if self.cost() < best {
                best = self.cost();
                self.state.save(&mut self.best);
            }
        }
        self.state.restore(&self.best);
    }

    /// Chooses the counts that make the largest load per replica as small as it can be; nothing is placed yet.
    pub(super) fn start(&mut self, units: &[f64], ranks: &Ranks, limit: usize) {
        self.replicas.choose(units, ranks.total_room(), limit);
        self.state.reset(ranks, units, &self.replicas.count, &self.replicas.size);
    }

    /// Packs a layer with no replica above `cap`; false if the slots do not suffice.
    fn pack(&mut self, Layer { units, ranks, limit, mean }: Layer<'_>, cap: f64) -> bool {
        let slots = ranks.total_room();
        if cap == NO_CAP {
            self.replicas.choose(units, slots, limit);
        } else if !self.replicas.choose_capped(units, slots, limit, cap, 0.5 * mean) {
            return false;
        }
        self.state.reset(ranks, units, &self.replicas.count, &self.replicas.size);
        pack(&mut self.state, ranks, &self.replicas.sequence, limit, &mut self.pack);
        true
    }

    fn refine(&mut self, Layer { ranks, limit, .. }: Layer<'_>) {
        refine(&mut self.state, ranks, limit, &mut self.refine);
    }

    /// Cost of the worst rank.
    fn cost(&self) -> f64 {
        self.state.cost(self.state.worst())
    }

    /// What a plan with the counts of [`Replicas::choose`] cannot do better than: the mean, or the largest replica beside
    /// the lightest ones that fill its rank.
    fn hoped(&self, Layer { ranks, mean, .. }: Layer<'_>) -> f64 {
        let Replicas { sequence, size, .. } = &self.replicas;
        let room = ranks.room.iter().copied().min().unwrap_or(1);
        let filled: f64 =
            sequence.iter().rev().take(room.saturating_sub(1)).map(|&key| size[key_id(key)]).sum();
        let largest = sequence.first().map_or(0.0, |&key| size[key_id(key)]);
        mean.max((largest + filled) / ranks.fastest())
    }
}
