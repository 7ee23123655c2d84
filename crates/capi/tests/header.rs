//! The header that is checked in says what the code says.

use std::path::Path;

/// `EPLB_BLESS=1 cargo test -p eplb-capi --test header` writes it anew.
#[test]
fn the_header_is_what_cbindgen_makes_of_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    // The modules are found from there.
    let sources = cbindgen::Builder::new().with_src(root.join("src/lib.rs")).with_config(config);
    let mut made = Vec::new();
    sources.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = root.join("include/eplb.h");
    if std::env::var_os("EPLB_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == made, "include/eplb.h is not what the code says; run this test with EPLB_BLESS=1");
}
