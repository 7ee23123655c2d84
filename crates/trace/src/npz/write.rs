//! Writing of `.npz` files.

use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use ndarray::{ArrayBase, Data, Dimension};
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::error::TraceError;
use crate::npy::NpyArray;
use crate::npy::write::{Element, write_array, write_stored};
use crate::output::AtomicFile;

/// Writes an `.npz` file, deflated, whole or not at all: nothing is at its place before [`NpzWriter::finish`].
///
/// The same arrays give the same bytes: members carry no time of day.
#[derive(Debug)]
pub struct NpzWriter {
    file: String,
    zip: ZipWriter<BufWriter<AtomicFile>>,
}

impl NpzWriter {
    /// Starts a file that will stand at `path`.
    ///
    /// # Errors
    /// [`TraceError::Io`] if the folder does not exist or cannot be written to.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let file = AtomicFile::create(path)?;
        Ok(Self { file: path.display().to_string(), zip: ZipWriter::new(BufWriter::new(file)) })
    }

    /// Adds an array.
    ///
    /// # Errors
    /// [`TraceError::Zip`] for a name that is taken, [`TraceError::Io`].
    pub fn array<T, S, D>(&mut self, name: &str, array: &ArrayBase<S, D>) -> Result<(), TraceError>
    where
        T: Element,
        S: Data<Elem = T>,
        D: Dimension,
    {
        let bytes = array.len().saturating_mul(T::SCALAR.size());
        self.member(name, bytes, |out| write_array(out, array))
    }

    /// Adds some entries of the first axis of a stored array, in its own dtype.
    pub(crate) fn stored(
        &mut self,
        name: &str,
        array: &NpyArray,
        entries: Range<usize>,
    ) -> Result<(), TraceError> {
        self.member(name, array.bytes().len(), |out| write_stored(out, array, entries))
    }

    fn member(
        &mut self,
        name: &str,
        bytes: usize,
        write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<(), TraceError> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644)
            // Sizes of 4 GiB and more need zip64, which must be known beforehand; a header is below 1 MiB.
            .large_file(bytes as u64 >= (1 << 32) - (1 << 20));
        let file = &self.file;
        self.zip.start_file(format!("{name}.npy"), options).map_err(|e| write_error(file, e))?;
        // Small writes are gathered before they reach the compressor.
        let mut out = BufWriter::with_capacity(1 << 16, &mut self.zip);
        let written = write(&mut out).and_then(|()| out.flush());
        drop(out);
        written.map_err(|source| TraceError::Io { file: file.clone(), action: "write", source })
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`TraceError::Io`]; the former file, if any, is still there.
    pub fn finish(self) -> Result<(), TraceError> {
        let Self { file, zip } = self;
        let out = zip.finish().map_err(|e| write_error(&file, e))?;
        let out = out.into_inner().map_err(|e| TraceError::Io {
            file: file.clone(),
            action: "write",
            source: e.into_error(),
        })?;
        out.commit()
    }
}

fn write_error(file: &str, error: ZipError) -> TraceError {
    match error {
        ZipError::Io(source) => TraceError::Io { file: file.to_owned(), action: "write", source },
        other => TraceError::Zip { file: file.to_owned(), reason: other.to_string() },
    }
}
