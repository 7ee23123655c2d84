//! The header compiles as C11 and C++17 without a warning, and the examples run clean under sanitizers.

use std::path::Path;
use std::process::Command;

use super::compile::{SANITIZERS, WARNINGS, compile, libraries, output, root, run, succeed};

#[test]
fn the_header_compiles_as_c11_and_cpp17() {
    for (compiler, language, standard) in [("cc", "c", "-std=c11"), ("c++", "c++", "-std=c++17")] {
        let header = root().join("crates/capi/include/eplb.h");
        let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("header.{language}"));
        std::fs::write(
            &source,
            format!("#include {header:?}\nint main(void) {{ return (int)eplb_abi_version(); }}\n"),
        )
        .unwrap();
        succeed(
            Command::new(compiler)
                .args([standard, "-fsyntax-only", "-x", language])
                .args(WARNINGS)
                .arg(&source),
        );
    }
}

#[test]
fn a_c_program_plans_under_sanitizers() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plan");
    succeed(&mut compile(&[&root().join("bindings/c/plan.c")], &program, SANITIZERS));
    let told = succeed(&mut run(&program));
    assert!(
        told.contains("first plan: balancedness 0.9") || told.contains("first plan: balancedness 1.0"),
        "{told}"
    );
    assert!(told.contains("second plan: balancedness 0.9"), "{told}");
    assert!(told.contains("as expected: 16 slots for 32 experts"), "{told}");
}

/// Counts, rounds, commits and maps of two ranks, with every byte checked by the program.
#[test]
fn a_c_program_runs_two_engines_under_sanitizers() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("engine");
    succeed(&mut compile(&[&root().join("bindings/c/engine.c")], &program, SANITIZERS));
    let told = succeed(&mut run(&program));
    assert_eq!(told.matches(": moved, ").count(), 3, "{told}");
    assert!(told.contains("slots checked"), "{told}");
}

/// The program looks at the bytes: one that is wrong is noticed.
#[test]
fn a_wrong_byte_is_noticed_by_the_program() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("engine-planted");
    succeed(&mut compile(&[&root().join("bindings/c/engine.c")], &program, &["-DPLANTED"]));
    let done = output(&mut run(&program));
    assert_eq!(done.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&done.stderr).contains("layer 2, slot 0: not expert"));
}

/// The sanitizers are on: a program that reads a freed plan does not pass.
#[test]
fn a_use_after_free_is_noticed() {
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("freed.c");
    std::fs::write(
        &source,
        "#include <stdlib.h>\nint main(void) { volatile int *gone = malloc(4); free((void *)gone); return *gone; }\n",
    )
    .unwrap();
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("freed");
    let flags = ["-fsanitize=address,undefined", "-Wno-use-after-free"];
    succeed(&mut compile(&[&source], &program, &flags));
    let done = output(&mut run(&program));
    assert!(!done.status.success());
    assert!(String::from_utf8_lossy(&done.stderr).contains("heap-use-after-free"));
}

/// What a C project does with an installed copy: asks pkg-config, compiles, links with either library, runs.
#[test]
fn an_installed_copy_is_found_by_pkg_config() {
    let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed");
    // What an earlier version installed must not be taken for this one's.
    drop(std::fs::remove_dir_all(&prefix));
    let install = root().join("bindings/c/install.sh");
    succeed(Command::new(&install).arg(libraries()).arg(&prefix));
    assert_eq!(output(Command::new(&install).arg(libraries()).arg("here")).status.code(), Some(2));
    let asks = output(Command::new("sh").args(["-c", "command -v pkg-config"])).status.success();
    let flags = |more: &[&str]| -> Vec<String> {
        if !asks {
            eprintln!("pkg-config is not here: the file is read by hand");
            let pc = std::fs::read_to_string(prefix.join("lib/pkgconfig/eplb.pc")).unwrap();
            let value = |key: &str| {
                let line = pc.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
                line.replace("${libdir}", "${prefix}/lib").replace("${includedir}", "${prefix}/include")
            };
            let all = match more.contains(&"--static") {
                true => [value("Cflags:"), value("Libs:"), value("Libs.private:")].join(" "),
                false => [value("Cflags:"), value("Libs:")].join(" "),
            };
            let all = all.replace("${prefix}", &value("prefix="));
            return all.split_whitespace().map(str::to_owned).collect();
        }
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).args(["--cflags", "--libs"]).args(more);
        let told = succeed(command.arg("eplb"));
        told.split_whitespace().map(str::to_owned).collect()
    };
    for (name, more, libraries) in [("shared", &[][..], "lib"), ("static", &["--static"][..], "nowhere")] {
        let program = prefix.join(name);
        let mut command = Command::new("cc");
        command
            .args(["-std=c11"])
            .args(WARNINGS)
            .arg(root().join("bindings/c/plan.c"))
            .arg("-o")
            .arg(&program);
        for flag in flags(more) {
            // The archive by its name: the linker prefers the shared library of the same folder.
            command.arg(if name == "static" && flag == "-leplb" { "-l:libeplb.a" } else { &flag });
        }
        succeed(&mut command);
        let told = succeed(Command::new(&program).env("LD_LIBRARY_PATH", prefix.join(libraries)));
        assert!(told.contains("as expected: 16 slots for 32 experts"), "{told}");
    }
    // The shared one needs the library by its soname, which the folder has; without the folder it does not start.
    assert!(!output(Command::new(prefix.join("shared")).env("LD_LIBRARY_PATH", "")).status.success());
}

#[test]
fn the_shared_library_has_a_soname_and_exports_only_its_interface() {
    let library = libraries().join("libeplb.so");
    let dynamic = succeed(Command::new("readelf").args(["-d", "-W"]).arg(&library));
    let soname = format!("soname: [libeplb.so.{}]", eplb::EPLB_ABI_VERSION);
    assert!(dynamic.contains(&soname), "{dynamic}");
    let symbols = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let foreign: Vec<&str> = symbols
        .lines()
        .filter_map(|line| line.split(' ').next_back())
        .filter(|s| !s.starts_with("eplb_"))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    let header = std::fs::read_to_string(root().join("crates/capi/include/eplb.h")).unwrap();
    for symbol in symbols.lines().filter_map(|line| line.split(' ').next_back()) {
        assert!(header.contains(&format!("{symbol}(")), "{symbol} is not in the header");
    }
}
