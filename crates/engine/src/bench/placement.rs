//! What a bench moves.

use eplb_core::{LoadMatrix, Placement, Topology};
use eplb_plan::{Options, Planner, Policy, Request};
use ndarray::{Array2, ArrayView2};

use crate::error::EngineError;

/// How the next placement follows from the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// Nothing moves: what agreeing costs.
    Same,
    /// Two slots of each rank take the experts of the same slots of the rank before.
    Few2,
    /// Every rank takes all experts of its left neighbour.
    Shift,
    /// The slots of each layer are shuffled, all layers independently.
    Random,
    /// The planner's answer to loads drawn anew.
    Plan,
    /// As random, and slots of experts that have others are emptied, and empty ones filled with copies of any expert.
    Holes,
}

impl std::str::FromStr for Moves {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "same" => Moves::Same,
            "few2" => Moves::Few2,
            "shift" => Moves::Shift,
            "random" => Moves::Random,
            "plan" => Moves::Plan,
            "holes" => Moves::Holes,
            _ => return Err(format!("{name:?} is none of same, few2, shift, random, plan, holes")),
        })
    }
}

impl std::fmt::Display for Moves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Moves::Same => "same",
            Moves::Few2 => "few2",
            Moves::Shift => "shift",
            Moves::Random => "random",
            Moves::Plan => "plan",
            Moves::Holes => "holes",
        })
    }
}

/// splitmix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, `n` > 0; its bias of about n / 2^64 does not matter here.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

impl Moves {
    /// The placement of round `round` that follows `now`.
    pub(super) fn apply(
        self,
        now: &Placement,
        topology: &Topology,
        round: u64,
    ) -> Result<Placement, EngineError> {
        let per_rank = topology.slots() / topology.ranks();
        let from_left = |slot: usize| (slot + topology.slots() - per_rank) % topology.slots();
        let map = now.phy2log();
        let taken = |from: &dyn Fn(usize) -> usize| {
            Array2::from_shape_fn(map.raw_dim(), |(layer, slot)| map[(layer, from(slot))])
        };
        let new = match self {
            Moves::Same => map.to_owned(),
            Moves::Few2 => taken(&|slot| if slot % per_rank < 2 { from_left(slot) } else { slot }),
            Moves::Shift => taken(&from_left),
            Moves::Random => shuffled(map, &mut drawn(round)),
            Moves::Holes => {
                let mut random = drawn(round);
                let mut new = shuffled(map, &mut random);
                holes(&mut new, now.experts(), &mut random);
                new
            }
            Moves::Plan => return plan(now, topology, round),
        };
        Ok(Placement::new(now.experts(), new)?)
    }
}

/// Numbers of a round.
fn drawn(round: u64) -> Random {
    Random(round.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ 1)
}

fn shuffled(map: ArrayView2<'_, i32>, random: &mut Random) -> Array2<i32> {
    let mut new = map.to_owned();
    for layer in 0..new.nrows() {
        for slot in (1..new.ncols()).rev() {
            new.swap((layer, slot), (layer, random.below(slot + 1)));
        }
    }
    new
}

/// Fills each empty slot with an expert or leaves it, and empties half of the slots whose expert has another.
fn holes(map: &mut Array2<i32>, experts: usize, random: &mut Random) {
    for mut layer in map.outer_iter_mut() {
        let mut slots = vec![0; experts];
        let known = |entry: i32| usize::try_from(entry).ok();
        layer.iter().filter_map(|&entry| known(entry)).for_each(|expert| slots[expert] += 1);
        for entry in &mut layer {
            match known(*entry) {
                None if random.below(2) == 0 => {
                    let expert = random.below(experts);
                    slots[expert] += 1;
                    *entry = i32::try_from(expert).unwrap_or(-1);
                }
                Some(expert) if slots[expert] > 1 && random.below(2) == 0 => {
                    slots[expert] -= 1;
                    *entry = -1;
                }
                _ => {}
            }
        }
    }
}

/// A balanced plan for loads that fall as a power of the expert's rank, in an order drawn anew.
fn plan(now: &Placement, topology: &Topology, round: u64) -> Result<Placement, EngineError> {
    let mut random = Random(round.wrapping_add(77));
    let mut loads = Array2::zeros((now.layers(), now.experts()));
    for layer in 0..now.layers() {
        let mut order: Vec<usize> = (0..now.experts()).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at + 1));
        }
        for (place, expert) in order.into_iter().enumerate() {
            loads[(layer, expert)] = (1e6 / (1.0 + place as f64)).round();
        }
    }
    let loads = LoadMatrix::from_sum(loads)?;
    let options = Options { policy: Policy::Balanced, ..Options::default() };
    let request = Request::new(&loads, topology, &options).with_current(now);
    Ok(Planner::new(1)?.plan(&request)?.placement)
}

#[cfg(test)]
mod tests {
    use eplb_core::{LayerId, SlotId};

    use super::*;

    #[test]
    fn every_kind_keeps_all_experts_and_moves_what_it_says() {
        let topology = Topology::uniform(4, 20).unwrap();
        let mut now = Placement::round_robin(3, 16, 20).unwrap();
        for moves in ["same", "few2", "shift", "random", "plan", "holes", "holes"] {
            let moves: Moves = moves.parse().unwrap();
            let next = moves.apply(&now, &topology, 3).unwrap();
            assert_eq!(next.missing().count(), 0, "{moves}");
            let changed = (0..3)
                .flat_map(|layer| (0..20).map(move |slot| (LayerId::at(layer), SlotId::at(slot))))
                .filter(|&(layer, slot)| now.expert_at(layer, slot) != next.expert_at(layer, slot))
                .count();
            match moves {
                Moves::Same => assert_eq!(changed, 0),
                Moves::Few2 => assert_eq!(changed, 3 * 8),
                Moves::Shift => assert!(changed > 50, "{changed}"),
                Moves::Random | Moves::Plan => assert!(changed > 20, "{changed}"),
                Moves::Holes => {
                    let map = next.phy2log();
                    let layer = map.row(0);
                    let holes = layer.iter().filter(|&&entry| entry == -1).count();
                    assert!(changed > 20 && holes > 0 && holes < 5, "{holes} of 4 at most are empty");
                }
            }
            now = next;
        }
        assert!("none".parse::<Moves>().is_err());
    }
}
