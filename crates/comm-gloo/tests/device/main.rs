//! Slots on devices, with no GPU: ranks on the recording fake of `libcuda.so.1` (`tests/fakes`), over Gloo on the loopback interface.
//!
//! The program starts itself again for each check, with the fake on the library path; hence no test harness. Arguments choose checks by parts of their
//! names.

#[path = "../../../../tests/fakes/build.rs"]
mod build;
mod ends;
mod faults;
mod hold;
#[path = "../../../../tests/fakes/log.rs"]
mod log;
mod memory;
mod ranks;
mod suite;

use std::process::Command;

/// Names the check that a process is to make.
const ROLE: &str = "EPLB_GLOO_DEVICE_CHECK";

struct Check {
    name: &'static str,
    run: fn(),
    /// Of the fake.
    variables: &'static [(&'static str, &'static str)],
    /// Looks at the calls that it made.
    audit: fn(&log::Log),
}

const SLOW: &[(&str, &str)] = &[("EPLB_FAKE_DELAY_US", "200")];

const fn check(name: &'static str, run: fn()) -> Check {
    Check { name, run, variables: &[], audit: memory::is_a_guest }
}

const CHECKS: &[Check] = &[
    Check { variables: SLOW, ..check("two_ranks_pass_the_suite", suite::two_ranks) },
    Check { variables: SLOW, ..check("three_ranks_pass_the_suite", suite::three_ranks) },
    check("small_windows_and_pieces_pass_the_suite", suite::small_pieces),
    check("ranks_on_host_and_device_are_one_group", suite::host_and_device),
    Check { audit: memory::is_bounded, ..check("memory_is_taken_at_the_start_and_bounded", memory::bounded) },
    check("a_message_is_sent_when_its_bytes_are_there", faults::a_message_is_sent_when_its_bytes_are_there),
    check(
        "a_wave_is_done_when_its_bytes_are_in_their_place",
        faults::a_wave_is_done_when_its_bytes_are_in_their_place,
    ),
    check(
        "a_cell_is_used_again_when_its_bytes_are_in_their_place",
        faults::a_cell_is_used_again_when_its_bytes_are_in_their_place,
    ),
    check("a_piece_lands_where_it_was", faults::a_piece_lands_where_it_was),
    check("an_abort_is_quiet_when_the_device_is", ends::an_abort_is_quiet_when_the_device_is),
    check("a_device_that_is_late_costs_a_deadline", ends::a_device_that_is_late_costs_a_deadline),
    Check {
        variables: &[("EPLB_FAKE_FAULT", "cuEventQuery:2")],
        ..check("a_device_that_fails_is_named_by_all", ends::a_device_that_fails_is_named_by_all)
    },
    Check {
        audit: memory::keeps_what_is_used,
        ..check("a_drop_waits_for_copies_and_not_for_ever", ends::a_drop_waits_for_copies_and_not_for_ever)
    },
];

fn main() {
    if let Ok(name) = std::env::var(ROLE) {
        let check = CHECKS.iter().find(|check| check.name == name);
        return (check.unwrap_or_else(|| panic!("no check {name}")).run)();
    }
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let chosen =
        |name: &str| arguments.is_empty() || arguments.iter().any(|part| name.contains(part.as_str()));
    let checks: Vec<_> = CHECKS.iter().filter(|check| chosen(check.name)).collect();
    println!("running {} checks on the fake of CUDA", checks.len());
    for check in checks {
        let calls = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
            "gloo-device-{}-{}",
            std::process::id(),
            check.name
        ));
        let status = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, check.name)
            .env("LD_LIBRARY_PATH", build::libraries())
            .env("EPLB_FAKE_LOG", &calls)
            .envs(check.variables.iter().copied())
            .status()
            .unwrap();
        let text = std::fs::read_to_string(&calls).unwrap_or_default();
        drop(std::fs::remove_file(&calls));
        assert!(status.success(), "check {} ... failed: {status}", check.name);
        (check.audit)(&log::Log::parse(&text));
        println!("check {} ... ok", check.name);
    }
}
