//! The source of the GPU kernels, compiled as C++ and run on the CPU against the twins: what a GPU is not needed for is
//! checked without one, planted faults included. The same program on a GPU is `kernels/check.sh`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use eplb_comm::kernels::vectors::{Size, cases, write};

/// A C++ compiler is part of what the tests need (`make tools`): without one this fails rather than passes.
fn build(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/test/check.cu");
    let program = folder.join("check");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let built = Command::new(&compiler)
        .args([
            "-std=c++17",
            "-O1",
            "-Wall",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-DEPLB_EMULATE",
            "-x",
            "c++",
        ])
        .arg(source)
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}; install a C++ compiler or set CXX"));
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}

fn check(program: &Path, vectors: &Path, more: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        Command::new(program).arg(vectors).args(more).output().expect("the program was just built");
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

#[test]
fn kernels_give_what_their_twins_give_and_planted_faults_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let program = build(folder.path());
    let vectors = folder.path().join("small.vec");
    write(&cases(11, Size::Small), std::fs::File::create(&vectors).unwrap()).unwrap();

    let (code, said) = check(&program, &vectors, &["--grids", "1,3,11"]);
    assert!(code == Some(0) && said.ends_with("KERNELS AGREE\n"), "{code:?}: {said}");

    for (fault, seen_in) in [
        ("PaddingCounted", "dispatch"),
        ("HashWithoutLayer", "dispatch"),
        ("NoBarrier", "dispatch"),
        ("TailLeftOut", "rows"),
        ("PitchIgnored", "rows"),
        ("WordsLeftOut", "commit"),
        ("PositionLeftOut", "checksum"),
        ("SumsNotAwaited", "checksum"),
        ("LastWordLeftOut", "checksum"),
        ("NotUploaded", "dispatch"),
    ] {
        let (code, said) = check(&program, &vectors, &["--grids", "5", "--plant", fault]);
        assert!(
            code == Some(1) && said.contains(&format!("DIFFERS {seen_in}/")),
            "{fault}: {code:?}: {said}"
        );
    }

    // Nothing to compare is not a pass.
    std::fs::write(&vectors, b"EPLBVEC1\0\0\0\0\0\0\0\0").unwrap();
    assert_eq!(check(&program, &vectors, &[]).0, Some(2));
    assert_eq!(check(&program, &folder.path().join("nothing"), &[]).0, Some(2));
}
