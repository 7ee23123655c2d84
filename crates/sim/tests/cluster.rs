//! Seeded runs of the simulated cluster: 200 unless `EPLB_SIM_SEEDS` says how many.

use eplb_sim::cluster::{FaultKind, Plant, Scenario, Tally, run};

fn seeds() -> u64 {
    match std::env::var("EPLB_SIM_SEEDS") {
        Err(_) => 200,
        Ok(text) => text.parse().expect("EPLB_SIM_SEEDS is a number of seeds"),
    }
}

#[test]
fn no_order_of_events_breaks_a_promise() {
    let mut tally = Tally::default();
    for seed in 0..seeds() {
        match run(&Scenario::draw(seed)) {
            Ok(run) => tally.add(&run),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{tally:#?}");
    // The runs would prove nothing if nothing happened in them.
    assert!(tally.completed > 0 && tally.aborted > 0, "{tally:?}");
    assert!(tally.early > 0 && tally.broken > 0 && tally.late > 0, "{tally:?}");
    assert!(tally.commits > 0 && tally.copies > 0 && tally.steps > 0, "{tally:?}");
    for kind in [
        "nothing",
        "death",
        "stop",
        "transfer error",
        "transfer stall",
        "cancel",
        "other plan",
        "store lost",
        "commit fails",
    ] {
        assert!(tally.struck.keys().any(|(struck, _)| *struck == kind), "no run with {kind}: {tally:?}");
    }
}

#[test]
fn a_run_can_be_had_again() {
    for seed in 0..20 {
        let scenario = Scenario::draw(seed);
        assert_eq!(run(&scenario).unwrap(), run(&scenario).unwrap(), "seed {seed}");
    }
}

/// Without the fault that the plant needs, there is nothing to notice.
fn with_plant(seed: u64, plant: Plant) -> Scenario {
    let mut scenario = Scenario { plant: Some(plant), ..Scenario::draw(seed) };
    scenario.fault.kind = match plant {
        Plant::HashIgnored => FaultKind::OtherPlan,
        Plant::HaltIgnored => FaultKind::TransferStall,
        Plant::RecordOverwritten => scenario.fault.kind,
        Plant::CommitErrorIgnored | Plant::RefusalIgnored => FaultKind::CommitFails { hangs: false },
        _ => FaultKind::Nothing,
    };
    if matches!(
        plant,
        Plant::EarlyDrainSkipped
            | Plant::WrittenSourcesEarly
            | Plant::ReadSlotsEarly
            | Plant::OneHalf
            | Plant::HandedOverEarly
            | Plant::PartsSwapped
    ) {
        // The harm needs waves that overlap, and several of them.
        (scenario.overlap, scenario.wave_experts, scenario.layers) = (true, Some(1), 3);
        scenario.staging_experts = scenario.staging_experts.max(2);
    }
    if plant == Plant::AnnouncedFirst {
        // The store must have reason to say something else: ranks come to the agreed step before they hear of the decision.
        (scenario.step, scenario.note, scenario.margin, scenario.layers) = (100, 800, 10, 3);
        (scenario.pause, scenario.look) = (0, 20);
    }
    if plant == Plant::CommitFenceRemoved {
        // The harm comes in the time that a commit takes: notes must be faster, and waves many.
        (scenario.look, scenario.note, scenario.copy) = (20, 5, 3000);
        (scenario.staging_experts, scenario.layers) = (1, 3);
    }
    if plant == Plant::HaltIgnored {
        // The next exchange must run while the stalled copy of the one given up still comes to its end.
        (scenario.look, scenario.note, scenario.step, scenario.copy) = (50, 5, 200, 5_000);
        (scenario.exchanges, scenario.fault.at) = (3, 0);
    }
    scenario
}

#[test]
fn planted_faults_are_noticed() {
    for &plant in Plant::ALL {
        let found = (0..200).find_map(|seed| run(&with_plant(seed, plant)).err());
        let failure = found.unwrap_or_else(|| panic!("{plant:?} was never noticed"));
        println!("{plant:?}: seed {}: {}", failure.seed, failure.violation);
        // It is the plant that was noticed, and nothing else.
        let healthy = Scenario { plant: None, ..with_plant(failure.seed, plant) };
        assert!(run(&healthy).is_ok(), "seed {} fails without {plant:?}", failure.seed);
    }
}
