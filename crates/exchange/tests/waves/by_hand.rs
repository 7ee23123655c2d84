//! Small exchanges whose waves are known.

use eplb_core::{ExpertId, LayerId, ModelLayout, Placement, RankId, SlotId, TensorLayout, Topology};
use eplb_exchange::{ExchangeError, ExchangePlan, Limits};

fn layout(layers: usize, bytes: usize) -> ModelLayout {
    ModelLayout::new(vec![vec![TensorLayout::contiguous("w", bytes)]; layers]).unwrap()
}

#[test]
fn a_swap_of_only_copies_costs_one_staged_expert_per_rank() {
    let topology = Topology::uniform(2, 4).unwrap();
    let (old, new) = ([[0, 1, 2, 3]], [[0, 3, 2, 1]]);
    let place = |map: [[i32; 4]; 1]| Placement::new(4, ndarray::arr2(&map)).unwrap();
    let layout = layout(1, 32);
    let mut limits = Limits::new(&layout, &topology);
    limits.staging_bytes = 32;
    let plan = ExchangePlan::new(&place(old), &place(new), &topology, &layout, None, &limits).unwrap();
    assert_eq!(plan.waves().len(), 1);
    assert_eq!((plan.totals().staged, plan.totals().in_place, plan.totals().staging_peak), (2, 0, 32));
    assert!(plan.waves()[0].needs_agreed_step() && plan.waves()[0].drains.is_empty());
    limits.staging_bytes = 31;
    assert!(matches!(
        ExchangePlan::new(&place(old), &place(new), &topology, &layout, None, &limits),
        Err(ExchangeError::StagingTooSmall { needed: 32, budget: 31, .. })
    ));
}

#[test]
fn a_replica_is_drained_and_filled_without_staging() {
    let topology = Topology::uniform(2, 4).unwrap();
    let place = |map: [[i32; 4]; 1]| Placement::new(3, ndarray::arr2(&map)).unwrap();
    let layout = layout(1, 32);
    let limits = Limits { staging_bytes: 0, ..Limits::new(&layout, &topology) };
    let (old, new) = (place([[0, 1, 0, 2]]), place([[0, 1, 1, 2]]));
    let plan = ExchangePlan::new(&old, &new, &topology, &layout, None, &limits).unwrap();
    let [wave] = plan.waves() else { panic!("{:?}", plan.waves()) };
    assert_eq!(wave.drains, [(LayerId(0), SlotId(2))]);
    assert!(!wave.needs_agreed_step());
    assert_eq!((plan.totals().in_place, plan.totals().staging_peak), (1, 0));
}

#[test]
fn missing_experts_are_refused_with_their_names() {
    let topology = Topology::uniform(3, 3).unwrap();
    let old = Placement::new(3, ndarray::arr2(&[[0, 1, 2]])).unwrap();
    let dead = topology.with_dead(&[RankId(1)]).unwrap();
    let new = Placement::with_missing(3, ndarray::arr2(&[[0, -1, 1]])).unwrap();
    let layout = layout(1, 8);
    let limits = Limits::new(&layout, &dead);
    let plan = ExchangePlan::new(&old, &new, &dead, &layout, None, &limits);
    assert_eq!(plan, Err(ExchangeError::MissingExperts { experts: vec![(LayerId(0), ExpertId(1))] }));
    let on_dead = Placement::with_missing(3, ndarray::arr2(&[[0, 2, 2]])).unwrap();
    let plan = ExchangePlan::new(&old, &on_dead, &dead, &layout, None, &limits);
    assert!(matches!(plan, Err(ExchangeError::DeadRank { rank: RankId(1), slot: SlotId(1), .. })));
    // Leaving the lost expert out is allowed: the survivors go on.
    let left_out = Placement::with_missing(3, ndarray::arr2(&[[2, -1, 0]])).unwrap();
    let plan = ExchangePlan::new(&old, &left_out, &dead, &layout, None, &limits).unwrap();
    assert_eq!(plan.target().phy2log(), left_out.phy2log());
}

#[test]
fn sources_prefer_the_rank_then_the_node_then_the_idle_port() {
    // Four ranks on two nodes; expert 0 is held by ranks 0 and 2, and ranks 1 and 3 want it.
    let topology = Topology::uniform(4, 8).unwrap().with_nodes(2).unwrap();
    let old = Placement::new(4, ndarray::arr2(&[[0, 1, 2, -1, 0, 3, 1, -1]])).unwrap();
    let new = Placement::new(4, ndarray::arr2(&[[0, 1, 2, 0, 0, 3, 1, 0]])).unwrap();
    let layout = layout(1, 8);
    let plan =
        ExchangePlan::new(&old, &new, &topology, &layout, None, &Limits::new(&layout, &topology)).unwrap();
    let sources: Vec<_> = plan.waves()[0].transfers.iter().map(|t| (t.dest.0, t.source.0)).collect();
    assert_eq!(sources, [(1, 0), (3, 2)]);
    // On one node, two receivers are served by two senders.
    let flat = Topology::uniform(4, 8).unwrap();
    let plan = ExchangePlan::new(&old, &new, &flat, &layout, None, &Limits::new(&layout, &flat)).unwrap();
    let mut senders: Vec<_> = plan.waves()[0].transfers.iter().map(|t| t.source.0).collect();
    senders.sort_unstable();
    assert_eq!(senders, [0, 2]);
}
