//! Plans for other objectives, against every placement there is: up to 6 experts on 3 ranks.

use eplb_core::{LayerId, LoadMatrix, Placement, RankId, SlotId, Topology};
use eplb_plan::{Budget, CostModel, Dispatch, NodeRule, Options, Plan, Planner, Policy, Request};
use ndarray::{Array2, array};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// What a plan is worth in its only layer: worst time over the mean time with one replica each, and price of the crossing.
fn worth(plan: &Plan, case: &Case) -> f64 {
    let row = case.loads.sum().row(0).to_owned();
    let active = row.iter().filter(|&&load| load > 0.0).count() as f64;
    let speed: f64 = case.topology.live_ranks().map(|rank| case.topology.speed(rank)).sum();
    let cost = case.options.cost;
    let mean = (cost.per_expert * active + cost.per_token * row.sum()) / speed;
    let price = match case.options.nodes {
        NodeRule::Priced(price) => price,
        _ => 0.0,
    };
    plan.predicted.worst[0] / mean + price * plan.predicted.crossing[0]
}

#[derive(Debug, Clone)]
struct Case {
    loads: LoadMatrix,
    topology: Topology,
    options: Options,
}

impl Case {
    fn plan(&self, policy: Policy, current: Option<&Placement>) -> Plan {
        self.plan_on(1, policy, current)
    }

    fn plan_on(&self, threads: usize, policy: Policy, current: Option<&Placement>) -> Plan {
        let options = Options { policy, ..self.options.clone() };
        let request = Request { current, ..Request::new(&self.loads, &self.topology, &options) };
        Planner::new(threads).unwrap().plan(&request).unwrap()
    }

    /// Any placement, judged as the planner judges its own: as the current placement of a plan that changes nothing.
    fn judge(&self, planner: &Planner, row: &[i32]) -> f64 {
        let experts = self.loads.experts();
        let placement =
            Placement::new(experts, Array2::from_shape_vec((1, row.len()), row.to_vec()).unwrap()).unwrap();
        let free = Options {
            policy: Policy::Split,
            nodes: NodeRule::Free,
            replicate_top: 0,
            ..self.options.clone()
        };
        let request = Request::new(&self.loads, &self.topology, &free).with_current(&placement);
        worth(&planner.plan(&request).unwrap(), self)
    }

    /// Whether a row keeps the options' rules.
    fn keeps(&self, row: &[i32]) -> bool {
        let (experts, topology) = (self.loads.experts(), &self.topology);
        let sets: Vec<&[i32]> = topology.all_ranks().map(|rank| &row[topology.slots_of(rank)]).collect();
        let on = |set: &[i32], expert: usize| set.contains(&(expert as i32));
        let loads = self.loads.sum().row(0).to_owned();
        let mut hottest: Vec<usize> = (0..experts).collect();
        hottest.sort_by(|&a, &b| loads[b].total_cmp(&loads[a]).then(a.cmp(&b)));
        let top = &hottest[..self.options.replicate_top];
        let size = experts / self.options.groups;
        let node = |rank: usize| topology.node_of(RankId::at(rank)).index();
        let nodes_of = |group: usize| {
            let mut nodes: Vec<usize> = (0..sets.len())
                .filter(|&rank| (group * size..(group + 1) * size).any(|e| on(sets[rank], e)))
                .map(node)
                .collect();
            nodes.dedup();
            nodes
        };
        let homes: Vec<Vec<usize>> = (0..self.options.groups).map(nodes_of).collect();
        let strict = self.options.nodes != NodeRule::Strict
            || (homes.iter().all(|nodes| nodes.len() == 1)
                && (0..topology.nodes()).all(|n| {
                    homes.iter().filter(|h| h[0] == n).count() == self.options.groups / topology.nodes()
                }));
        (0..experts).all(|expert| sets.iter().any(|set| on(set, expert)))
            && sets.iter().all(|set| set.iter().enumerate().all(|(i, e)| *e < 0 || !set[..i].contains(e)))
            && top.iter().all(|&expert| sets.iter().all(|set| on(set, expert)))
            && strict
    }

    /// The least that any placement is worth.
    fn least(&self) -> f64 {
        let planner = Planner::new(1).unwrap();
        let (slots, experts) = (self.topology.slots(), self.loads.experts());
        // Sets of each rank ascending, empty slots first: other orders are the same placement.
        let mut rows = vec![Vec::new()];
        for slot in 0..slots {
            let rank = self.topology.rank_of(SlotId::at(slot));
            let first = self.topology.slots_of(rank).start == slot;
            rows = rows
                .iter()
                .flat_map(|row: &Vec<i32>| {
                    let from = if first { -1 } else { row.last().map_or(-1, |&last| last.max(-1)) };
                    (from..experts as i32)
                        .filter(move |&e| first || e == -1 || e > from)
                        .map(|e| [&row[..], &[e]].concat())
                        .collect::<Vec<_>>()
                })
                .collect();
        }
        rows.iter()
            .filter(|row| self.keeps(row))
            .map(|row| self.judge(&planner, row))
            .fold(f64::INFINITY, f64::min)
    }
}

/// Ranks, nodes, experts and slots of cases that have few enough placements to try all of them.
const SHAPES: [(usize, usize, usize, usize); 4] = [(2, 2, 4, 6), (2, 2, 6, 6), (3, 3, 3, 6), (3, 1, 5, 6)];

fn case() -> impl Strategy<Value = Case> {
    let load = prop_oneof![1 => Just(0.0), 5 => (0.0..3.0).prop_map(|power| 10f64.powf(power))];
    let shape = prop::sample::select(SHAPES.to_vec());
    (shape, prop::collection::vec(load, 6), 0.0..2.0, 0.0..3.0, any::<bool>(), 0..6).prop_map(
        |((ranks, nodes, experts, slots), mut row, price, active, fast, which)| {
            row.truncate(experts);
            row[0] += 1.0;
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let topology = Topology::uniform(ranks, slots).unwrap().with_nodes(nodes).unwrap();
            let cost = CostModel { per_expert: active * mean, per_token: 1.0 };
            let groups = nodes;
            let options = match which {
                0 => Options { nodes: NodeRule::Priced(price), ..Options::default() },
                1 => Options { nodes: NodeRule::Strict, ..Options::default() },
                2 => Options { cost, ..Options::default() },
                3 => Options { dispatch: Dispatch::Share, ..Options::default() },
                4 => Options { dispatch: Dispatch::Nearest, ..Options::default() },
                // Slots for one expert on every rank and for the others once.
                _ => {
                    Options { replicate_top: usize::from(ranks + experts - 1 <= slots), ..Options::default() }
                }
            };
            let speed: Vec<f64> = (0..ranks).map(|rank| if fast && rank == 1 { 2.0 } else { 1.0 }).collect();
            Case {
                loads: LoadMatrix::from_sum(Array2::from_shape_vec((1, experts), row).unwrap()).unwrap(),
                topology: topology.with_speed(&speed).unwrap(),
                options: Options { groups, ..options },
            }
        },
    )
}

/// The same cases every time, so that what is asserted on all of them holds or does not.
#[test]
fn no_plan_beats_every_placement_and_few_are_far_from_the_best() {
    const CASES: usize = 240;
    let mut runner = TestRunner::deterministic();
    let (mut sum, mut most, mut best) = (0.0, 0.0f64, 0);
    for _ in 0..CASES {
        let case = case().new_tree(&mut runner).unwrap().current();
        let plan = case.plan(Policy::Balanced, None);
        let row = plan.placement.layer(LayerId(0)).to_vec();
        assert!(case.keeps(&row), "{row:?} breaks {:?}", case.options);
        let (found, least) = (worth(&plan, &case), case.least());
        assert!(found >= least * (1.0 - 1e-9), "{found} is below {least}, the least of all: {row:?}");
        sum += found / least;
        most = most.max(found / least);
        best += usize::from(found <= least * (1.0 + 1e-9));
    }
    println!("mean {:.4} of the best, most {most:.4}, best in {best} of {CASES}", sum / CASES as f64);
    assert!(sum < 1.01 * CASES as f64 && most < 1.35 && best * 4 > CASES * 3, "{sum} {most} {best}");
}

/// Larger requests, with dead ranks and something in place.
fn request() -> impl Strategy<Value = (Case, Placement)> {
    let rule = (0usize..6, 0.0..2.0, 0.0..100.0);
    (rule, prop::collection::vec(0.0..3.0, 2 * 16), any::<bool>(), any::<u64>()).prop_map(
        |((which, price, active), powers, dies, seed)| {
            let row = powers.into_iter().map(|power: f64| 10f64.powf(power)).collect();
            let loads = LoadMatrix::from_sum(Array2::from_shape_vec((2, 16), row).unwrap()).unwrap();
            let dead: &[RankId] = if dies { &[RankId(2)] } else { &[] };
            let topology = Topology::uniform(6, 30).unwrap().with_nodes(2).unwrap().with_dead(dead).unwrap();
            let start = Options { policy: Policy::Random, seed, ..Options::default() };
            let whole = Topology::uniform(6, 30).unwrap();
            let current = Planner::new(1).unwrap().place(&Request::new(&loads, &whole, &start)).unwrap();
            let cost = CostModel { per_expert: active, per_token: 1.0 };
            let options = match which {
                0 => Options { nodes: NodeRule::Priced(price), groups: 4, ..Options::default() },
                1 => Options { dispatch: Dispatch::Share, cost, ..Options::default() },
                2 => Options { cost, ..Options::default() },
                3 => Options { dispatch: Dispatch::Share, ..Options::default() },
                4 => Options { dispatch: Dispatch::Nearest, ..Options::default() },
                _ => Options { replicate_top: 1, ..Options::default() },
            };
            (Case { loads, topology, options }, current)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn plans_are_valid_and_keep_to_their_moves((case, current) in request(), most in 0usize..40) {
        let case = Case { options: Options { budget: Budget { moves: Some(most), ..Budget::default() }, ..case.options.clone() }, ..case };
        for policy in [Policy::Balanced, Policy::Incremental] {
            let plan = case.plan(policy, Some(&current));
            prop_assert_eq!((plan.duplicates, plan.left_out.len()), (0, 0));
            for rank in case.topology.all_ranks().filter(|&rank| !case.topology.is_alive(rank)) {
                let mut columns = case.topology.slots_of(rank).map(|slot| plan.placement.phy2log().column(slot).to_owned());
                prop_assert!(columns.all(|column| column.iter().all(|&e| e == -1)));
            }
            // The same on any number of threads, and once more.
            let again = case.plan_on(3, policy, Some(&current));
            prop_assert_eq!(&plan, &again);
            if policy == Policy::Balanced {
                continue;
            }
            // What is lost or belongs on every rank is put there whatever that costs.
            let must = if case.options.replicate_top > 0 || !plan.lost.is_empty() { 2 * 6 + plan.lost.len() * 2 } else { 0 };
            prop_assert!(plan.changes.unwrap().moves <= most.max(must), "{:?} of {most}", plan.changes);
            // Never worse than what is in place, unless something had to be put there.
            let before = plan.predicted_before.as_ref().unwrap();
            if must == 0 {
                for (layer, (new, old)) in plan.predicted.worst.iter().zip(&before.worst).enumerate() {
                    let price = match case.options.nodes { NodeRule::Priced(price) => price, _ => 0.0 };
                    let tokens = case.loads.sum().row(layer).sum();
                    let unit = tokens / case.topology.live_ranks().count() as f64;
                    let paid = price * (plan.predicted.crossing[layer] - before.crossing[layer]);
                    prop_assert!(new + paid * unit <= old * (1.0 + 1e-9), "layer {layer}: {new} after {old}, {paid}");
                }
            }
        }
    }
}

#[test]
fn the_judge_sees_planted_faults() {
    let row = array![[8.0, 4.0, 2.0, 2.0]];
    let topology = Topology::uniform(2, 6).unwrap().with_nodes(2).unwrap();
    let case = |options: Options| Case {
        loads: LoadMatrix::from_sum(row.clone()).unwrap(),
        topology: topology.clone(),
        options: Options { groups: 2, ..options },
    };
    let planner = Planner::new(1).unwrap();
    // Whole groups; expert 0 astray; expert 0 on one rank alone.
    let (whole, astray) = ([0, 1, -1, 2, 3, -1], [0, 1, 2, 3, 0, -1]);
    let strict = case(Options { nodes: NodeRule::Strict, ..Options::default() });
    assert!(strict.keeps(&whole) && !strict.keeps(&astray));
    let top = case(Options { replicate_top: 1, ..Options::default() });
    assert!(top.keeps(&astray) && !top.keeps(&whole));
    assert!(!top.keeps(&[0, 1, 2, 0, 0, 3]) && !top.keeps(&[0, 1, -1, 0, 3, -1]));
    // Half of expert 0's tokens and all of 2's are served away from home, half of these for the other node: 3 of 16.
    let free = case(Options::default());
    let priced = case(Options { nodes: NodeRule::Priced(1.0), ..Options::default() });
    let (plain, price) = (free.judge(&planner, &astray), priced.judge(&planner, &astray));
    assert!((price - plain - 3.0 / 16.0).abs() < 1e-12, "{price} {plain}");
    assert_eq!(free.judge(&planner, &whole), priced.judge(&planner, &whole));
    // 8 / 2 + 4 + 2 = 10 on rank 0 of a mean of 8; split, 2 of expert 0 go there; nearest, half.
    assert_eq!(plain, 10.0 / 8.0);
    let share = case(Options { dispatch: Dispatch::Share, ..Options::default() });
    assert!((share.judge(&planner, &astray) - 1.0).abs() < 1e-9);
    let nearest = case(Options { dispatch: Dispatch::Nearest, ..Options::default() });
    assert_eq!(nearest.judge(&planner, &astray), 10.0 / 8.0);
    // Three active slots of 2 each on rank 0 beside 10 tokens; with one replica each, 4 * 2 + 16 on two ranks.
    let cost = CostModel { per_expert: 2.0, per_token: 1.0 };
    assert_eq!(case(Options { cost, ..Options::default() }).judge(&planner, &astray), 16.0 / 12.0);
}

#[test]
fn nearest_counts_where_tokens_come_from() {
    // Two nodes of two ranks. Expert 0 on ranks 0, 1 and 2: a quarter each from their own rank, and rank 3's quarter goes to
    // rank 2, its neighbour.
    let row = array![[8.0, 0.0, 0.0, 4.0]];
    let topology = Topology::uniform(4, 8).unwrap().with_nodes(2).unwrap();
    let current = Placement::new(4, array![[0, 1, 0, 2, 0, 3, -1, -1]]).unwrap();
    let options = Options { policy: Policy::Split, dispatch: Dispatch::Nearest, ..Options::default() };
    let loads = LoadMatrix::from_sum(row).unwrap();
    let request = Request::new(&loads, &topology, &options).with_current(&current);
    let plan = Planner::new(1).unwrap().plan(&request).unwrap();
    // Rank 2: 4 of expert 0 and all 4 of expert 3.
    assert_eq!((plan.predicted.worst[0], plan.predicted.mean[0]), (8.0, 3.0));
    // Expert 3 alone has tokens from the other node, at its group's home or not at all.
    assert_eq!(plan.predicted.crossing[0], 0.0);
}

#[test]
fn the_price_buys_balance() {
    // Two nodes; group 0 has three quarters of the tokens.
    let loads = array![[30.0, 20.0, 15.0, 10.0, 10.0, 8.0, 4.0, 3.0]];
    let topology = Topology::uniform(4, 12).unwrap().with_nodes(2).unwrap();
    let plan = |nodes| {
        let options = Options { nodes, groups: 2, ..Options::default() };
        let loads = LoadMatrix::from_sum(loads.clone()).unwrap();
        Planner::new(1).unwrap().plan(&Request::new(&loads, &topology, &options)).unwrap()
    };
    let strict = plan(NodeRule::Strict);
    let bound = strict.strict_bound.as_ref().unwrap().mean;
    assert!((bound - 50.0 / 75.0).abs() < 1e-9, "{bound}");
    assert!(strict.after.mean <= bound + 1e-9 && strict.after.mean > 0.9 * bound);
    assert_eq!(strict.predicted.crossing, [0.0]);
    let (dear, cheap) = (plan(NodeRule::Priced(10.0)), plan(NodeRule::Priced(0.1)));
    assert!(dear.predicted.crossing[0] <= cheap.predicted.crossing[0]);
    assert!(cheap.after.mean > 0.9 && cheap.predicted.crossing[0] > 0.0, "{cheap:?}");
    assert!(dear.after.mean <= bound + 1e-9, "at such a price nothing crosses");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let loads = LoadMatrix::from_sum(Array2::ones((1, 8))).unwrap();
    let current = Placement::round_robin(1, 8, 12).unwrap();
    let topology = Topology::uniform(4, 12).unwrap().with_nodes(2).unwrap();
    let says = |options: Options, parts: &[&str]| {
        let request = Request::new(&loads, &topology, &options).with_current(&current);
        let error = Planner::new(1).unwrap().plan(&request).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    };
    let base = Options::default;
    says(Options { nodes: NodeRule::Strict, groups: 1, ..base() }, &["groups (1)", "nodes (2)", "price"]);
    says(Options { nodes: NodeRule::Strict, groups: 3, ..base() }, &["experts (8)", "groups (3)"]);
    says(
        Options { nodes: NodeRule::Strict, policy: Policy::Incremental, ..base() },
        &["incremental", "strict"],
    );
    let budget = Budget { moves_per_rank: Some(2), ..Budget::default() };
    let per_rank = Options { policy: Policy::Incremental, budget, dispatch: Dispatch::Share, ..base() };
    says(per_rank, &["incremental", "per rank", "moves of all layers"]);
    says(Options { nodes: NodeRule::Priced(-1.0), ..base() }, &["nodes", "-1"]);
    says(
        Options { nodes: NodeRule::Priced(1.0), policy: Policy::Deepseek, ..base() },
        &["deepseek", "node rules"],
    );
    says(Options { replicate_top: 1, policy: Policy::Static, ..base() }, &["static", "replicate_top"]);
    says(Options { replicate_top: 9, ..base() }, &["replicate_top is 9", "8 experts"]);
    says(Options { replicate_top: 4, ..base() }, &["rank 0 owns 3 slots"]);
    says(Options { replicate_top: 2, ..base() }, &["leaves 4 slots", "other 6 experts", "2 more slots"]);
    says(
        Options { replicate_top: 1, max_replicas: Some(3), ..base() },
        &["4 live ranks", "max_replicas is 3"],
    );
    let strict = Options { nodes: NodeRule::Strict, groups: 2, replicate_top: 1, ..base() };
    says(strict, &["replicate_top", "strict"]);
    for (cost, name) in [((f64::NAN, 1.0), "per_expert"), ((0.0, -1.0), "per_token"), ((0.0, 0.0), "cost")] {
        let cost = CostModel { per_expert: cost.0, per_token: cost.1 };
        says(Options { cost, ..base() }, &[name]);
    }
    assert!("evenly".parse::<Dispatch>().unwrap_err().to_string().contains("nearest"));
    let fresh = Options { policy: Policy::Incremental, dispatch: Dispatch::Nearest, ..base() };
    let error =
        Planner::new(1).unwrap().plan(&Request::new(&loads, &topology, &fresh)).unwrap_err().to_string();
    assert!(error.contains("--current"), "{error}");
}
