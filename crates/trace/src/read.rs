//! Traces from files: `.npy`, `.npz` and CSV, told apart by what they begin with, not by their names.

use std::path::Path;

use crate::bytes::Bytes;
use crate::counts::Counts;
use crate::error::TraceError;
use crate::expert_table;
use crate::npy::NpyArray;
use crate::npz::Npz;
use crate::records;
use crate::trace::Trace;

impl Trace {
    /// Opens a trace: an `.npy` file, an `.npz` file or a CSV file `layer_id,expert_id,count`.
    ///
    /// `[L, E]` counts as one step. In an `.npz` file the array `counts` is read, or one of the names in
    /// [`crate::records`], or the only array; `stream [T]` gives each step its stream; other arrays are ignored,
    /// whatever their dtype. Files of [`MAP_FROM`](crate::MAP_FROM) bytes or more are mapped into memory, and must
    /// not be changed while the trace lives.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged; several arrays and none named `counts`; a shape that is neither
    /// `[T, L, E]` nor `[L, E]`; a dtype that is no integer or float; a load that is NaN, infinite or negative. Each
    /// names the file and the place in it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let path = path.as_ref();
        Self::parse(path.display().to_string(), Bytes::open(path)?)
    }

    /// Reads the bytes of a file as [`Trace::open`] does; `source` names them in messages.
    ///
    /// # Errors
    /// As [`Trace::open`].
    pub fn from_bytes(source: impl Into<String>, bytes: Vec<u8>) -> Result<Self, TraceError> {
        Self::parse(source.into(), bytes.into())
    }

    fn parse(source: String, bytes: Bytes) -> Result<Self, TraceError> {
        match Format::of(&bytes) {
            Format::Npy => {
                let counts = Counts::new(NpyArray::parse(source.clone(), bytes)?)?;
                Self::assemble(source, counts, None)
            }
            Format::Npz => {
                let npz = Npz::parse(source.clone(), bytes)?;
                let counts = records::counts(&npz)?;
                let stream = records::stream(&npz, counts.steps())?;
                Self::assemble(source, counts, stream)
            }
            Format::Text => {
                let counts = expert_table::read(&source, &bytes)?;
                Self::assemble(source, counts, None)
            }
            Format::Pickle => Err(TraceError::Pickle { file: source }),
            Format::Empty => Err(TraceError::EmptyFile { file: source }),
            Format::Unknown => {
                Err(TraceError::UnknownFormat { file: source, start: bytes[..bytes.len().min(8)].to_vec() })
            }
        }
    }
}

/// What a file is, by its first bytes.
enum Format {
    Npy,
    Npz,
    Text,
    Pickle,
    Empty,
    Unknown,
}

impl Format {
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            [] => Self::Empty,
            [0x93, ..] => Self::Npy,
            [b'P', b'K', 3 | 5 | 7, ..] => Self::Npz,
            // Pickle protocols 2 to 5.
            [0x80, 2..=5, ..] => Self::Pickle,
            _ if bytes[..bytes.len().min(1024)].contains(&0) => Self::Unknown,
            _ => Self::Text,
        }
    }
}
