//! The `local` backend passes the suite, in fair and in foul weather.

mod support;

use std::time::Duration;

use eplb_comm::conformance::{Options, Setup, run_all};
use eplb_comm::fault::Faults;

#[test]
fn any_number_of_ranks_and_threads_passes() {
    for (ranks, threads) in [(2, 1), (3, 3), (4, 2)] {
        let options = Options { ranks, ..Options::default() };
        let mut backend =
            |setup: &Setup| support::local(setup, threads, &mut Vec::new(), |_, _| Faults::default());
        run_all(&mut backend, &options).unwrap();
    }
}

#[test]
fn delays_and_disorder_pass() {
    let mut logs = Vec::new();
    let mut backend = |setup: &Setup| {
        support::local(setup, 2, &mut logs, |_, _| Faults {
            seed: 5,
            delay: Some(Duration::ZERO..Duration::from_millis(2)),
            reorder: true,
            ..Faults::default()
        })
    };
    run_all(&mut backend, &Options::default()).unwrap();
}
