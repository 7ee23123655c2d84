//! `src/bindings.rs` is what bindgen makes of `shim/eplb_gloo.h`.
//!
//! Needs libclang. `make test` installs it and sets `EPLB_LIBCLANG=required`; where it is absent and not required, the test
//! compares only the names that header and file declare, and says so. `EPLB_UPDATE=1` writes the file.

use std::collections::BTreeSet;
use std::path::PathBuf;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn generate() -> String {
    bindgen::Builder::default()
        .header(file("shim/eplb_gloo.h").to_string_lossy())
        .allowlist_item("(eplb|EPLB)_(gloo|GLOO)_.*")
        .dynamic_library_name("Symbols")
        .dynamic_link_require_all(true)
        .wrap_unsafe_ops(true)
        .merge_extern_blocks(true)
        .disable_header_comment()
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()
        .expect("the header is plain C")
        .to_string()
}

/// Tokens, so that the way lines are broken does not count.
fn tokens(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn has_libclang() -> bool {
    // bindgen panics where it is missing.
    std::panic::catch_unwind(bindgen::clang_version).is_ok()
}

/// The functions that a text names.
fn functions(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let all: BTreeSet<&str> = words.filter(|word| word.starts_with("eplb_gloo_")).collect();
    all.into_iter().map(str::to_owned).collect()
}

#[test]
fn the_bindings_are_those_of_the_header() {
    let path = file("src/bindings.rs");
    if !has_libclang() {
        assert_ne!(
            std::env::var("EPLB_LIBCLANG").as_deref(),
            Ok("required"),
            "libclang is required here and missing: install libclang-dev"
        );
        let header = std::fs::read_to_string(file("shim/eplb_gloo.h")).unwrap();
        let bound = functions(&std::fs::read_to_string(path).unwrap());
        let declared = header.lines().filter(|line| line.starts_with("EPLB_GLOO_API"));
        let missing: Vec<_> = declared
            .filter_map(|line| line.split('(').next()?.split([' ', '*']).next_back())
            .filter(|name| !bound.contains(*name))
            .collect();
        assert!(
            missing.is_empty(),
            "{missing:?} are not bound; install libclang-dev and run with EPLB_UPDATE=1"
        );
        eprintln!("WARNING: no libclang; only names were compared. Install libclang-dev for the whole test.");
        return;
    }
    let made = generate();
    if std::env::var_os("EPLB_UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        tokens(&kept) == tokens(&made),
        "src/bindings.rs is out of date: run this test with EPLB_UPDATE=1"
    );
}

#[test]
fn a_declaration_that_is_missing_is_noticed() {
    let kept = std::fs::read_to_string(file("src/bindings.rs")).unwrap();
    assert!(functions(&kept).contains("eplb_gloo_wait_recv"));
    let cut = kept.replace("eplb_gloo_wait_recv", "eplb_gloo_other");
    assert!(!functions(&cut).contains("eplb_gloo_wait_recv") && tokens(&cut) != tokens(&kept));
}
