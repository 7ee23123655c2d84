//! Cases of models, each in a process of its own, so that what a planted fault breaks ends nothing else and is not printed.

use std::process::Command;

/// Says which case a process is to run.
const CASE: &str = "EPLB_TEST_CASE";

/// Whether the long form is wanted.
pub(crate) fn is_whole() -> bool {
    std::env::var("EPLB_FAULTS").is_ok_and(|which| which == "all")
}

/// Runs `count` cases. `case` gives the words of one, whether it is broken on purpose, so that it has to fail, and what runs it.
pub(crate) fn run<F: FnOnce()>(count: usize, case: impl Fn(usize) -> (&'static str, bool, F)) {
    if let Ok(at) = std::env::var(CASE) {
        let (.., model) = case(at.parse().expect("the number of a case"));
        return model();
    }
    let program = std::env::current_exe().expect("this program");
    let mut wrong = 0;
    for at in 0..count {
        let (name, is_broken, _) = case(at);
        let output = Command::new(&program).env(CASE, at.to_string()).output().expect("a process");
        let held = output.status.success();
        let is_right = held != is_broken;
        wrong += usize::from(!is_right);
        let verdict = if is_right { "ok" } else { "WRONG" };
        println!("{verdict}: {name}: {}", if held { "it holds" } else { "it is broken" });
        if !is_right {
            println!("{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    assert_eq!(wrong, 0, "cases that did not end as they must");
}
