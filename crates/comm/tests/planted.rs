//! Every check of the conformance suite finds something: for each, a fault that it must catch.

mod support;

use std::sync::Arc;
use std::time::Duration;

use eplb_comm::conformance::{CHECKS, Options, Setup};
use eplb_comm::fault::{Faults, Planted, Strike};
use eplb_comm::host::HostMemory;

/// A fault on one rank, the check that must catch it, and words of what it must say.
struct Case {
    check: &'static str,
    rank: usize,
    faults: fn(&Arc<HostMemory>) -> Faults,
    struck: &'static str,
    says: &'static str,
}

fn planted(planted: Planted) -> Faults {
    Faults { planted: vec![(Strike::Always, planted)], ..Faults::default() }
}

/// Patience of checks that must see it run out, after waves that must not.
const SHORT: Duration = Duration::from_secs(3);

/// How long a check watches for bytes that must not move: long enough for a copy that a slow machine keeps waiting.
const WATCH: Duration = Duration::from_secs(1);

/// So late that a slow machine is not taken for a caught fault, nor a caught fault for a slow machine.
const LATE: Duration = Duration::from_secs(60);

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { check: "bytes", rank: 1, faults: |_| planted(Planted::DropTransfer { nth: 3 }),
        struck: "drop transfer", says: "must hold" },
    Case { check: "bytes", rank: 1, faults: |_| planted(Planted::Stray { nth: 0, slot: 7 }),
        struck: "stray", says: "layer 0 slot 7 must hold expert 7" },
    Case { check: "bytes", rank: 2, faults: |memory| planted(Planted::SkipTensor { nth: 1, tensor: 2, memory: memory.clone() }),
        struck: "skip tensor", says: "of 64 bytes of tensor 2 are others" },
    Case { check: "bytes", rank: 0, faults: |memory| planted(Planted::Panic { nth: 2, memory: memory.clone() }),
        struck: "panic", says: "panicked: " },
    Case { check: "bytes", rank: 1, faults: |_| planted(Planted::DoneEarly { late: LATE }),
        struck: "done early", says: "must hold" },
    Case { check: "bytes", rank: 1, faults: |_| Faults { stall: Strike::Wave(1), ..Faults::default() },
        struck: "stall", says: "not done after" },
    Case { check: "bytes", rank: 1, faults: |_| Faults { fail: Strike::Wave(0), ..Faults::default() },
        struck: "fail", says: "a fault was injected into wave 0" },
    Case { check: "alone", rank: 0, faults: |_| planted(Planted::DropTransfer { nth: 1 }),
        struck: "drop transfer", says: "must hold" },
    Case { check: "carried", rank: 2, faults: |_| planted(Planted::Miscounted),
        struck: "miscounted", says: "rank 2 counts" },
    Case { check: "carried", rank: 0, faults: |_| planted(Planted::DropTransfer { nth: 0 }),
        struck: "drop transfer", says: "must hold" },
    Case { check: "in flight", rank: 1, faults: |_| planted(Planted::AfterIgnored),
        struck: "after ignored", says: "must hold" },
    Case { check: "in flight", rank: 1, faults: |_| planted(Planted::DoneEarly { late: LATE }),
        struck: "done early", says: "must be pending" },
    Case { check: "in flight", rank: 0, faults: |_| planted(Planted::SubmitBlocks),
        struck: "submit blocks", says: "submit did not return" },
    Case { check: "failed fence", rank: 1, faults: |_| planted(Planted::AfterIgnored),
        struck: "after ignored", says: "must fail" },
    Case { check: "chain", rank: 2, faults: |_| planted(Planted::AfterIgnored),
        struck: "after ignored", says: "holds expert 5, not expert 0" },
    Case { check: "tickets", rank: 1, faults: |_| planted(Planted::TicketsForgiven),
        struck: "ticket forgiven", says: "never issued" },
    Case { check: "tickets", rank: 1, faults: |_| planted(Planted::DoneEarly { late: LATE }),
        struck: "done early", says: "must hold" },
    Case { check: "empty", rank: 2, faults: |_| Faults { stall: Strike::Always, ..Faults::default() },
        struck: "stall", says: "not done after" },
    Case { check: "deadline", rank: 1, faults: |_| planted(Planted::DeadlineIgnored),
        struck: "deadline ignored", says: "pending for ever" },
    Case { check: "abort", rank: 0, faults: |_| planted(Planted::AbortIgnored),
        struck: "abort ignored", says: "rank 0" },
    Case { check: "abort in flight", rank: 1, faults: |_| planted(Planted::AbortIgnored),
        struck: "abort ignored", says: "abort" },
    Case { check: "drop", rank: 1, faults: |_| planted(Planted::DropBlocks { hold: SHORT * 4 }),
        struck: "drop blocks", says: "did not end" },
    Case { check: "refused", rank: 1, faults: |_| planted(Planted::PartlyEnqueued),
        struck: "partly enqueued", says: "must hold" },
    Case { check: "random waves", rank: 1, faults: |_| planted(Planted::DropTransfer { nth: 1 }),
        struck: "drop transfer", says: "must hold" },
];

#[test]
fn every_planted_fault_is_caught() {
    let mut missed = Vec::new();
    for case in CASES {
        // Only where patience must run out is it short.
        let runs_out = ["stall", "submit blocks", "deadline ignored", "drop blocks"].contains(&case.struck);
        let patience = if runs_out { SHORT } else { Options::default().patience };
        let options = Options { patience, watch: WATCH, ..Options::default() };
        let mut logs = Vec::new();
        let mut backend = |setup: &Setup| {
            support::local(setup, 2, &mut logs, |rank, memory| match rank == case.rank {
                true => (case.faults)(memory),
                false => Faults::default(),
            })
        };
        let check = CHECKS.iter().find(|check| check.name == case.check).unwrap();
        let found = check.run(&mut backend, &options);
        let struck = logs.iter().flat_map(|log| log.struck()).any(|what| what.contains(case.struck));
        let said = matches!(&found, Err(violation) if violation.what.contains(case.says));
        if !struck || !said {
            missed.push(format!("{} against {:?}: struck {struck}, {found:?}", case.struck, case.check));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn every_check_has_a_fault_that_it_catches() {
    for check in CHECKS {
        assert!(CASES.iter().any(|case| case.check == check.name), "no planted fault for {:?}", check.name);
    }
}
