//! Plans for other objectives, against every placement there is: up to 6 experts on 3 ranks.

use eplb_core::{LoadMatrix, Placement, Topology};
use eplb_plan::{CostModel, Dispatch, NodeRule, Options, Plan, Planner, Policy, Request};
use ndarray::Array2;
use proptest::prelude::*;

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
        let options = Options { policy, ..self.options.clone() };
        let request = Request { current, ..Request::new(&self.loads, &self.topology, &options) };
        Planner::new(1).unwrap().plan(&request).unwrap()
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
        let node = |rank: usize| topology.node_of(eplb_core::RankId::at(rank)).index();
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
            let rank = self.topology.rank_of(eplb_core::SlotId::at(slot));
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

fn case(which: usize) -> impl Strategy<Value = Case> {
    let load = prop_oneof![1 => Just(0.0), 5 => (0.0..3.0).prop_map(|power| 10f64.powf(power))];
    (prop::collection::vec(load, 4), 0.0..2.0, 0.0..3.0, any::<bool>()).prop_map(
        move |(row, price, active, fast)| {
            let mut row = row;
            row[0] += 1.0;
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let topology = Topology::uniform(2, 6).unwrap().with_nodes(2).unwrap();
            let options = match which {
                0 => Options { nodes: NodeRule::Priced(price), groups: 2, ..Options::default() },
                1 => Options { nodes: NodeRule::Strict, groups: 2, ..Options::default() },
                2 => Options {
                    cost: CostModel { per_expert: active * mean, per_token: 1.0 },
                    ..Options::default()
                },
                3 => Options { dispatch: Dispatch::Share, ..Options::default() },
                4 => Options { dispatch: Dispatch::Nearest, ..Options::default() },
                _ => Options { replicate_top: 1, ..Options::default() },
            };
            let topology =
                if fast && which != 4 { topology.with_speed(&[1.0, 2.0]).unwrap() } else { topology };
            Case {
                loads: LoadMatrix::from_sum(Array2::from_shape_vec((1, 4), row).unwrap()).unwrap(),
                topology,
                options,
            }
        },
    )
}

fn any_case() -> impl Strategy<Value = Case> {
    (0usize..6).prop_flat_map(case)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn no_plan_beats_every_placement_and_few_are_far_from_the_best(case in any_case()) {
        let plan = case.plan(Policy::Balanced, None);
        let row = plan.placement.layer(eplb_core::LayerId(0)).to_vec();
        prop_assert!(case.keeps(&row), "{row:?} breaks {:?}", case.options);
        let (found, least) = (worth(&plan, &case), case.least());
        prop_assert!(found >= least * (1.0 - 1e-9), "{found} is below {least}, the least of all: {row:?}");
        prop_assert!(found <= least * 1.25, "{found} is far above {least}: {row:?} {:?}", case.options);
    }
}
