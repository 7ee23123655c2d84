//! Runs the built command and reads what it printed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use eplb_trace::npz::{Npz, NpzWriter};
use ndarray::{Array2, Array3, ArrayBase, Data, Dimension};
use serde_json::Value;
use tempfile::TempDir;

/// A folder of its own for each test, gone at its end.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes an npz with one array.
    pub(crate) fn npz<S, D>(&self, name: &str, array: &str, values: &ArrayBase<S, D>) -> PathBuf
    where
        S: Data,
        S::Elem: eplb_trace::npy::Element,
        D: Dimension,
    {
        let path = self.path(name);
        let mut file = NpzWriter::create(&path).unwrap();
        file.array(array, values).unwrap();
        file.finish().unwrap();
        path
    }

    pub(crate) fn text(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// The trace that is shipped with the repository.
pub(crate) fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/day_26x64.npz")
}

/// Loads with no two experts alike, `[T, L, E]`.
pub(crate) fn skewed(steps: usize, layers: usize, experts: usize) -> Array3<f64> {
    Array3::from_shape_fn((steps, layers, experts), |(t, l, e)| {
        let rank = (e * 7 + l * 3 + t) % experts;
        (1000.0 / (1.0 + rank as f64)).round() + ((t * 5 + e) % 3) as f64
    })
}

pub(crate) fn eplb(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_eplb")).args(args).output().unwrap()
}

/// Runs with success; stdout must be exactly one JSON object.
pub(crate) fn json(args: &[&str]) -> Value {
    let output = eplb(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {stderr}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(value.is_object());
    value
}

/// Runs into bad input: exit code 2, nothing on stdout; returns what stderr says.
pub(crate) fn refused(args: &[&str]) -> String {
    let output = eplb(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// Asserts that a message names all the things.
pub(crate) fn names(message: &str, things: &[&str]) {
    for thing in things {
        assert!(message.contains(thing), "{message:?} does not name {thing:?}");
    }
}

pub(crate) fn phy2log(path: &Path) -> Array2<i64> {
    Npz::open(path).unwrap().integers("phy2log").unwrap()
}
