//! Waves over random pairs of placements, in small cases by hand, and in the shapes that are measured.

mod by_hand;
mod case;
mod executor;
mod ports;

use eplb_exchange::{ExchangePlan, Part};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use case::{Case, case};
use executor::check;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn waves_of_few_ranks_are_right(case in case(6)) {
        check(&case)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn waves_of_many_ranks_are_right(case in case(64)) {
        check(&case)?;
    }
}

/// Every map that a rank may run with between the drains of two waves stands among those that are prepared for it.
#[test]
fn the_maps_of_a_wave_are_all_that_come_before_the_next() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..40 {
        let case = case(4).new_tree(&mut runner).unwrap().current();
        let Case { topology, layout, old, new, loads, limits } = &case;
        let loads = loads.as_ref().map(|loads| loads.view());
        let Ok(plan) = ExchangePlan::new(old, new, topology, layout, loads, limits) else { continue };
        let mut map = plan.old().phy2log().to_owned();
        for wave in 0..plan.waves().len() {
            let ready = plan.maps_of(wave);
            let mut seen = Vec::new();
            Part::ALL.into_iter().for_each(|part| plan.apply_drains(&mut map, wave, part));
            seen.push(map.clone());
            let ahead = wave + 1 < plan.waves().len();
            if ahead {
                plan.apply_drains(&mut map, wave + 1, Part::Early);
                seen.push(map.clone());
            }
            eplb_exchange::plan::apply_commits(&mut map, &plan.waves()[wave]);
            seen.push(map.clone());
            if ahead {
                let mut late = map.clone();
                plan.apply_drains(&mut late, wave + 1, Part::Late);
                seen.push(late);
            }
            assert!(seen.iter().all(|map| ready.contains(map)), "wave {wave}");
            assert!(ready.iter().enumerate().all(|(at, map)| !ready[..at].contains(map)));
        }
        assert_eq!(&map, plan.target().phy2log());
    }
}
