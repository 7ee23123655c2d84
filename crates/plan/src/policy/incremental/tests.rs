//! The state after changes is the state of a fresh start; climbs that get stuck get on.

use eplb_core::Topology;

use super::climb::{Climb, Goal};
use super::path::Path;
use super::ranks::RankTable;
use super::state::{Change, EMPTY, State};

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// Experts `0..experts` one after another in all slots but the last of each rank, heavier ones first.
fn start(state: &mut State, ranks: &RankTable, slots: usize, random: &mut Random) -> Vec<i32> {
    let per_rank = slots / ranks.len();
    let experts = slots - ranks.len() - 3;
    state.weight = (0..experts).map(|_| (1 + random.below(40)) as f64 * 0.37).collect();
    state.limit = 4;
    state.aim = state.weight.iter().sum::<f64>() / ranks.len() as f64;
    let mut next = 0;
    let row: Vec<i32> = (0..slots)
        .map(|slot| {
            if slot % per_rank == per_rank - 1 {
                return EMPTY;
            }
            next += 1;
            ((next - 1) % experts) as i32
        })
        .collect();
    state.start(ranks, &row, &row);
    row
}

/// A change that the state allows, if the draw finds one.
fn draw(state: &State, random: &mut Random) -> Option<Change> {
    let slots = state.slot.len();
    if random.below(2) == 0 {
        let (one, other) = (random.below(slots), random.below(slots));
        let (first, second) = (&state.slot[one], &state.slot[other]);
        let fits = |expert: i32, rank: u32| expert < 0 || !state.holds(rank as usize, expert);
        let apart = first.rank != second.rank && first.expert >= 0;
        return (apart && fits(first.expert, second.rank) && fits(second.expert, first.rank))
            .then_some(Change::Swap { one: one as u32, other: other as u32 });
    }
    let slot = *state.spare.get(random.below(state.spare.len().max(1)))?;
    let expert = random.below(state.weight.len());
    let free = !state.holds(state.slot[slot as usize].rank as usize, expert as i32);
    (free && state.count[expert] < state.limit).then_some(Change::Replace { slot, expert: expert as i32 })
}

/// The first thing in which two states differ.
fn difference(one: &State, other: &State) -> Option<&'static str> {
    let slots = |state: &State| -> Vec<(u64, u64, i32, u32, u32, bool)> {
        let key = |slot: &super::state::SlotState| {
            let spare = slot.expert >= 0 && state.count[slot.expert as usize] > 1;
            let harm = if spare { slot.harm.to_bits() } else { 0 };
            let next = if slot.expert >= 0 { slot.next } else { 0 };
            (slot.part.to_bits(), harm, slot.expert, slot.rank, next, slot.moved)
        };
        state.slot.iter().map(key).collect()
    };
    let ranks = |state: &State| -> Vec<(u64, u64, u32)> {
        state.rank.iter().map(|r| (r.excess.to_bits(), r.penalty.to_bits(), r.arrivals)).collect()
    };
    let checks = [
        ("slots", slots(one) == slots(other)),
        ("ranks", ranks(one) == ranks(other)),
        ("loads", one.load == other.load && one.excess == other.excess && one.penalty == other.penalty),
        ("counts", one.count == other.count && one.head == other.head),
        ("lists", one.spare == other.spare && one.vacant == other.vacant),
        ("moves", one.moved_slots == other.moved_slots),
        ("held", one.held == other.held && one.origin == other.origin),
    ];
    checks.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
}

#[test]
fn changes_lead_where_a_fresh_start_does() {
    let mut random = Random(7);
    for speeds in [[1.0; 6], [1.0, 0.5, 2.0, 1.0, 0.5, 1.5]] {
        let ranks = RankTable::new(&Topology::uniform(6, 30).unwrap().with_speed(&speeds).unwrap());
        let (mut state, mut fresh) = (State::default(), State::default());
        let origin = start(&mut state, &ranks, 30, &mut random);
        let mut row = origin.clone();
        let mut changes = 0;
        while changes < 300 {
            let Some(change) = draw(&state, &mut random) else { continue };
            state.apply(&ranks, change);
            change.write(&mut row);
            changes += 1;
            fresh.weight.clone_from(&state.weight);
            (fresh.aim, fresh.limit) = (state.aim, state.limit);
            fresh.start(&ranks, &row, &origin);
            assert_eq!(difference(&state, &fresh), None, "after {changes} changes");
        }
        // Planted faults: what is not kept is seen.
        let spare = state.spare[0] as usize;
        let slot =
            state.spare.iter().map(|&s| s as usize).find(|&s| state.slot[s].expert >= 0).unwrap_or(spare);
        let harm = std::mem::replace(&mut state.slot[slot].harm, -1.0);
        assert_eq!(difference(&state, &fresh), Some("slots"));
        state.slot[slot].harm = harm;
        state.rank[0].arrivals += 1;
        assert_eq!(difference(&state, &fresh), Some("ranks"));
        state.rank[0].arrivals -= 1;
        state.spare.swap(0, 1);
        assert_eq!(difference(&state, &fresh), Some("lists"));
    }
}

/// Balancedness that a climb ends at, and its moves.
fn end(state: (Vec<f64>, Vec<i32>), ranks: &RankTable, escapes: bool) -> (f64, u32) {
    let (weight, row) = state;
    let mut climb = Climb::default();
    climb.state.aim = weight.iter().sum::<f64>() / ranks.len() as f64;
    climb.state.limit = u32::MAX;
    climb.state.weight = weight;
    climb.state.start(ranks, &row, &row);
    let mut path = Path::default();
    path.patience = 64;
    let goal = Goal { level: 1.0, escapes, moves: u32::MAX, caps: &[] };
    climb.further(ranks, &mut path, goal);
    let last = path.last().unwrap();
    // Where the path leads is what its last stop says.
    let mut reached = row.clone();
    path.write(last.way, &mut reached);
    let mut check = State { aim: climb.state.aim, limit: u32::MAX, ..State::default() };
    check.weight.clone_from(&climb.state.weight);
    check.start(ranks, &reached, &row);
    assert_eq!((check.value(ranks), check.moves()), (last.value, last.moves));
    (last.value, last.moves)
}

#[test]
fn two_slots_per_rank_need_ways_out_of_local_optima() {
    // 24 experts, 16 ranks: every spare slot is taken by a light expert, most of them wrongly.
    let ranks = RankTable::new(&Topology::uniform(16, 32).unwrap());
    let mut random = Random(3);
    let (mut stuck, mut free) = (0.0, 0.0);
    for _ in 0..20 {
        let weight: Vec<f64> = (0..24).map(|_| 1.0 / (1 + random.below(24)) as f64).collect();
        let row: Vec<i32> = (0..32).map(|slot| slot % 24).collect();
        stuck += end((weight.clone(), row.clone()), &ranks, false).0;
        free += end((weight, row), &ranks, true).0;
    }
    assert!(free > stuck + 0.3, "{free} {stuck}");
}
