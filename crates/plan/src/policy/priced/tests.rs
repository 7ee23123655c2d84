//! What the search keeps up to date is what computing it afresh gives, and what it says of a change is what the change does.

use eplb_core::{LoadMatrix, Topology};
use ndarray::Array2;

use super::facts::{Facts, Layer};
use super::find::Replica;
use super::power::Power;
use super::state::{NONE, Put, State};
use super::trial::{Swap, Trial};
use crate::objective::{CostModel, Dispatch, NodeRule};
use crate::options::Options;
use crate::request::Request;

/// Numbers that look random, the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % most
    }
}

const EXPERTS: usize = 24;

/// Six ranks of six places in three nodes, some empty, and one layer.
fn case(options: &Options, numbers: &mut Numbers) -> (Facts, Layer, State) {
    let row: Vec<f64> =
        (0..EXPERTS).map(|_| [0.0, 1.0, 30.0][numbers.below(3)] * numbers.below(99) as f64).collect();
    let loads = LoadMatrix::from_sum(Array2::from_shape_vec((1, EXPERTS), row.clone()).unwrap()).unwrap();
    let speed = [1.0, 2.0, 1.0, 1.0, 0.5, 1.0];
    let topology = Topology::uniform(6, 36).unwrap().with_nodes(3).unwrap().with_speed(&speed).unwrap();
    let facts = Facts::new(&Request::new(&loads, &topology, options), "balanced").unwrap();
    let (mut layer, mut state) = (Layer::default(), State::default());
    layer.read(&row, &facts);
    state.clear(&facts);
    for expert in 0..EXPERTS {
        state.expert[expert % 6 * 6 + expert / 6] = expert as u32;
    }
    for rank in 0..6 {
        let expert = numbers.below(EXPERTS) as u32;
        if !state.holds(&facts, rank, expert) {
            state.expert[rank * 6 + 4] = expert;
        }
    }
    state.settle(&facts, &layer);
    (facts, layer, state)
}

/// A change that keeps every expert, and no rank with two of one.
fn change(facts: &Facts, state: &State, numbers: &mut Numbers) -> Option<Vec<Put>> {
    let (a, b) = (numbers.below(36) as u32, numbers.below(36) as u32);
    let (i, j) = (state.expert[a as usize], state.expert[b as usize]);
    let (from, to) = (facts.rank_of(a), facts.rank_of(b));
    if from == to || i == NONE || i == j || state.has(facts, to, i) {
        return None;
    }
    let spare = |expert: u32| expert == NONE || state.count[expert as usize] > 1;
    match numbers.below(3) {
        0 if spare(j) => Some(vec![Put { place: b, expert: i }]),
        1 if spare(i) => Some(vec![Put { place: a, expert: NONE }]),
        _ if j == NONE || !state.has(facts, from, j) => {
            Some(vec![Put { place: a, expert: j }, Put { place: b, expert: i }])
        }
        _ => None,
    }
}

fn options() -> Vec<Options> {
    let base = Options { groups: 6, ..Options::default() };
    let cost = CostModel { per_expert: 40.0, per_token: 1.0 };
    let mut all = Vec::new();
    for dispatch in [Dispatch::Even, Dispatch::Nearest] {
        for nodes in [NodeRule::Free, NodeRule::Priced(0.4)] {
            for cost in [CostModel::default(), cost] {
                all.push(Options { dispatch, nodes, cost, ..base.clone() });
            }
        }
    }
    all
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

/// Whether a state is what it would be if all of it were computed afresh.
fn holds(facts: &Facts, layer: &Layer, state: &State) -> bool {
    let mut fresh = State::default();
    fresh.expert.clone_from(&state.expert);
    fresh.settle(facts, layer);
    let ranks = (0..6).all(|rank| {
        close(state.tokens[rank], fresh.tokens[rank]) && state.active[rank] == fresh.active[rank]
    });
    let groups = (0..facts.groups).all(|group| {
        let nodes = state.foreign(facts, group).iter().zip(fresh.foreign(facts, group));
        nodes.into_iter().all(|(a, b)| close(*a, *b)) && close(state.strays(group), fresh.strays(group))
    });
    let held = (0..EXPERTS as u32).all(|expert| state.holders(facts, expert) == fresh.holders(facts, expert));
    ranks && groups && held && close(state.crossing, fresh.crossing)
}

#[test]
fn changes_leave_what_computing_afresh_gives_and_are_worth_what_was_said() {
    let mut numbers = Numbers(5);
    let mut made = 0;
    for options in options() {
        let (facts, layer, mut state) = case(&options, &mut numbers);
        let mut trial = Trial::default();
        for _ in 0..300 {
            let Some(puts) = change(&facts, &state, &mut numbers) else { continue };
            // A power at which sums lose few digits where much changes.
            let power = Power::new(3, state.worst(&facts, &layer));
            trial.start(&facts, &layer, &state, power);
            let now = trial.now(&facts, &state);
            let said = trial.after(&facts, &layer, &mut state, &puts, f64::INFINITY).unwrap();
            if let [a, b] = puts[..] {
                let read = |place: u32| Replica::read(&facts, &layer, &state, place).unwrap();
                let (ours, theirs) = (read(a.place), read(b.place));
                let (from, to) = (facts.rank_of(a.place), facts.rank_of(b.place));
                let swap = Swap { from, ours, to, theirs };
                let also = trial.after_swap(&facts, &layer, &mut state, swap, f64::INFINITY);
                assert!(close(said, also.unwrap()), "{said} {also:?}");
            }
            // Limits: what is worth more is not told.
            assert!(trial.after(&facts, &layer, &mut state, &puts, said * 0.999).is_none());
            // What a first look says no to is no gain.
            if let [put] = puts[..]
                && put.expert != NONE
                && !trial.may_replace(&facts, &layer, &state, put, now)
            {
                assert!(said >= now * (1.0 - 1e-9) || overlap(&facts, &state, put), "{said} {now}");
            }
            let mut told = [false; 6];
            let before = (state.tokens.clone(), state.active.clone());
            state.make(&facts, &layer, &puts, |rank| told[rank] = true);
            trial.start(&facts, &layer, &state, power);
            let then = trial.now(&facts, &state);
            assert!(close(said, then), "{said}, then {then}: {puts:?} with {options:?}");
            assert!(holds(&facts, &layer, &state), "{puts:?} with {options:?}");
            for rank in 0..6 {
                let same = before.0[rank] == state.tokens[rank] && before.1[rank] == state.active[rank];
                assert!(same || told[rank], "rank {rank} changed, and nobody was told");
            }
            made += 1;
        }
    }
    assert!(made > 400, "{made}");
}

/// Whether a rank is both relieved and burdened by a replica in place of another.
fn overlap(facts: &Facts, state: &State, put: Put) -> bool {
    let old = state.expert[put.place as usize];
    old != NONE
        && state.holders(facts, old).iter().any(|&place| state.has(facts, facts.rank_of(place), put.expert))
}

#[test]
fn planted_faults_are_seen() {
    let mut numbers = Numbers(9);
    let options = Options { groups: 6, nodes: NodeRule::Priced(1.0), ..Options::default() };
    let (facts, layer, state) = case(&options, &mut numbers);
    assert!(holds(&facts, &layer, &state));
    // A rank without some of its tokens, an active slot too many, a replica that moved without notice.
    let faults: [fn(&mut State); 3] =
        [|state| state.tokens[3] *= 0.99, |state| state.active[0] += 1, |state| state.expert.swap(0, 6)];
    for fault in faults {
        let mut spoilt = State::default();
        spoilt.expert.clone_from(&state.expert);
        spoilt.settle(&facts, &layer);
        fault(&mut spoilt);
        assert!(!holds(&facts, &layer, &spoilt));
    }
}
