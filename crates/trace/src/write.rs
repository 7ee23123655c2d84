//! Traces to files.

use std::path::Path;

use ndarray::aview1;

use crate::error::TraceError;
use crate::expert_table::COLUMNS;
use crate::npy::write::write_stored;
use crate::npz::NpzWriter;
use crate::output::AtomicFile;
use crate::records::{COUNTS, STREAM};
use crate::trace::Trace;

impl Trace {
    /// Writes the trace, whole or not at all, in the format that the name's end says.
    ///
    /// - `.npz`: array `counts [T, L, E]` in the dtype that the trace is stored in (little-endian, C order), and
    ///   `stream [T]` as int64 if it has streams. Nothing is lost.
    /// - `.npy`: the counts alone.
    /// - `.csv`: a table `layer_id,expert_id,count` of all pairs, summed over the steps.
    ///
    /// # Errors
    /// [`TraceError::Extension`] for another name, [`TraceError::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), TraceError> {
        let path = path.as_ref();
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match extension.as_str() {
            "npz" => self.write_npz(path),
            "npy" => self.write_npy(path),
            "csv" => self.write_csv(path),
            _ => Err(TraceError::Extension { file: path.display().to_string() }),
        }
    }

    fn write_npz(&self, path: &Path) -> Result<(), TraceError> {
        let mut npz = NpzWriter::create(path)?;
        npz.stored(COUNTS, self.counts().array(), self.in_file(&(0..self.steps()))?)?;
        if let Some(stream) = self.stream() {
            npz.array(STREAM, &aview1(stream))?;
        }
        npz.finish()
    }

    fn write_npy(&self, path: &Path) -> Result<(), TraceError> {
        let steps = self.in_file(&(0..self.steps()))?;
        AtomicFile::write_with(path, |out| write_stored(out, self.counts().array(), steps))
    }

    fn write_csv(&self, path: &Path) -> Result<(), TraceError> {
        let sum = self.sum(0..self.steps())?;
        AtomicFile::write_with(path, |out| {
            writeln!(out, "{}", COLUMNS.join(","))?;
            for ((layer, expert), count) in sum.indexed_iter() {
                writeln!(out, "{layer},{expert},{count}")?;
            }
            Ok(())
        })
    }
}
