//! Builds the fakes, for the tests that run on them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder with the fakes, built once.
pub(crate) fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fakes");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(concat!("fakes-", env!("CARGO_PKG_NAME")));
        std::fs::create_dir_all(&folder).unwrap();
        for (source, soname) in [
            ("cuda.c", "libcuda.so.1"),
            ("nccl.c", "libnccl.so.2"),
            ("cublas.c", "libcublas.so.13"),
            ("nvtx.c", "libnvToolsExt.so.1"),
        ] {
            let mut cc = Command::new("cc");
            cc.args([
                "-O1",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-fPIC",
                "-shared",
                "-pthread",
                "-fvisibility=hidden",
            ])
            .arg(format!("-Wl,-soname,{soname}"))
            .arg("-o")
            .arg(folder.join(soname))
            .arg(sources.join(source));
            if source != "cuda.c" {
                cc.arg("-L").arg(&folder).arg("-l:libcuda.so.1");
            }
            assert!(cc.status().unwrap().success(), "cc {source}");
        }
        // The name that is looked for first; a link, so that it is one library under both names.
        drop(std::fs::remove_file(folder.join("libcuda.so")));
        std::os::unix::fs::symlink("libcuda.so.1", folder.join("libcuda.so")).unwrap();
        folder
    })
}
