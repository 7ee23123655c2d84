//! Compiles and runs C programs against the library that cargo has built.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Flags under which nothing may be said.
pub(crate) const WARNINGS: &[&str] = &["-Wall", "-Wextra", "-Werror", "-pedantic"];
/// Flags under which a program ends at the first access or number that is wrong, and when it has ended with memory that nobody frees.
pub(crate) const SANITIZERS: &[&str] = &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder of the libraries that cargo has built beside this test.
pub(crate) fn libraries() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().to_owned()
}

pub(crate) fn output(command: &mut Command) -> Output {
    let shown = format!("{command:?}");
    command
        .output()
        .unwrap_or_else(|error| panic!("{shown}: {error}; install a C and C++ compiler (gcc, g++)"))
}

pub(crate) fn succeed(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let done = output(command);
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{shown}\n{out}{err}");
    out.into_owned()
}

pub(crate) fn compile(sources: &[&Path], program: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new("cc");
    command.args(["-std=c11", "-g"]).args(WARNINGS).args(flags);
    command.arg("-I").arg(root().join("crates/capi/include")).args(sources);
    command.arg("-o").arg(program).arg("-L").arg(libraries()).args(["-leplb", "-lpthread", "-lm"]);
    // The soname is not the name of the file that cargo writes.
    let soname = libraries().join(format!("libeplb.so.{}", eplb::EPLB_ABI_VERSION));
    if !soname.exists() {
        // Another test may be making it at the same time.
        drop(std::os::unix::fs::symlink("libeplb.so", &soname));
    }
    command
}

pub(crate) fn run(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", libraries());
    command
}
