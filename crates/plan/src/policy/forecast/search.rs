//! The change that buys most worth per move.
//!
//! Slopes tell how far a change can lower the norms at most: a norm is convex, so it falls no faster than its slope says. (Worth,
//! one over it, may rise a little more where a norm falls by much.) What cannot pay its price by that is not looked at again. Of
//! the rest, gains are computed, those with the largest bounds first. Ties go to the first change in the order of [`Change`].

use std::cmp::Ordering;

use super::holding::{Change, EMPTY, Effect, Holding, Places};
use super::objective::Objective;
use super::scenarios::{Scenarios, dot};

/// Ranks, the hottest first, whose experts are swapped away.
const HOT: usize = 8;

/// Changes whose gain is computed: those with the largest bounds.
const ASKED: usize = 1024;

/// Of these, so many come first, so that the others have a good one to beat.
const FIRST: usize = 32;

/// Memory of the search.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// To first order, the cost of all tokens of an expert on a rank, `[ranks, E]`.
    cost: Vec<f32>,
    /// The same of an expert over the ranks that hold it, `[E]`.
    held: Vec<f32>,
    /// What giving up the copy in a place gains, `[places]`; minus infinity for the only copy.
    dropped: Vec<f32>,
    /// The largest of `dropped` on each rank.
    most_dropped: Vec<f32>,
    /// What the copy in a place costs on a hot rank less on its own, `[places]`, and the least of it on each rank.
    here: Vec<f32>,
    least_here: Vec<f32>,
    hot: Vec<u32>,
    /// Bound on the gain per move.
    offers: Vec<(f32, Change)>,
    effects: Vec<Effect>,
}

/// Larger rates first, then the order of changes.
fn by_rate(a: &(f32, Change), b: &(f32, Change)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

impl Search {
    /// The change with the largest gain per move, at least `price`, and its gain.
    pub(super) fn best(
        &mut self,
        holding: &Holding,
        places: &Places,
        scenarios: &Scenarios,
        objective: &Objective,
        price: f32,
    ) -> Option<(Change, f32)> {
        self.costs(holding, places, scenarios, objective);
        self.offers.clear();
        self.offer_puts(holding, places, price);
        self.offer_swaps(holding, places, objective, price);
        for most in [ASKED, FIRST] {
            if self.offers.len() > most {
                self.offers.select_nth_unstable_by(most, by_rate);
                self.offers.truncate(ASKED);
            }
        }
        let mut best: Option<((f32, Change), f32)> = None;
        for &(bound, change) in &self.offers {
            if best.is_some_and(|((rate, _), _)| bound < rate) {
                continue;
            }
            holding.effects(change, places, &mut self.effects);
            let gain = objective.gain(&self.effects, places, scenarios);
            let offer = (gain / change.moves() as f32, change);
            if offer.0 >= price && best.is_none_or(|(best, _)| by_rate(&offer, &best) == Ordering::Less) {
                best = Some((offer, gain));
            }
        }
        best.map(|((_, change), gain)| (change, gain))
    }

    fn costs(&mut self, holding: &Holding, places: &Places, scenarios: &Scenarios, objective: &Objective) {
        let (ranks, experts) = (places.ranks(), holding.count.len());
        self.cost.clear();
        for rank in 0..ranks {
            let (slope, slow) = (objective.slope(rank), places.slow[rank]);
            self.cost.extend((0..experts).map(|expert| dot(slope, scenarios.of(expert)) * slow));
        }
        self.held.clear();
        for (expert, ranks) in holding.ranks.iter().enumerate() {
            self.held.push(ranks.iter().map(|&rank| self.cost[rank as usize * experts + expert]).sum());
        }
        self.dropped.clear();
        for (place, &rank) in places.rank.iter().enumerate() {
            self.dropped.push(match holding.spare(place) {
                None => f32::NEG_INFINITY,
                Some(EMPTY) => 0.0,
                Some(expert) => {
                    let expert = expert as usize;
                    let count = holding.count[expert] as f32;
                    let own = self.cost[rank as usize * experts + expert];
                    own / count - (self.held[expert] - own) * (1.0 / (count - 1.0) - 1.0 / count)
                }
            });
        }
        self.most_dropped.clear();
        self.most_dropped.extend(
            places
                .first
                .windows(2)
                .map(|own| self.dropped[own[0]..own[1]].iter().copied().fold(f32::NEG_INFINITY, f32::max)),
        );
        // The hottest ranks; a rank that costs less than the price cannot pay for a move.
        self.hot.clear();
        self.hot.extend(0..ranks as u32);
        let heat: Vec<f32> = (0..ranks).map(|rank| objective.heat(rank)).collect();
        let hotter = |a: &u32, b: &u32| heat[*b as usize].total_cmp(&heat[*a as usize]).then(a.cmp(b));
        self.hot.sort_unstable_by(hotter);
        self.hot.truncate(HOT);
    }

    /// One more copy of an expert.
    fn offer_puts(&mut self, holding: &Holding, places: &Places, price: f32) {
        let experts = holding.count.len();
        for (expert, holders) in holding.ranks.iter().enumerate() {
            let count = holding.count[expert] as f32;
            if count == 0.0 || holding.count[expert] >= places.limit {
                continue;
            }
            let relief = self.held[expert] * (1.0 / count - 1.0 / (count + 1.0));
            for (rank, &most) in self.most_dropped.iter().enumerate() {
                let added = relief - self.cost[rank * experts + expert] / (count + 1.0);
                if added + most < price || holders.contains(&(rank as u32)) {
                    continue;
                }
                for place in places.first[rank]..places.first[rank + 1] {
                    let bound = added + self.dropped[place];
                    if bound >= price {
                        let change = Change::Put { place: place as u32, expert: expert as u32 };
                        self.offers.push((bound, change));
                    }
                }
            }
        }
    }

    /// Experts of hot ranks against those of other ranks.
    fn offer_swaps(&mut self, holding: &Holding, places: &Places, objective: &Objective, price: f32) {
        let experts = holding.count.len();
        for nth in 0..self.hot.len() {
            let hot = self.hot[nth];
            if objective.heat(hot as usize) < price {
                break;
            }
            let at_hot = hot as usize * experts;
            self.here.clear();
            for (&expert, &rank) in holding.row.iter().zip(&places.rank) {
                // Not to be swapped: nothing, and what the hot rank holds.
                self.here.push(if expert == EMPTY || holding.holds(hot, expert as usize) {
                    f32::INFINITY
                } else {
                    let expert = expert as usize;
                    let rise = self.cost[at_hot + expert] - self.cost[rank as usize * experts + expert];
                    rise / holding.count[expert] as f32
                });
            }
            self.least_here.clear();
            self.least_here.extend(
                places
                    .first
                    .windows(2)
                    .map(|own| self.here[own[0]..own[1]].iter().copied().fold(f32::INFINITY, f32::min)),
            );
            // Pairs of two hot ranks are offered once.
            self.hot[..=nth].iter().for_each(|&rank| self.least_here[rank as usize] = f32::INFINITY);
            for a in places.first[hot as usize]..places.first[hot as usize + 1] {
                let expert = holding.row[a];
                if expert == EMPTY {
                    continue;
                }
                let count = holding.count[expert as usize] as f32;
                for (rank, &least) in self.least_here.iter().enumerate() {
                    let there = self.cost[rank * experts + expert as usize];
                    let fall = (self.cost[at_hot + expert as usize] - there) / count;
                    if fall - least < 2.0 * price || holding.holds(rank as u32, expert as usize) {
                        continue;
                    }
                    for b in places.first[rank]..places.first[rank + 1] {
                        let bound = (fall - self.here[b]) * 0.5;
                        if bound >= price {
                            self.offers.push((bound, Change::Swap { a: a as u32, b: b as u32 }));
                        }
                    }
                }
            }
        }
    }
}
