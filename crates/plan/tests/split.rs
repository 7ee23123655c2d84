//! Splits against a general linear program solver, against their own proofs, and against what shares must be.

use eplb_core::bound::layer_bound;
use eplb_core::metrics::{self, rank_loads};
use eplb_core::{LayerId, LoadMatrix, Placement, RankId, Share, Topology};
use eplb_plan::split::{SplitScratch, Splitter, cut_bound, split};
use microlp::{ComparisonOp, OptimizationDirection, Problem};
use ndarray::{Array2, ArrayView1};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// One layer: loads, placement and ranks.
#[derive(Debug, Clone)]
struct Case {
    row: Vec<f64>,
    placement: Placement,
    topology: Topology,
}

impl Case {
    fn phy2log(&self) -> Vec<i32> {
        self.placement.layer(LayerId(0)).to_vec()
    }

    /// Share, load of the busiest rank, and the ranks that prove it.
    fn split(&self, scratch: &mut SplitScratch) -> (Vec<f64>, f64, Vec<RankId>) {
        let mut share = vec![f64::NAN; self.placement.slots()];
        let splitter = Splitter::new(&self.topology);
        let busiest = splitter.split_layer(&self.row, &self.phy2log(), &mut share, scratch);
        (share, busiest, scratch.tight_ranks().to_vec())
    }

    /// The same layer with all loads multiplied.
    fn scaled(&self, factor: f64) -> Self {
        Self { row: self.row.iter().map(|w| w * factor).collect(), ..self.clone() }
    }

    /// The optimum according to the linear program, tokens per unit of speed; `None` if its solver loses its way in
    /// rounding. Loads far below the largest are left out: they are lost in its tolerance, and make that more likely.
    fn linear_program(&self) -> Option<f64> {
        let unit = self.row.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let mut problem = Problem::new(OptimizationDirection::Minimize);
        let busiest = problem.add_var(1.0, (0.0, f64::INFINITY));
        let mut on_rank: Vec<Vec<_>> = vec![vec![]; self.topology.ranks()];
        for (expert, load) in self.row.iter().enumerate().filter(|&(_, &load)| load > 1e-9 * unit) {
            let slots = self.placement.replicas(LayerId(0), eplb_core::ExpertId::at(expert));
            let mut parts = Vec::new();
            for &slot in slots.iter().filter(|&&slot| self.topology.is_alive(self.topology.rank_of(slot))) {
                let part = problem.add_var(0.0, (0.0, 1.0));
                parts.push((part, 1.0));
                on_rank[self.topology.rank_of(slot).index()].push((part, load / unit));
            }
            if !parts.is_empty() {
                problem.add_constraint(&parts, ComparisonOp::Eq, 1.0);
            }
        }
        for rank in self.topology.live_ranks() {
            let mut terms = std::mem::take(&mut on_rank[rank.index()]);
            terms.push((busiest, -self.topology.speed(rank)));
            problem.add_constraint(&terms, ComparisonOp::Le, 0.0);
        }
        match problem.solve() {
            Ok(solution) => Some(solution.objective() * unit),
            Err(microlp::Error::InternalError(_)) => None,
            Err(error) => panic!("every case has a split: {error}"),
        }
    }

    /// The optimum by going through all sets of ranks: the largest load, per unit of speed, of the experts that have no
    /// replica outside a set (maximum flow, minimum cut). Independent of the solver, its proof and the linear program.
    fn least_of_all_cuts(&self) -> f64 {
        let ranks = self.topology.ranks();
        let live = |rank: usize| self.topology.is_alive(RankId::at(rank));
        let mut on = vec![0u32; self.row.len()];
        for (slot, &entry) in self.phy2log().iter().enumerate() {
            let rank = self.topology.rank_of(eplb_core::SlotId::at(slot)).index();
            if let Some(on) = on.get_mut(entry as usize).filter(|_| live(rank)) {
                *on |= 1 << rank;
            }
        }
        let inside = |set: u32| {
            let kept = self.row.iter().zip(&on).filter(|&(_, &on)| on != 0 && on & !set == 0);
            let ranks = (0..ranks).filter(|&rank| live(rank) && set >> rank & 1 == 1);
            let speed: f64 = ranks.map(|rank| self.topology.speed(RankId::at(rank))).sum();
            let tokens: f64 = kept.map(|(load, _)| load).sum();
            if tokens > 0.0 { tokens / speed } else { 0.0 }
        };
        (1..1u32 << ranks).map(inside).fold(0.0, f64::max)
    }

    /// Checks a split against everything but the linear program.
    fn check(&self, share: &[f64], busiest: f64, tight: &[RankId]) {
        let matrix = Array2::from_shape_vec((1, share.len()), share.to_vec()).unwrap();
        let share = Share::new(matrix, &self.placement).unwrap();
        let row = ArrayView1::from(&self.row);
        let loads = rank_loads(row, &self.placement, LayerId(0), Some(&share), &self.topology);
        let highest = loads.iter().copied().fold(0.0, f64::max);
        assert!((highest - busiest).abs() <= 1e-9 * busiest, "says {busiest}, is {highest}");
        let proved = cut_bound(&self.row, &self.phy2log(), &self.topology, tight);
        assert!((proved - busiest).abs() <= 1e-9 * busiest, "says {busiest}, proves {proved}");
        let even = rank_loads(row, &self.placement, LayerId(0), None, &self.topology);
        if self.topology.all_alive() {
            let even = even.iter().copied().fold(0.0, f64::max);
            assert!(busiest <= even * (1.0 + 1e-9), "worse than even: {busiest} above {even}");
        }
        if self.placement.missing().next().is_none()
            && self.topology.all_alive()
            && let Some(bound) = layer_bound(row, &self.topology)
        {
            let reached = metrics::layer_balancedness(&loads, &self.topology).unwrap();
            assert!(reached <= bound.balancedness + 1e-9, "{reached} above bound {bound:?}");
        }
        self.check_experts(&share, &loads);
    }

    /// No expert has tokens on a rank above another that holds it; copies on one rank get equal parts.
    fn check_experts(&self, share: &Share, loads: &[f64]) {
        let share = share.layer(LayerId(0));
        let scale = loads.iter().copied().fold(0.0, f64::max);
        for (expert, &load) in self.row.iter().enumerate() {
            let slots = self.placement.replicas(LayerId(0), eplb_core::ExpertId::at(expert));
            let rank_of = |slot: &eplb_core::SlotId| self.topology.rank_of(*slot);
            let live: Vec<_> = slots.iter().filter(|s| self.topology.is_alive(rank_of(s))).collect();
            let lowest = live.iter().map(|s| loads[rank_of(s).index()]).fold(f64::INFINITY, f64::min);
            for slot in &live {
                let part = share[slot.index()];
                let level = loads[rank_of(slot).index()];
                if part * load > 1e-9 * scale {
                    assert!(level <= lowest + 1e-9 * scale, "expert {expert} on {slot}: {level} > {lowest}");
                }
                if load == 0.0 {
                    assert_eq!(part, 1.0 / live.len() as f64, "idle expert {expert}");
                }
                for other in live.iter().filter(|other| rank_of(other) == rank_of(slot)) {
                    assert_eq!(part, share[other.index()], "copies of expert {expert} on one rank");
                }
            }
            for slot in slots.iter().filter(|slot| !live.is_empty() && !self.topology.is_alive(rank_of(slot)))
            {
                assert_eq!(share[slot.index()], 0.0, "dead {slot}");
            }
        }
    }
}

/// Layers of up to 7 ranks with what can be odd in them: uneven slot counts, empty slots, copies on one rank, speeds,
/// dead ranks, experts without load, without slots, or with all the load.
fn cases() -> impl Strategy<Value = Case> {
    let load = prop_oneof![
        2 => Just(0.0),
        3 => (1u32..6).prop_map(f64::from),
        4 => 0.0..100.0,
        1 => (-12.0..9.0).prop_map(|power| 10f64.powf(power)),
    ];
    let speed = prop_oneof![3 => Just(1.0), 1 => Just(0.25), 2 => 0.1..8.0];
    let shape = (1usize..=7, 1usize..=12);
    shape.prop_flat_map(move |(ranks, experts)| {
        let slots_per_rank = prop::collection::vec(1usize..=5, ranks);
        let row = prop::collection::vec(load.clone(), experts);
        let speeds = prop_oneof![Just(vec![1.0; ranks]), prop::collection::vec(speed.clone(), ranks)];
        let dead =
            prop_oneof![3 => Just(vec![false; ranks]), 1 => prop::collection::vec(any::<bool>(), ranks)];
        let entries = prop::collection::vec(-1..experts as i32, 5 * ranks);
        (slots_per_rank, row, speeds, dead, entries).prop_map(
            move |(slots_per_rank, row, speeds, dead, entries)| {
                let mut topology = Topology::new(&slots_per_rank).unwrap().with_speed(&speeds).unwrap();
                let dead: Vec<RankId> = (1..ranks).filter(|&r| dead[r]).map(RankId::at).collect();
                topology = topology.with_dead(&dead).unwrap();
                let phy2log = Array2::from_shape_fn((1, topology.slots()), |(_, p)| entries[p]);
                Case { placement: Placement::with_missing(row.len(), phy2log).unwrap(), row, topology }
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn splits_are_optimal_valid_and_proved(case in cases()) {
        let (share, busiest, tight) = case.split(&mut SplitScratch::default());
        case.check(&share, busiest, &tight);
        let least = case.least_of_all_cuts();
        prop_assert!((busiest - least).abs() <= 1e-9 * least, "{busiest} but cuts say {least}");
    }

    #[test]
    fn only_ratios_of_loads_matter(case in cases(), power in -300..250i32, factor in 1.0..10.0) {
        let (share, busiest, tight) = case.split(&mut SplitScratch::default());
        let scratch = &mut SplitScratch::default();
        let scaled = case.scaled(2f64.powi(power)).split(scratch);
        prop_assert_eq!((&share, &tight), (&scaled.0, &scaled.2), "powers of two change no bit");
        let scaled = case.scaled(factor);
        let (share, scaled_busiest, tight) = scaled.split(scratch);
        scaled.check(&share, scaled_busiest, &tight);
        prop_assert!((scaled_busiest - busiest * factor).abs() <= 1e-9 * scaled_busiest);
    }

    #[test]
    fn nothing_is_left_over_in_the_scratch(cases in prop::collection::vec(cases(), 1..5)) {
        let scratch = &mut SplitScratch::default();
        for case in &cases {
            prop_assert_eq!(case.split(scratch), case.split(&mut SplitScratch::default()));
        }
    }
}

/// How many cases of [`cases`] the linear program is asked. Its solver gives up none of these, which are the same every time; what it
/// may give up of others is proved by cuts.
const ASKED: usize = 1500;

#[test]
fn the_linear_program_agrees_and_never_gives_up() {
    let (mut runner, mut given_up) = (TestRunner::deterministic(), 0);
    for _ in 0..ASKED {
        let case = cases().new_tree(&mut runner).unwrap().current();
        let (_, busiest, _) = case.split(&mut SplitScratch::default());
        let largest = case.row.iter().copied().fold(0.0, f64::max);
        match case.linear_program() {
            Some(optimum) => {
                assert!((busiest - optimum).abs() <= 1e-7 * largest, "{busiest}, not {optimum}: {case:?}");
            }
            None => given_up += 1,
        }
    }
    assert_eq!(given_up, 0, "what the linear program gives up is not checked by it");
}

#[test]
fn a_split_that_is_not_the_best_would_be_seen() {
    let case = realistic(12, 4, 16, 0.8);
    let (_, busiest, _) = case.split(&mut SplitScratch::default());
    assert!((case.least_of_all_cuts() - busiest).abs() <= 1e-9 * busiest);
    // Planted: the even split, and a replica that is left out.
    let row = ArrayView1::from(&case.row);
    let even = rank_loads(row, &case.placement, LayerId(0), None, &case.topology);
    assert!(even.iter().copied().fold(0.0, f64::max) > 1.01 * case.least_of_all_cuts());
    let mut fewer = case.clone();
    let mut phy2log = case.placement.phy2log().to_owned();
    let spare = case.placement.replicas(LayerId(0), eplb_core::ExpertId(0))[0];
    phy2log[(0, spare.index())] = -1;
    fewer.placement = Placement::new(12, phy2log).unwrap();
    assert!(fewer.split(&mut SplitScratch::default()).1 > 1.001 * case.least_of_all_cuts());
}

/// A layer as servers have them: Zipf loads, replicas by load per replica, ranks filled in turn.
fn realistic(experts: usize, ranks: usize, slots: usize, drift: f64) -> Case {
    let planned: Vec<f64> = (0..experts).map(|e| 1e5 / ((e * 97 % experts) as f64 + 1.0).powf(0.9)).collect();
    let mut count = vec![1usize; experts];
    let mut physical: Vec<i32> = (0..experts as i32).collect();
    for _ in experts..slots {
        let per_replica = |e: usize| planned[e] / count[e] as f64;
        let most = (0..experts).max_by(|&a, &b| per_replica(a).total_cmp(&per_replica(b))).unwrap();
        count[most] += 1;
        physical.push(most as i32);
    }
    let per_replica = |e: i32| planned[e as usize] / count[e as usize] as f64;
    physical.sort_by(|&a, &b| per_replica(b).total_cmp(&per_replica(a)).then(a.cmp(&b)));
    let mut phy2log = Array2::from_elem((1, slots), -1);
    for (i, &expert) in physical.iter().enumerate() {
        let turn = i / ranks;
        let rank = if turn.is_multiple_of(2) { i % ranks } else { ranks - 1 - i % ranks };
        phy2log[(0, rank * (slots / ranks) + turn)] = expert;
    }
    let row = (0..experts).map(|e| planned[e] * (drift * (e as f64 * 1.7).sin()).exp()).collect();
    Case {
        row,
        placement: Placement::new(experts, phy2log).unwrap(),
        topology: Topology::uniform(ranks, slots).unwrap(),
    }
}

#[test]
fn layers_of_real_size_match_the_linear_program() {
    for (experts, ranks, slots) in [(256, 32, 288), (256, 32, 320), (384, 64, 448), (128, 16, 160)] {
        for drift in [0.0, 0.3, 0.8] {
            let case = realistic(experts, ranks, slots, drift);
            let (share, busiest, tight) = case.split(&mut SplitScratch::default());
            case.check(&share, busiest, &tight);
            let optimum = case.linear_program().expect("no tiny loads here");
            assert!((busiest - optimum).abs() <= 1e-9 * optimum, "{busiest} {optimum}");
        }
    }
}

#[test]
fn one_expert_with_all_the_load_is_spread_by_speed() {
    let topology = Topology::uniform(3, 6).unwrap().with_speed(&[1.0, 2.0, 5.0]).unwrap();
    let placement = Placement::new(4, ndarray::array![[0, 1, 0, 2, 0, 3]]).unwrap();
    let case = Case { row: vec![16.0, 0.0, 0.0, 0.0], placement, topology };
    let (share, busiest, tight) = case.split(&mut SplitScratch::default());
    assert!((busiest - 2.0).abs() < 1e-12);
    assert_eq!(tight, [RankId(0), RankId(1), RankId(2)]);
    for (slot, (share, expected)) in share.iter().zip([0.125, 1.0, 0.25, 1.0, 0.625, 1.0]).enumerate() {
        assert!((share - expected).abs() < 1e-12, "slot {slot}: {share}, not {expected}");
    }
}

#[test]
fn the_rest_is_evened_out_once_the_busiest_rank_cannot_be_helped() {
    // Rank 0 has 10 that nobody can take. Expert 1 is on ranks 1 and 2, expert 2 on 2 and 3: 2 each.
    let topology = Topology::uniform(4, 8).unwrap();
    let placement = Placement::new(4, ndarray::array![[0, -1, 1, -1, 1, 2, 2, 3]]).unwrap();
    let case = Case { row: vec![10.0, 3.0, 2.0, 1.0], placement, topology };
    let (share, busiest, tight) = case.split(&mut SplitScratch::default());
    assert_eq!((busiest, tight), (10.0, vec![RankId(0)]));
    let matrix = Array2::from_shape_vec((1, 8), share).unwrap();
    let share = Share::new(matrix, &case.placement).unwrap();
    let row = ArrayView1::from(&case.row);
    let loads = rank_loads(row, &case.placement, LayerId(0), Some(&share), &case.topology);
    for (load, expected) in loads.iter().zip([10.0, 2.0, 2.0, 2.0]) {
        assert!((load - expected).abs() < 1e-12, "{loads:?}");
    }
}

#[test]
fn idle_layers_are_split_evenly() {
    let topology = Topology::uniform(2, 6).unwrap();
    let placement = Placement::new(3, ndarray::array![[0, 1, 2, 0, 0, -1], [0, 1, 2, 2, 1, 0]]).unwrap();
    let loads = LoadMatrix::from_sum(ndarray::array![[0.0, 0.0, 0.0], [1.0, 4.0, 0.0]]).unwrap();
    let share = split(loads.sum().view(), &placement, &topology).unwrap();
    assert_eq!(share.layer(LayerId(0)), Share::even(&placement).layer(LayerId(0)));
    assert_eq!(share.layer(LayerId(1))[2], 0.5);
    assert!(split(loads.sum().view(), &placement, &Topology::uniform(2, 4).unwrap()).is_err());
}

#[test]
fn experts_on_dead_ranks_alone_keep_valid_shares() {
    let topology = Topology::uniform(3, 6).unwrap().with_dead(&[RankId(1)]).unwrap();
    let placement = Placement::new(3, ndarray::array![[0, 1, 2, 2, 0, 1]]).unwrap();
    let case = Case { row: vec![4.0, 2.0, 9.0], placement, topology };
    let (share, busiest, tight) = case.split(&mut SplitScratch::default());
    assert_eq!((busiest, share[2], share[3]), (3.0, 0.5, 0.5));
    case.check(&share, busiest, &tight);
}

#[test]
#[should_panic(expected = "one entry per slot")]
fn another_number_of_slots_is_refused() {
    let splitter = Splitter::new(&Topology::uniform(2, 4).unwrap());
    splitter.split_layer(&[1.0, 1.0], &[0, 1, 0], &mut [0.0; 3], &mut SplitScratch::default());
}
