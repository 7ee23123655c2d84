//! Looking for shared libraries where the loader would, without loading them.

use std::fs;
use std::path::{Path, PathBuf};

use super::Machine;

/// Names that are looked for, and what each is for.
const WANTED: [(&str, &str); 3] = [
    ("libcuda.so.1", "GPUs"),
    ("libnccl.so.2", "experts between GPUs of several machines"),
    ("libgloo.so.0", "experts between processes over TCP"),
];

/// Where systems keep libraries.
const FOLDERS: [&str; 10] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/cuda/lib64",
];

/// A shared library, found or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// The name that it is loaded by.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Its file.
    pub path: Option<PathBuf>,
    /// Its version, where the file's name tells more than the name that it is loaded by.
    pub version: Option<String>,
}

/// Looks for all libraries: `LD_LIBRARY_PATH` first, then the folders of `/etc/ld.so.conf.d`, then the usual ones.
pub(super) fn find(machine: &Machine) -> Vec<Library> {
    let mut folders: Vec<PathBuf> = Vec::new();
    let given =
        machine.library_path.iter().flat_map(|path| path.split(':')).filter(|folder| !folder.is_empty());
    folders.extend(given.map(|folder| machine.path(folder)));
    for file in machine.folders("/etc/ld.so.conf.d") {
        let text = fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with('/'));
        folders.extend(lines.map(|folder| machine.path(folder)));
    }
    folders.extend(FOLDERS.iter().map(|folder| machine.path(folder)));
    WANTED
        .iter()
        .map(|&(name, purpose)| {
            let path = folders.iter().map(|folder| folder.join(name)).find(|path| path.exists());
            let version = path.as_deref().and_then(|path| version(path, name));
            Library { name, purpose, path, version }
        })
        .collect()
}

/// The rest of the name of the file behind the links: `libx.so.2` that is `libx.so.2.21.5` has 2.21.5.
fn version(path: &Path, name: &str) -> Option<String> {
    let file = fs::canonicalize(path).ok()?;
    let full = file.file_name()?.to_str()?;
    let (stem, major) = name.split_once(".so.")?;
    let version = full.strip_prefix(stem)?.strip_prefix(".so.").or_else(|| {
        // libx-1.2.so has its version before the ending.
        full.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".so")
    })?;
    (version != major).then(|| version.to_owned())
}
