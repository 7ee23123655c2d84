//! Compiles `shim/` against the system's Gloo into a library of its own, `libeplb_gloo.so`, beside the program. Where Gloo's headers or
//! a C++ compiler are missing nothing is built, and loading says so at run time: Gloo is never needed to build.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const LIBRARY: &str = "libeplb_gloo.so";
/// The first ones are compiled.
const SOURCES: [&str; 5] = [
    "shim/eplb_gloo.cpp",
    "shim/guard.cpp",
    "shim/eplb_gloo.h",
    "shim/guard.h",
    "shim/absent/gloo/common/memory.h",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    SOURCES.iter().for_each(|source| println!("cargo:rerun-if-changed={source}"));
    // Debian's list of packages: looked at again when one is installed.
    for place in ["/var/lib/dpkg/status", "/usr/include/gloo/config.h"].map(Path::new) {
        if place.exists() {
            println!("cargo:rerun-if-changed={}", place.display());
        }
    }
    let outcome = match (env::var_os("OUT_DIR"), env::var("CARGO_CFG_TARGET_OS").as_deref()) {
        (Some(out), Ok("linux")) => build(&PathBuf::from(out)),
        _ => Err("only Linux has it".to_owned()),
    };
    let why_not = match outcome {
        Ok(()) => String::new(),
        Err(why) => {
            println!("cargo:warning=the gloo backend is not built: {why}");
            why.replace(['\n', '\r'], " ")
        }
    };
    println!("cargo:rustc-env=EPLB_GLOO_NOT_BUILT={why_not}");
}

fn build(out: &Path) -> Result<(), String> {
    let built = out.join(LIBRARY);
    // `<profile>/build/<package>/out`: programs lie in `<profile>`, and the library beside them.
    let beside = out.ancestors().nth(3).map(|profile| profile.join(LIBRARY));
    let beside = beside.ok_or("cargo's folders are not where they should be")?;
    // One of an older build must not pass for this one's.
    let _ = fs::remove_file(&beside);
    let compiler = cc::Build::new().cpp(true).std("c++17").opt_level(2).pic(true).try_get_compiler();
    let compiler = compiler.map_err(|error| format!("no C++ compiler ({error}); install g++"))?;
    let compile = |arguments: &[&str]| -> Result<(), String> {
        let mut command: Command = compiler.to_command();
        command.args(["-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-o"]).arg(&built);
        command.args(arguments).args(["-lgloo", "-Wl,-z,defs"]);
        let output = command.output().map_err(|error| format!("no C++ compiler ({error}); install g++"))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let first = text.lines().find(|line| line.contains("error") || line.contains("cannot find"));
        Err(first.unwrap_or("the compiler failed").trim().to_owned())
    };
    let guarded = compile(&[SOURCES[0], SOURCES[1], "-idirafter", "shim/absent"]);
    if let Err(why) = guarded {
        // Gloo's TCP classes are no stable interface: with another version it may be that only the rest compiles.
        compile(&[SOURCES[0], "-DEPLB_GLOO_UNGUARDED"])
            .map_err(|error| format!("{error}; install libgloo-dev and g++"))?;
        println!(
            "cargo:warning=this Gloo's connections are not guarded against strangers on its ports: {}",
            why.replace(['\n', '\r'], " ")
        );
    }
    // Renamed, so that a program that starts meanwhile finds the whole library or none.
    let whole = beside.with_extension("so.new");
    let copied = fs::copy(&built, &whole).and_then(|_| fs::rename(&whole, &beside));
    copied.map_err(|error| format!("{}: {error}", beside.display()))
}
