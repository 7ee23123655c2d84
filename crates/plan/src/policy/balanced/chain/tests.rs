use eplb_core::Topology;
use proptest::prelude::*;

use super::*;
use crate::layer::Ranks;
use crate::policy::balanced::replace::{ReplaceScratch, replace};
use crate::policy::balanced::state::NONE;

/// Ranks of `slots` places that hold the experts of `held` in order; a second copy on a rank is left out.
fn state(units: &[f64], held: &[u32], slots: usize, speed: &[f64]) -> State {
    let ranks = held.len() / slots;
    let topology = Topology::uniform(ranks, held.len()).unwrap().with_speed(&speed[..ranks]).unwrap();
    let mut state = State::default();
    let ranks = Ranks::live(&topology, units.len());
    state.reset(&ranks, units, &vec![0; units.len()], &vec![0.0; units.len()]);
    for (at, &expert) in held.iter().enumerate() {
        let rank = at / slots;
        if expert != NONE && !state.holds(rank, expert) {
            let place = state.places(rank).start + at % slots;
            state.expert[place] = expert;
            state.set_count(expert, state.count[expert as usize] + 1);
        }
    }
    state.settle();
    state
}

/// Every expert once, in order.
fn once(units: &[f64], slots: usize, speed: &[f64]) -> State {
    state(units, &(0..units.len() as u32).collect::<Vec<_>>(), slots, speed)
}

/// Searches as refinement does, for a cost of the worst rank below `highest`.
fn search(state: &mut State, highest: f64, scratch: &mut ChainScratch) -> bool {
    let mut holders = Holders::default();
    holders.find(state);
    let worst = state.worst();
    let found = chain(state, worst, [highest; 2], &mut holders, scratch, &mut ExchangeScratch::default());
    for expert in 0..state.units.len() as u32 {
        let mut listed: Vec<usize> = holders.of(expert).collect();
        listed.sort_unstable();
        let held: Vec<usize> = (0..state.ranks()).filter(|&rank| state.holds(rank, expert)).collect();
        assert_eq!(listed, held, "expert {expert}");
    }
    found
}

/// What is wrong with a state after a search that was to bring the worst rank below `highest`.
fn wrong(before: &State, state: &State, found: bool, highest: f64) -> Option<String> {
    let experts = |state: &State, rank: usize| state.expert[state.places(rank)].to_vec();
    let size = |e: u32| state.size.get(e as usize).copied().unwrap_or(0.0);
    for rank in 0..state.ranks() {
        let held = experts(state, rank);
        let load: f64 = held.iter().map(|&e| size(e)).sum();
        if state.load[rank] != load {
            return Some(format!("rank {rank} has {load}, not {}", state.load[rank]));
        }
        if held.iter().any(|e| *e != NONE && held.iter().filter(|&other| other == e).count() > 1) {
            return Some(format!("rank {rank} holds an expert twice: {held:?}"));
        }
        // Costs are whole units there.
        if rank > 0 && state.cost(state.ranked(rank - 1)) > state.cost(state.ranked(rank)) + 1.0 {
            return Some("ranks are out of order".to_owned());
        }
    }
    let changed: Vec<usize> =
        (0..state.ranks()).filter(|&rank| experts(state, rank) != experts(before, rank)).collect();
    let high = changed.iter().any(|&rank| state.cost(rank) >= highest);
    let expected =
        if found { changed.contains(&before.worst()) && changed.len() <= 3 } else { changed.is_empty() };
    (high || !expected)
        .then(|| format!("found: {found}, changed: {changed:?}, {:?} for {highest}", state.load))
}

/// All exchanges of one for one that are allowed between two ranks, with what they take from the first.
fn exchanges(state: &State, a: usize, b: usize) -> Vec<(usize, usize, f64)> {
    let each = state.places(a).flat_map(|p| state.places(b).map(move |q| (p, q)));
    let allowed = each.filter(|&(p, q)| state.may_exchange(a, p, b, q));
    allowed.map(|(p, q)| (p, q, state.place_load[p] - state.place_load[q])).collect()
}

/// Whether a rank that gets so much costs less.
fn below(state: &State, rank: usize, more: f64, cost: f64) -> bool {
    (state.load[rank] + more) * state.slowness[rank] < cost
}

/// An exchange of the worst rank that leaves both below `cost`: `(rank, experts)`.
fn exchange_below(state: &State, cost: f64) -> Option<(usize, (u32, u32))> {
    let a = state.worst();
    (0..state.ranks()).filter(|&b| b != a).find_map(|b| {
        let fits = |given: f64| below(state, a, -given, cost) && below(state, b, given, cost);
        let found = exchanges(state, a, b).into_iter().find(|&(.., given)| fits(given));
        found.map(|(p, q, _)| (b, (state.expert[p], state.expert[q])))
    })
}

/// Whether the exchange that gives a second rank least can be followed by one with a third, all three below `cost`.
fn chain_below(state: &State, cost: f64) -> bool {
    let a = state.worst();
    (0..state.ranks()).filter(|&b| b != a).any(|b| {
        let links = exchanges(state, a, b).into_iter().filter(|link| below(state, a, -link.2, cost));
        let Some((p, q, given)) = links.min_by(|x, y| x.2.total_cmp(&y.2)) else { return false };
        let mut after = state.clone();
        after.exchange(a, b, &[(state.expert[p], state.expert[q])]);
        let third = |c: usize| {
            let fits = |more: f64| below(state, b, given - more, cost) && below(state, c, more, cost);
            exchanges(&after, b, c).iter().any(|link| fits(link.2))
        };
        (0..state.ranks()).filter(|&c| c != a && c != b).any(third)
    })
}

/// By which part of itself the worst rank must become lighter.
const LITTLE: f64 = 1e-4;

/// The cost below which a change must bring the worst rank.
fn highest(state: &State, part: f64) -> f64 {
    state.cost(state.worst()) * (1.0 - part)
}

/// Exchanges of one for one until none helps.
fn exhaust(state: &mut State, part: f64) {
    while let Some((b, experts)) = exchange_below(state, highest(state, part)) {
        state.exchange(state.worst(), b, &[experts]);
    }
}

/// Whether a search that was to find every chain missed one.
fn missed(state: &State, part: f64, scratch: &mut ChainScratch) -> bool {
    // A little lower than what is searched for: loads are compared in float32 first.
    let (cost, mut after) = (highest(state, part), state.clone());
    chain_below(state, cost * (1.0 - 1e-6)) && !search(&mut after, cost, scratch)
}

/// Slots of a rank, loads, speeds and experts in places.
fn cases() -> impl Strategy<Value = (usize, Vec<f64>, Vec<f64>, Vec<u32>)> {
    let speed = prop_oneof![3 => Just(vec![1.0; 6]), 1 => prop::collection::vec(1u32..4, 6).prop_map(
        |speed| speed.into_iter().map(f64::from).collect())];
    (3usize..=6, 3usize..=5, speed).prop_flat_map(|(ranks, slots, speed)| {
        let places = ranks * slots;
        let load = prop_oneof![(1u32..60).prop_map(f64::from), (1u32..2000).prop_map(f64::from)];
        let held = prop_oneof![
            2 => Just((0..places as u32).collect::<Vec<_>>()).prop_shuffle(),
            1 => prop::collection::vec(0..places as u32, places),
        ];
        (Just(slots), prop::collection::vec(load, places), Just(speed), held)
    })
}

proptest! {
    #[test]
    fn chains_are_found_and_leave_what_they_should(
        (slots, units, speed, held) in cases(),
        part in prop_oneof![Just(LITTLE), 0.0..0.1],
    ) {
        let mut before = state(&units, &held, slots, &speed);
        exhaust(&mut before, part);
        let (cost, mut after) = (highest(&before, part), before.clone());
        let found = search(&mut after, cost, &mut ChainScratch::default());
        prop_assert_eq!(wrong(&before, &after, found, cost), None);
        prop_assert!(!missed(&before, part, &mut ChainScratch::default()));
    }

    /// Each rank takes one replica of the rank before.
    #[test]
    fn where_a_ring_helps_an_exchange_does((slots, units, speed, _) in cases()) {
        let state = once(&units, slots, &speed);
        let (a, cost) = (state.worst(), state.cost(state.worst()));
        let place = |rank: usize| state.places(rank).map(|place| state.place_load[place]);
        let others = || (0..state.ranks()).filter(|&rank| rank != a);
        let ring = others().any(|b| others().filter(|&c| c != b).any(|c| {
            place(a).any(|x| place(b).filter(|y| below(&state, b, x - y, cost)).any(|y| {
                place(c).any(|z| below(&state, c, y - z, cost) && below(&state, a, z - x, cost))
            }))
        }));
        prop_assert!(!ring || exchange_below(&state, cost).is_some());
    }

    #[test]
    fn two_to_a_rank_are_paired_best_by_exchanges(units in prop::collection::vec((1u32..40).prop_map(f64::from), 2..5)
        .prop_flat_map(|half| (Just(half.clone()), prop::collection::vec((1u32..40).prop_map(f64::from), half.len())))
        .prop_map(|(mut half, more)| { half.extend(more); half }))
    {
        let state = once(&units, 2, &[1.0; 4]);
        let cost = state.cost(state.worst());
        prop_assert!(best_pairs(&mut units.clone()) >= cost || exchange_below(&state, cost).is_some());
    }
}

/// The least that the heaviest of all pairs can have.
fn best_pairs(units: &mut Vec<f64>) -> f64 {
    let Some(first) = units.pop() else { return 0.0 };
    let mut best = f64::INFINITY;
    for at in 0..units.len() {
        let other = units.swap_remove(at);
        best = best.min(best_pairs(&mut units.clone()).max(first + other));
        units.push(other);
        let last = units.len() - 1;
        units.swap(at, last);
    }
    units.push(first);
    best
}

/// Ranks with 59, 56 and 47 tokens, where 54 on each is possible.
const STUCK: [f64; 9] = [40.0, 17.0, 2.0, 27.0, 17.0, 12.0, 24.0, 20.0, 3.0];

#[test]
fn a_chain_helps_where_nothing_else_does() {
    let mut state = once(&STUCK, 3, &[1.0; 3]);
    let (worst, cost) = (state.worst(), state.cost(state.worst()));
    let mut exchange = ExchangeScratch::default();
    for kind in [Kind::One, Kind::Two] {
        let mut best = Exchange::none(cost, 0.0);
        best.search(&state, worst, 0..3, kind, &mut exchange);
        assert!(!best.is_some(), "{kind:?}: {best:?}");
    }
    assert!(!replace(&mut state, worst, 3, [cost, 0.0], &mut ReplaceScratch::default()));
    assert_eq!(state.load, [59.0, 56.0, 47.0]);
    // 17 for 12, and 27 for 20.
    assert!(search(&mut state, cost, &mut ChainScratch::default()));
    assert_eq!(state.load, [54.0; 3]);
}

#[test]
fn what_the_checks_are_for_is_noticed() {
    let before = once(&STUCK, 3, &[1.0; 3]);
    let cost = highest(&before, LITTLE);
    assert!(chain_below(&before, cost) && !missed(&before, LITTLE, &mut ChainScratch::default()));
    assert!(missed(&before, LITTLE, &mut ChainScratch { left_out: true, ..ChainScratch::default() }));
    // A first exchange that is left as it is when no second one is found.
    let mut half = before.clone();
    half.exchange(0, 1, &[(1, 5)]);
    assert!(wrong(&before, &half, false, cost).unwrap().contains("changed: [0, 1]"));
    assert!(wrong(&before, &half, true, cost).unwrap().contains("61"), "rank 1 is too heavy");
    // Loads, the order of ranks, and copies that do not belong.
    let mut stale = before.clone();
    stale.load[2] += 1.0;
    assert!(wrong(&before, &stale, false, cost).unwrap().contains("not 48"));
    let mut order = before.clone();
    order.slowness[2] = 2.0;
    assert!(wrong(&before, &order, false, cost).unwrap().contains("order"));
    let mut twice = before.clone();
    let place = twice.places(2).start;
    twice.expert[place] = twice.expert[place + 1];
    twice.settle();
    assert!(wrong(&before, &twice, false, cost).unwrap().contains("twice"));
}

#[test]
fn enough_of_the_cases_need_a_chain() {
    // The same kind of cases as above: of 500 that exchanges leave off the mean, how many a chain betters.
    let mut seed = 1u64;
    let mut draw = |most: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % most
    };
    let found = (0..500)
        .filter(|_| {
            let units: Vec<f64> = (0..16).map(|_| 1.0 + draw(60) as f64).collect();
            let mut state = once(&units, 4, &[1.0; 4]);
            exhaust(&mut state, LITTLE);
            let cost = highest(&state, LITTLE);
            search(&mut state, cost, &mut ChainScratch::default())
        })
        .count();
    println!("a chain helps in {found} of 500 layers after exchanges of one for one");
    assert!(found > 20, "{found}");
}
