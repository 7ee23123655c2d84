//! The `local` backend passes the suite, in fair and in foul weather.

use std::time::{Duration, Instant};

use eplb_comm::CommError;
use eplb_comm::conformance::{CHECKS, Options, Rank, Setup, run_all};
use eplb_comm::fault::{Faults, FaultyCommunicator};
use eplb_comm::host::HostMemory;
use eplb_comm::local::LocalGroup;
use eplb_core::RankId;

fn local(setup: &Setup, threads: usize, faults: impl Fn(usize) -> Faults) -> Result<Vec<Rank>, CommError> {
    let memories = (0..setup.slots.len())
        .map(|rank| {
            let (layout, slots) = (setup.layouts[rank].clone(), setup.slots[rank].clone());
            HostMemory::new(RankId::at(rank), layout, slots, setup.staging_bytes)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let group = LocalGroup::new(memories.clone(), threads)?;
    let wrap = |(rank, (communicator, memory))| {
        Rank::new(FaultyCommunicator::new(communicator, faults(rank)), memory)
    };
    Ok(group.into_iter().zip(memories).enumerate().map(wrap).collect())
}

#[test]
fn any_number_of_ranks_and_threads_passes() {
    for (ranks, threads) in [(2, 1), (3, 3), (5, 2)] {
        let options = Options { ranks, ..Options::default() };
        for check in CHECKS {
            let t = Instant::now();
            check.run(&mut |setup: &Setup| local(setup, threads, |_| Faults::default()), &options).unwrap();
            println!("{} {:?}", check.name, t.elapsed());
        }
    }
}

#[test]
fn delays_and_disorder_pass() {
    let options = Options::default();
    let faults = |_| Faults {
        seed: 5,
        delay: Some(Duration::ZERO..Duration::from_millis(2)),
        reorder: true,
        ..Faults::default()
    };
    run_all(&mut |setup: &Setup| local(setup, 2, faults), &options).unwrap();
}
