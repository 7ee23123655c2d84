//! `tests/gpu/run.sh`, which runs the GPU tests on a machine without Rust: what its steps come to is what it says and ends with.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

struct Ran {
    code: Option<i32>,
    stdout: String,
    summary: Value,
}

/// Runs the script with these files of steps in the place of its own.
fn run(steps: &[(&str, &str)], arguments: &[&str]) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gpu/run.sh");
    std::fs::copy(script, at("run.sh")).unwrap();
    std::fs::create_dir(at("steps")).unwrap();
    for (name, text) in steps {
        std::fs::write(at("steps").join(name), text).unwrap();
    }
    let output = Command::new("bash").arg(at("run.sh")).args(arguments).arg(at("out")).output().unwrap();
    let summary = std::fs::read_to_string(at("out/summary.json")).unwrap_or_else(|_| {
        panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        summary: serde_json::from_str(&summary).unwrap(),
    }
}

/// Name and state of each step.
fn states(ran: &Ran) -> Vec<(String, String)> {
    let text = |step: &Value, key: &str| step[key].as_str().unwrap().to_owned();
    ran.summary["steps"].as_array().unwrap().iter().map(|s| (text(s, "step"), text(s, "state"))).collect()
}

#[test]
fn a_run_whose_steps_hold_is_good_and_says_what_it_left_out() {
    let ran = run(
        &[
            ("10-first.sh", "step one 1 60 true | cat\nrefused planted 1 60 false\n"),
            (
                "20-second.sh",
                "step 'never begun' 5000 6000 false\ntoo_few 'four ranks' 'it wants four GPUs'\n\
                 if longer 'all of it'; then step 'all of it' 1 60 true; fi\n",
            ),
        ],
        &["--budget", "1000"],
    );
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    let expected = [
        ("one", "ok"),
        ("planted", "ok"),
        ("never begun", "skipped"),
        ("four ranks", "skipped"),
        ("all of it", "left out"),
    ];
    assert_eq!(states(&ran), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert!(ran.stdout.contains("never begun") && ran.stdout.contains("four GPUs"), "{}", ran.stdout);
    assert!(ran.stdout.contains("1 left out") && ran.stdout.contains("all of it"), "{}", ran.stdout);
    assert_eq!((&ran.summary["failed"], &ran.summary["skipped"]), (&0.into(), &2.into()));
    let ran = run(&[("10-a.sh", "if longer it; then step it 1 60 true; fi\n")], &["--long"]);
    assert_eq!(
        (ran.code, states(&ran)),
        (Some(0), vec![("it".to_owned(), "ok".to_owned())]),
        "{}",
        ran.stdout
    );
}

#[test]
fn a_step_that_fails_anywhere_fails_the_run_and_the_others_go_on() {
    for (name, text) in [
        ("fails", "step it 1 60 false\n"),
        ("fails in a pipe", "step it 1 60 false | cat\n"),
        ("fails in a substitution", "line=$(step it 1 60 sh -c 'echo \"{\"; exit 3')\n"),
        ("is late", "step it 1 1 sleep 100\n"),
        ("finds nothing", "refused it 1 60 true\n"),
        ("is not there", "refused it 1 60 /nowhere/to/be/found\n"),
        ("wants a tool", "missing it 'there is no such tool'\n"),
    ] {
        let ran = run(&[("10-a.sh", text), ("20-b.sh", "step after 1 60 true\n")], &[]);
        assert_eq!(ran.code, Some(1), "{name}: {}", ran.stdout);
        let expected = [("it", "failed"), ("after", "ok")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(states(&ran), expected, "{name}");
        assert!(ran.stdout.contains("1 failed"), "{name}: {}", ran.stdout);
    }
}

#[test]
fn files_of_steps_are_chosen_by_name() {
    let steps = [("10-a.sh", "step one 1 60 true\n"), ("20-b.sh", "step two 1 60 false\n")];
    let ran = run(&steps, &["--only", "a"]);
    assert_eq!((ran.code, states(&ran).len()), (Some(0), 1), "{}", ran.stdout);
}
